//! Name compression (RFC 1035 §4.1.4) while a message is written.
//!
//! The `domain` crate's compressor that needs no memory beside the message knows 24 places, in the order in which
//! they come: one question of 24 labels, and nothing behind it is compressed any more. This one keeps the places
//! that are worth most: whole names, and what lies next to the root.

use domain::base::name::ToName;
use domain::base::wire::Composer;
use domain::dep::octseq::{OctetsBuilder, Truncate};

/// Most places that are known at a time.
const PLACES_MAX: usize = 96;
/// Most places that one name adds.
const PLACES_PER_NAME_MAX: usize = 8;
/// Pointers reach this far.
const POINTER_END: usize = 0x4000;
/// Most labels of a name, the root label not counted.
const LABELS_MAX: usize = 127;
/// Longest name.
const NAME_BYTES_MAX: usize = 255;

/// A name, or the end of one, in the message.
#[derive(Clone, Copy, Default)]
struct Place {
    /// Of its labels, without case; equal names have equal hashes.
    hash: u32,
    at: u16,
}

/// A message that is being written, with the names in it.
pub(super) struct Compressor<'o> {
    message: &'o mut Vec<u8>,
    places: [Place; PLACES_MAX],
    known: usize,
}

impl<'o> Compressor<'o> {
    /// Begins with an empty message.
    pub fn new(message: &'o mut Vec<u8>) -> Self {
        Self { message, places: [Place::default(); PLACES_MAX], known: 0 }
    }

    /// How many bytes the name would take now.
    pub fn bytes_of(&self, name: &(impl ToName + ?Sized)) -> usize {
        let Some(name) = Labels::of(name) else { return NAME_BYTES_MAX };
        match self.find_end(&name) {
            Some((label, _)) => name.start(label) + 2,
            None => name.bytes,
        }
    }

    /// The longest end of the name that is in the message, and where.
    fn find_end(&self, name: &Labels) -> Option<(usize, u16)> {
        (0..name.count).find_map(|label| Some((label, self.find(name.from(label), name.hash(label))?)))
    }

    /// Where the labels `wanted`, in wire format with the root label, stand in the message.
    fn find(&self, wanted: &[u8], hash: u32) -> Option<u16> {
        let places = self.places.get(..self.known)?;
        places
            .iter()
            .find(|place| place.hash == hash && self.stands_at(place.at, wanted))
            .map(|place| place.at)
    }

    /// Whether the name at `at` is `wanted`, whatever the case.
    fn stands_at(&self, at: u16, mut wanted: &[u8]) -> bool {
        let mut at = usize::from(at);
        while let Some((&length, rest)) = wanted.split_first() {
            let Some(found) = self.message.get(at..) else { return false };
            match *found {
                [high, low, ..] if high >= 0xc0 => at = usize::from(high & 0x3f) << 8 | usize::from(low),
                [own, ..] if own == length => {
                    let end = 1 + usize::from(length);
                    let (Some(found), Some(wanted_label)) = (found.get(1..end), wanted.get(1..end)) else {
                        return false;
                    };
                    if !found.eq_ignore_ascii_case(wanted_label) {
                        return false;
                    }
                    at += end;
                    wanted = rest.get(usize::from(length)..).unwrap_or_default();
                }
                _ => return false,
            }
        }
        true
    }

    fn remember(&mut self, hash: u32, at: usize) {
        if let (Some(place), Ok(at)) = (self.places.get_mut(self.known), u16::try_from(at)) {
            *place = Place { hash, at };
            self.known += 1;
        }
    }

    /// Appends the name, as its own labels and a pointer to what is there already.
    fn append_name(&mut self, name: &Labels) {
        let (own, pointer) = self.find_end(name).map_or((name.count, None), |(label, at)| (label, Some(at)));
        let start = self.message.len();
        let own_bytes = name.start(own);
        self.message.extend_from_slice(name.wire.get(..own_bytes).unwrap_or_default());
        match pointer {
            Some(at) => self.message.extend_from_slice(&(0xc000 | at).to_be_bytes()),
            None => self.message.push(0),
        }
        // The whole name first, then from the root.
        let new = (0..own.min(1)).chain((1..own).rev()).take(PLACES_PER_NAME_MAX);
        for label in new {
            let at = start + name.start(label);
            if at < POINTER_END {
                self.remember(name.hash(label), at);
            }
        }
    }
}

/// A name taken apart: its bytes, and for each label where it begins and what hash the name has from there.
struct Labels {
    wire: [u8; NAME_BYTES_MAX],
    starts: [u8; LABELS_MAX + 1],
    hashes: [u32; LABELS_MAX + 1],
    /// Without the root label.
    count: usize,
    bytes: usize,
}

impl Labels {
    /// `None` if it is no name; there are none such here.
    fn of(name: &(impl ToName + ?Sized)) -> Option<Self> {
        let mut labels = Self {
            wire: [0; NAME_BYTES_MAX],
            starts: [0; LABELS_MAX + 1],
            hashes: [0; LABELS_MAX + 1],
            count: 0,
            bytes: 0,
        };
        for label in name.iter_labels() {
            *labels.starts.get_mut(labels.count)? = u8::try_from(labels.bytes).ok()?;
            *labels.wire.get_mut(labels.bytes)? = u8::try_from(label.len()).ok()?;
            labels.bytes += 1;
            if label.is_root() {
                break;
            }
            let end = labels.bytes + label.len();
            labels.wire.get_mut(labels.bytes..end)?.copy_from_slice(label.as_slice());
            labels.bytes = end;
            labels.count += 1;
        }
        let mut hash = FNV_BASIS;
        for label in (0..labels.count).rev() {
            let own = labels.wire.get(labels.start(label)..labels.start(label + 1))?;
            hash = own.iter().fold(hash, |hash, byte| {
                (hash ^ u32::from(byte.to_ascii_lowercase())).wrapping_mul(FNV_PRIME)
            });
            *labels.hashes.get_mut(label)? = hash;
        }
        Some(labels)
    }

    fn start(&self, label: usize) -> usize {
        self.starts.get(label).copied().unwrap_or_default().into()
    }

    fn hash(&self, label: usize) -> u32 {
        self.hashes.get(label).copied().unwrap_or_default()
    }

    fn from(&self, label: usize) -> &[u8] {
        self.wire.get(self.start(label)..self.bytes).unwrap_or_default()
    }
}

/// FNV-1a. Names that are made to have equal hashes only make the search compare them.
const FNV_BASIS: u32 = 0x811c_9dc5;
const FNV_PRIME: u32 = 0x0100_0193;

impl AsRef<[u8]> for Compressor<'_> {
    fn as_ref(&self) -> &[u8] {
        self.message
    }
}

impl AsMut<[u8]> for Compressor<'_> {
    fn as_mut(&mut self) -> &mut [u8] {
        self.message
    }
}

impl OctetsBuilder for Compressor<'_> {
    type AppendError = std::convert::Infallible;

    fn append_slice(&mut self, slice: &[u8]) -> Result<(), Self::AppendError> {
        self.message.extend_from_slice(slice);
        Ok(())
    }
}

impl Truncate for Compressor<'_> {
    fn truncate(&mut self, length: usize) {
        self.message.truncate(length);
        let mut kept = 0;
        for index in 0..self.known {
            let Some(&place) = self.places.get(index) else { break };
            if usize::from(place.at) < length
                && let Some(slot) = self.places.get_mut(kept)
            {
                *slot = place;
                kept += 1;
            }
        }
        self.known = kept;
    }
}

impl Composer for Compressor<'_> {
    fn append_compressed_name<N: ToName + ?Sized>(&mut self, name: &N) -> Result<(), Self::AppendError> {
        match Labels::of(name) {
            Some(labels) => self.append_name(&labels),
            None => name.compose(self)?,
        }
        Ok(())
    }

    fn can_compress(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use domain::base::name::Name;

    use super::*;

    fn name(text: &str) -> Name<Vec<u8>> {
        text.parse().unwrap()
    }

    fn written(names: &[&str]) -> Vec<u8> {
        let mut message = vec![0; 12];
        let mut compressor = Compressor::new(&mut message);
        for text in names {
            let Ok(()) = compressor.append_compressed_name(&name(text));
        }
        message.split_off(12)
    }

    #[test]
    fn what_is_there_is_pointed_to() {
        assert_eq!(
            written(&["www.vm.test.", "WWW.vm.TEST.", "mail.VM.test.", "test.", ".", "a.mail.vm.test."]),
            b"\x03www\x02vm\x04test\x00\xc0\x0c\x04mail\xc0\x10\xc0\x13\x00\x01a\xc0\x1b"
        );
        // Not in the middle of a label, and not what is only alike.
        assert_eq!(written(&["aa.b.", "a.b.", "b.a."]), b"\x02aa\x01b\x00\x01a\xc0\x0f\x01b\x01a\x00");
    }

    #[test]
    fn a_name_of_many_labels_leaves_room_for_others() {
        let deep = format!("{}vm.test.", "x.".repeat(100));
        let message = written(&[&deep, &deep, "ns1.vm.test.", "ns1.vm.test."]);
        // Whole names and what lies next to the root are known.
        assert_eq!(message[209..], *b"\xc0\x0c\x03ns1\xc0\xd4\xc0\xdf");
    }

    #[test]
    fn what_was_cut_off_is_forgotten() {
        let mut message = vec![0; 12];
        let mut compressor = Compressor::new(&mut message);
        let Ok(()) = compressor.append_compressed_name(&name("vm.test."));
        let Ok(()) = compressor.append_compressed_name(&name("a.vm.test."));
        compressor.truncate(21);
        let Ok(()) = compressor.append_compressed_name(&name("b.a.vm.test."));
        assert_eq!(message[12..], *b"\x02vm\x04test\x00\x01b\x01a\xc0\x0c");
    }

    #[test]
    fn nothing_is_pointed_to_that_a_pointer_cannot_reach() {
        let mut message = vec![0; POINTER_END];
        let mut compressor = Compressor::new(&mut message);
        for _ in 0..2 {
            let Ok(()) = compressor.append_compressed_name(&name("vm.test."));
        }
        assert_eq!(message[POINTER_END..], *b"\x02vm\x04test\x00\x02vm\x04test\x00");
    }
}
