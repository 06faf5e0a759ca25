//! Datagrams that arrive in fragments (RFC 791 §3.2), put together.
//!
//! Fragments that overlap are an attack or a fault, never a Linux guest: the datagram is given up (RFC 5722 asks that
//! of IPv6). A fragment that is repeated as a whole is taken once.

use std::time::Duration;

use smoltcp::time::Instant;

use super::Dropped;

/// Most datagrams that are put together at a time; a new one takes the place of the oldest.
const UNFINISHED_MAX: usize = 8;
/// How long the fragments of one datagram may take.
const UNFINISHED_WAIT: Duration = Duration::from_secs(5);
/// Largest payload of an IP packet.
const PAYLOAD_BYTES_MAX: usize = u16::MAX as usize - 20;
/// Fewest bytes of a fragment that is not the last; smaller ones only waste our time.
const FRAGMENT_BYTES_MIN: usize = 8;

/// What a fragment says of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fragment<'a> {
    pub(super) ident: u16,
    pub(super) protocol: u8,
    pub(super) offset: usize,
    pub(super) more: bool,
    pub(super) payload: &'a [u8],
}

/// Datagrams of which something is missing.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    unfinished: Vec<Unfinished>,
}

#[derive(Debug)]
struct Unfinished {
    ident: u16,
    protocol: u8,
    since: Instant,
    bytes: Vec<u8>,
    /// What has arrived, as disjoint ranges in order.
    ranges: Vec<(usize, usize)>,
    total: Option<usize>,
}

impl Reassembly {
    /// Takes one fragment; returns the payload of its datagram if that is whole now.
    pub(super) fn add(
        &mut self,
        fragment: Fragment<'_>,
        now: Instant,
        dropped: &mut Dropped,
    ) -> Option<Vec<u8>> {
        let before = self.unfinished.len();
        self.unfinished.retain(|one| now < one.since + UNFINISHED_WAIT.into());
        dropped.fragments += (before - self.unfinished.len()) as u64;
        let end = fragment.offset + fragment.payload.len();
        let odd = fragment.more && !fragment.payload.len().is_multiple_of(8);
        let small = fragment.more && fragment.payload.len() < FRAGMENT_BYTES_MIN;
        if end > PAYLOAD_BYTES_MAX || odd || small || fragment.payload.is_empty() {
            dropped.fragments += 1;
            return None;
        }
        let at = self.find_or_begin(fragment, now, dropped);
        match self.unfinished[at].take(fragment, end) {
            Ok(false) => None,
            Ok(true) => Some(self.unfinished.swap_remove(at).bytes),
            Err(Overlap) => {
                self.unfinished.swap_remove(at);
                dropped.fragments += 1;
                None
            }
        }
    }

    fn find_or_begin(&mut self, fragment: Fragment<'_>, now: Instant, dropped: &mut Dropped) -> usize {
        let (ident, protocol) = (fragment.ident, fragment.protocol);
        let known = self.unfinished.iter().position(|one| one.ident == ident && one.protocol == protocol);
        known.unwrap_or_else(|| {
            if self.unfinished.len() >= UNFINISHED_MAX {
                let oldest = (0..self.unfinished.len()).min_by_key(|&at| self.unfinished[at].since);
                self.unfinished.swap_remove(oldest.unwrap_or(0));
                dropped.fragments += 1;
            }
            let (bytes, ranges) = (Vec::new(), Vec::new());
            self.unfinished.push(Unfinished { ident, protocol, since: now, bytes, ranges, total: None });
            self.unfinished.len() - 1
        })
    }
}

struct Overlap;

impl Unfinished {
    /// Whether the datagram is whole.
    fn take(&mut self, fragment: Fragment<'_>, end: usize) -> Result<bool, Overlap> {
        let range = (fragment.offset, end);
        let at = self.ranges.partition_point(|have| have.0 < range.0);
        if self.ranges.get(at) == Some(&range) {
            return Ok(false);
        }
        let before_ends = at.checked_sub(1).map_or(0, |before| self.ranges[before].1);
        let next_begins = self.ranges.get(at).map_or(usize::MAX, |next| next.0);
        if before_ends > range.0 || next_begins < range.1 || self.total.is_some_and(|total| end > total) {
            return Err(Overlap);
        }
        if !fragment.more {
            if self.total.is_some() || self.bytes.len() > end {
                return Err(Overlap);
            }
            self.total = Some(end);
        }
        self.ranges.insert(at, range);
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[range.0..range.1].copy_from_slice(fragment.payload);
        let contiguous = self.ranges.windows(2).all(|pair| pair[0].1 == pair[1].0);
        let begins = self.ranges.first().is_some_and(|first| first.0 == 0);
        Ok(self.total.is_some() && contiguous && begins)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fragment(ident: u16, offset: usize, more: bool, payload: &[u8]) -> Fragment<'_> {
        Fragment { ident, protocol: 17, offset, more, payload }
    }

    #[test]
    fn overlapping_fragments_give_the_datagram_up() {
        let (mut reassembly, mut dropped) = (Reassembly::default(), Dropped::default());
        let now = Instant::from_secs(1);
        assert_eq!(reassembly.add(fragment(1, 0, true, &[1; 16]), now, &mut dropped), None);
        assert_eq!(reassembly.add(fragment(1, 8, false, &[2; 16]), now, &mut dropped), None);
        assert_eq!((reassembly.unfinished.len(), dropped.fragments), (0, 1));
    }

    #[test]
    fn what_is_never_finished_is_forgotten() {
        let (mut reassembly, mut dropped) = (Reassembly::default(), Dropped::default());
        for ident in 0..100 {
            reassembly.add(fragment(ident, 8, true, &[0; 1024]), Instant::from_secs(1), &mut dropped);
        }
        assert_eq!(reassembly.unfinished.len(), UNFINISHED_MAX);
        reassembly.add(fragment(200, 8, true, &[0; 8]), Instant::from_secs(10), &mut dropped);
        assert_eq!((reassembly.unfinished.len(), dropped.fragments), (1, 100));
    }

    proptest! {
        #[test]
        fn any_order_and_repetition_gives_the_datagram_once(
            payload in proptest::collection::vec(any::<u8>(), 1..9000),
            order in proptest::collection::vec(any::<proptest::sample::Index>(), 0..20),
        ) {
            let pieces: Vec<(usize, &[u8])> =
                payload.chunks(1480).enumerate().map(|(at, piece)| (at * 1480, piece)).collect();
            prop_assume!(pieces.len() > 1);
            let (mut reassembly, mut dropped) = (Reassembly::default(), Dropped::default());
            let shuffled = order.iter().map(|index| index.index(pieces.len())).chain(0..pieces.len());
            let mut whole = Vec::new();
            for at in shuffled {
                let (offset, piece) = pieces[at];
                let more = at + 1 < pieces.len();
                let done = reassembly.add(fragment(7, offset, more, piece), Instant::from_secs(1), &mut dropped);
                whole.extend(done);
                if !whole.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(whole, vec![payload.clone()]);
            prop_assert_eq!(dropped, Dropped::default());
        }

        #[test]
        fn any_fragments_never_panic(
            fragments in proptest::collection::vec(
                (0u16..3, 0usize..8192, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..60),
        ) {
            let (mut reassembly, mut dropped) = (Reassembly::default(), Dropped::default());
            for (ident, offset, more, payload) in fragments {
                reassembly.add(fragment(ident, offset * 8, more, &payload), Instant::from_secs(1), &mut dropped);
            }
        }
    }
}
