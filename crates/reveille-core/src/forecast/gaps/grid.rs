//! Idle time in pieces on which the hazard is constant: a few seconds at first, then longer by a constant factor,
//! then equal ones, so that the time of day keeps being looked at.

/// Where the first pieces begin, in seconds. Further ones are longer by a ninth each.
const FINE_S: [u64; 28] = [
    0, 3, 6, 10, 14, 18, 22, 26, 30, 34, 38, 42, 46, 50, 55, 60, 66, 73, 81, 90, 100, 111, 123, 137, 152,
    169, 188, 209,
];

/// From here on pieces are equally long.
const LONG_FROM_S: u64 = 7_200;

/// How long those are.
const LONG_S: u64 = 1_200;

/// How many pieces there are: up to 30 days. A name that is idle for longer is not looked at any more.
pub const PIECES: usize = GROWING.1 + LONG_PIECES;

/// How many equally long ones.
const LONG_PIECES: usize = 2_154;

/// Where the pieces up to [`LONG_FROM_S`] begin, and how many they are.
const GROWING: ([u64; 80], usize) = growing();

const fn growing() -> ([u64; 80], usize) {
    let mut starts = [0; 80];
    let mut count = 0;
    while count < FINE_S.len() {
        starts[count] = FINE_S[count];
        count += 1;
    }
    while starts[count - 1] + starts[count - 1] / 9 < LONG_FROM_S - LONG_S / 2 {
        starts[count] = starts[count - 1] + starts[count - 1] / 9;
        count += 1;
    }
    (starts, count)
}

/// Idle time at which the piece with this index begins and ends, in ms; `None` beyond the last.
pub fn piece(index: usize) -> Option<(u64, u64)> {
    (index < PIECES).then(|| (start_ms(index), start_ms(index + 1)))
}

/// The index of the piece that an idle time lies in; [`PIECES`] beyond the last.
pub fn piece_at(idle_ms: u64) -> usize {
    let (mut low, mut high) = (0, PIECES);
    while low < high {
        let middle = usize::midpoint(low, high);
        if start_ms(middle + 1) <= idle_ms { low = middle + 1 } else { high = middle }
    }
    low
}

fn start_ms(index: usize) -> u64 {
    let (starts, count) = &GROWING;
    match index.checked_sub(*count) {
        None => starts[index] * 1_000,
        Some(long) => (LONG_FROM_S + long as u64 * LONG_S) * 1_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_follow_each_other_without_a_hole_and_each_idle_time_lies_in_its_own() {
        for index in 0..PIECES {
            let (from, until) = piece(index).unwrap();
            assert!(from < until, "{index}: {from}..{until}");
            assert!(until - from <= 1_300_000, "{index}: {from}..{until}");
            assert_eq!(piece(index + 1).map(|(next, _)| next), (index + 1 < PIECES).then_some(until));
            assert_eq!((piece_at(from), piece_at(until - 1)), (index, index));
        }
        assert_eq!(piece(0).unwrap().0, 0);
        assert_eq!(piece(PIECES - 1).unwrap().1, 30 * 86_400_000);
        assert_eq!((piece(PIECES), piece_at(u64::MAX)), (None, PIECES));
    }
}
