//! Who sends dnstap: names of a bounded number of senders, and what was counted of each.

use std::collections::BTreeMap;

/// Senders that are told apart; those that come after them are counted together.
pub const SOURCES_MAX: usize = 32;
/// Bytes of a sender's identity that tell it from others.
const IDENTITY_BYTES_MAX: usize = 64;
/// All senders for which there was no place.
const OTHERS: &str = "(others)";

/// The number of a sender; stands as long as the collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SourceId(u8);

impl SourceId {
    /// Its place in [`CollectorStatus::sources`](super::CollectorStatus::sources).
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What was counted of a sender's messages.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceStatus {
    /// As whom it speaks, or else where it comes from.
    pub name: String,
    /// Questions for names in zones that are served here.
    pub counted: u64,
    /// Questions for other names.
    pub outside: u64,
    /// Messages of types that are not to be counted.
    pub other_types: u64,
    /// Messages that could not be read, or had no question.
    pub unreadable: u64,
    /// Questions whose time is too far from the clock here; counted at the time at which they came.
    pub clock_off: u64,
}

/// All senders since the start.
#[derive(Debug, Default)]
pub(super) struct Sources {
    by_name: BTreeMap<Box<[u8]>, SourceId>,
    all: Vec<SourceStatus>,
}

impl Sources {
    /// The sender of that identity, or, if it has none, from there.
    pub fn find(&mut self, identity: &[u8], peer: &str) -> SourceId {
        let key = if identity.is_empty() { peer.as_bytes() } else { identity };
        let key = key.get(..IDENTITY_BYTES_MAX).unwrap_or(key);
        if let Some(id) = self.by_name.get(key) {
            return *id;
        }
        let is_last = self.all.len() + 1 >= SOURCES_MAX;
        let place = self.all.len().min(SOURCES_MAX - 1);
        if self.all.len() < SOURCES_MAX {
            let name = if is_last { OTHERS.to_owned() } else { key.escape_ascii().to_string() };
            self.all.push(SourceStatus { name, ..SourceStatus::default() });
        }
        let id = SourceId(u8::try_from(place).unwrap_or(u8::MAX));
        if !is_last {
            self.by_name.insert(key.into(), id);
        }
        id
    }

    /// What is counted of it.
    pub fn status(&mut self, id: SourceId) -> Option<&mut SourceStatus> {
        self.all.get_mut(id.index())
    }

    pub fn all(&self) -> &[SourceStatus] {
        &self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senders_are_told_apart_up_to_a_number() {
        let mut sources = Sources::default();
        let first = sources.find(b"ns1.test", "unix");
        assert_eq!(sources.find(b"ns1.test", "192.0.2.1"), first);
        let nameless = sources.find(b"", "192.0.2.1");
        assert_ne!(nameless, first);
        for n in 0..10_000 {
            let id = sources.find(format!("sender \x07 {n}").as_bytes(), "unix");
            sources.status(id).unwrap().counted += 1;
        }
        assert_eq!((sources.all().len(), sources.by_name.len()), (SOURCES_MAX, SOURCES_MAX - 1));
        assert_eq!(sources.all()[2].name, "sender \\x07 0");
        let others = sources.all().last().unwrap();
        assert_eq!((others.name.as_str(), others.counted), ("(others)", 10_000 - 29));
        assert_eq!(sources.find(b"ns1.test", "unix"), first);
    }
}
