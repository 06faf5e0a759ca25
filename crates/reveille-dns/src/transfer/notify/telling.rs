//! What one secondary has been told of one zone. Pure: times are milliseconds of any clock that only goes forward.

/// Least time between two messages to a secondary.
const PAUSE_MS: u64 = 1_000;
/// Pause before a message that was not acknowledged is sent again; doubled each time.
const AGAIN_MS: u64 = 2_000;
/// Longest such pause.
const AGAIN_MS_MAX: u64 = 60_000;

/// Where one secondary stands.
#[derive(Debug, Default)]
pub(super) struct Telling {
    /// The serial that it is to know.
    newest: Option<u32>,
    /// ID of the message that waits for its answer.
    awaited: Option<u16>,
    /// Messages of this serial that were sent.
    tries: u32,
    sent_ms: Option<u64>,
    due_ms: Option<u64>,
}

impl Telling {
    /// The zone has this serial now.
    pub fn newest(&mut self, serial: u32, now_ms: u64) {
        if self.newest == Some(serial) {
            return;
        }
        let earliest = self.sent_ms.map_or(0, |sent| sent.saturating_add(PAUSE_MS));
        // An answer to what was sent before says nothing about this one.
        *self = Self { newest: Some(serial), due_ms: Some(earliest.max(now_ms)), ..*self };
        (self.awaited, self.tries) = (None, 0);
    }

    /// When it is to be told; `None` if it knows.
    pub fn due_ms(&self) -> Option<u64> {
        self.due_ms
    }

    /// The serial that it is to know.
    pub fn serial(&self) -> Option<u32> {
        self.newest
    }

    /// Whether it knows that serial.
    pub fn is_acknowledged(&self) -> bool {
        self.newest.is_some() && self.due_ms.is_none()
    }

    /// Messages of that serial that were sent; it is not counted beyond 16.
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// It was told, with that ID.
    pub fn sent(&mut self, id: u16, now_ms: u64) {
        let pause = AGAIN_MS.checked_shl(self.tries).unwrap_or(AGAIN_MS_MAX).min(AGAIN_MS_MAX);
        self.tries = (self.tries + 1).min(16);
        (self.awaited, self.sent_ms) = (Some(id), Some(now_ms));
        self.due_ms = Some(now_ms.saturating_add(pause));
    }

    /// Whether it owes an answer to that ID.
    pub fn awaits(&self, id: u16) -> bool {
        self.awaited == Some(id)
    }

    /// It knows.
    pub fn acknowledged(&mut self) {
        (self.awaited, self.due_ms) = (None, None);
    }

    /// It does not want to know; perhaps it is not set up yet.
    pub fn refused(&mut self, now_ms: u64) {
        (self.awaited, self.due_ms) = (None, Some(now_ms.saturating_add(AGAIN_MS_MAX)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_serial_is_told_at_once_and_later_ones_once_a_second() {
        let mut telling = Telling::default();
        assert_eq!(telling.due_ms(), None);
        telling.newest(7, 100);
        assert_eq!(telling.due_ms(), Some(100));
        telling.sent(1, 100);
        telling.newest(7, 150);
        assert_eq!(telling.due_ms(), Some(2_100), "the same serial is no news");
        telling.acknowledged();
        assert_eq!(telling.due_ms(), None);
        for (serial, now_ms) in [(8, 300), (9, 400), (10, 900)] {
            telling.newest(serial, now_ms);
            assert_eq!(telling.due_ms(), Some(1_100));
        }
        telling.newest(11, 1_150);
        assert_eq!(telling.due_ms(), Some(1_150));
    }

    #[test]
    fn it_is_told_again_ever_more_rarely_until_it_acknowledges() {
        let mut telling = Telling::default();
        telling.newest(7, 0);
        let mut pauses = Vec::new();
        for id in 0..8 {
            let now_ms = telling.due_ms().unwrap();
            telling.sent(id, now_ms);
            pauses.push(telling.due_ms().unwrap() - now_ms);
        }
        assert_eq!(pauses, [2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]);
        assert!(telling.awaits(7) && !telling.awaits(6));
        telling.refused(500_000);
        assert_eq!((telling.due_ms(), telling.awaits(7)), (Some(560_000), false));
        // News begin anew, and an answer to the old message is none to the new one.
        telling.sent(8, 560_000);
        telling.newest(8, 570_000);
        assert!(!telling.awaits(8));
        assert_eq!((telling.serial(), telling.tries(), telling.is_acknowledged()), (Some(8), 0, false));
        telling.sent(9, 570_000);
        assert_eq!(telling.due_ms(), Some(572_000));
        telling.acknowledged();
        assert_eq!((telling.due_ms(), telling.tries(), telling.is_acknowledged()), (None, 1, true));
    }
}
