//! Names as keys of sorted maps: labels from the root down, so that a name's ancestors are prefixes of its key.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use crate::model::{DomainName, NameError};

/// Longest name in wire format (RFC 1035 §2.3.4).
const NAME_BYTES_MAX: usize = 255;
/// Most labels of a name, the root label not counted: each takes at least two bytes.
const LABELS_MAX: usize = 127;

/// A name as a key: each label with its length octet, lower case, the one next to the root first, no root label.
///
/// The names at or below a name are exactly those whose keys begin with its key, and they stand together in a
/// sorted map. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameKey(Arc<[u8]>);

impl Borrow<[u8]> for NameKey {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for NameKey {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<&DomainName> for NameKey {
    fn from(name: &DomainName) -> Self {
        let labels: Vec<&[u8]> = name.labels().collect();
        let mut key = Vec::with_capacity(name.as_wire().len());
        for label in labels.into_iter().rev() {
            key.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
            key.extend_from_slice(label);
        }
        Self(key.into())
    }
}

impl fmt::Debug for NameKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// The name of a question: as it was written, and as a key. Lives on the stack.
#[derive(Clone)]
pub struct QuestionName {
    wire: [u8; NAME_BYTES_MAX],
    wire_len: u8,
    key: [u8; NAME_BYTES_MAX],
    /// `ends[d]` is the length of the key of the ancestor with `d` labels.
    ends: [u8; LABELS_MAX + 1],
    labels: u8,
}

impl QuestionName {
    /// Takes an uncompressed name in wire format; letters may be of either case.
    ///
    /// # Errors
    /// [`NameError::BadWire`] if the bytes are not exactly one name.
    pub fn from_wire(wire: &[u8]) -> Result<Self, NameError> {
        let mut name = Self {
            wire: [0; NAME_BYTES_MAX],
            wire_len: u8::try_from(wire.len()).map_err(|_| NameError::BadWire)?,
            key: [0; NAME_BYTES_MAX],
            ends: [0; LABELS_MAX + 1],
            labels: 0,
        };
        name.wire.get_mut(..wire.len()).ok_or(NameError::BadWire)?.copy_from_slice(wire);
        let mut starts = [0u8; LABELS_MAX];
        let mut labels = 0;
        let mut at = 0;
        loop {
            let length = usize::from(*wire.get(at).ok_or(NameError::BadWire)?);
            if length == 0 {
                break;
            }
            // 64 and more are compression pointers and reserved label types.
            if length >= 64 {
                return Err(NameError::BadWire);
            }
            *starts.get_mut(labels).ok_or(NameError::BadWire)? =
                u8::try_from(at).map_err(|_| NameError::BadWire)?;
            labels += 1;
            at += 1 + length;
        }
        if at + 1 != wire.len() {
            return Err(NameError::BadWire);
        }
        let mut end = 0;
        let mut label_end = at;
        for (depth, &start) in starts[..labels].iter().rev().enumerate() {
            let label = &wire[usize::from(start)..label_end];
            let target = &mut name.key[end..end + label.len()];
            target.copy_from_slice(label);
            // Length octets are below b'A', so lower-casing leaves them alone.
            target.make_ascii_lowercase();
            end += label.len();
            label_end = usize::from(start);
            name.ends[depth + 1] = u8::try_from(end).map_err(|_| NameError::BadWire)?;
        }
        name.labels = u8::try_from(labels).map_err(|_| NameError::BadWire)?;
        Ok(name)
    }

    /// The name as it was written, in wire format with the root label.
    pub fn as_wire(&self) -> &[u8] {
        &self.wire[..usize::from(self.wire_len)]
    }

    /// How many labels it has, the root label not counted.
    pub fn label_count(&self) -> usize {
        usize::from(self.labels)
    }

    /// The name's key.
    pub fn key(&self) -> &[u8] {
        self.ancestor_key(self.label_count())
    }

    /// The key of the ancestor with `labels` labels; of the name itself if it has not that many.
    pub fn ancestor_key(&self, labels: usize) -> &[u8] {
        &self.key[..usize::from(self.ends[labels.min(self.label_count())])]
    }

    /// The ancestor with `labels` labels as it was written, in wire format; the name itself if it has not that many.
    pub fn ancestor_wire(&self, labels: usize) -> &[u8] {
        let length = self.ancestor_key(labels).len() + 1;
        let wire = self.as_wire();
        wire.get(wire.len().saturating_sub(length)..).unwrap_or_default()
    }

    /// `*` below the ancestor with `labels` labels; `None` if that would be too long.
    pub fn wildcard_below(&self, labels: usize) -> Option<Self> {
        let ancestor = self.ancestor_wire(labels);
        let mut wire = [0; NAME_BYTES_MAX];
        wire.get_mut(..2)?.copy_from_slice(b"\x01*");
        wire.get_mut(2..2 + ancestor.len())?.copy_from_slice(ancestor);
        Self::from_wire(wire.get(..2 + ancestor.len())?).ok()
    }

    /// The leftmost label, lower case, without its length octet; empty for the root.
    pub fn first_label(&self) -> &[u8] {
        match self.label_count() {
            0 => &[],
            labels => &self.key()[usize::from(self.ends[labels - 1]) + 1..],
        }
    }
}

impl From<&DomainName> for QuestionName {
    fn from(name: &DomainName) -> Self {
        // A `DomainName` is always exactly one name, so the fallback is never taken.
        Self::from_wire(name.as_wire()).unwrap_or(Self {
            wire: [0; NAME_BYTES_MAX],
            wire_len: 1,
            key: [0; NAME_BYTES_MAX],
            ends: [0; LABELS_MAX + 1],
            labels: 0,
        })
    }
}

impl fmt::Debug for QuestionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_wire().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ancestors_are_prefixes() {
        let name = QuestionName::from_wire(b"\x05Hello\x02VM\x04test\x00").unwrap();
        assert_eq!(name.key(), b"\x04test\x02vm\x05hello");
        assert_eq!(name.ancestor_key(2), b"\x04test\x02vm");
        assert_eq!(name.ancestor_key(0), b"");
        assert_eq!(name.first_label(), b"hello");
        assert_eq!(name.ancestor_wire(2), b"\x02VM\x04test\x00");
        assert_eq!(name.ancestor_wire(0), b"\x00");
        assert_eq!(name.as_wire(), b"\x05Hello\x02VM\x04test\x00");
        let key = NameKey::from(&"hello.vm.test".parse::<DomainName>().unwrap());
        assert_eq!(key.as_ref(), name.key());
    }

    #[test]
    fn the_longest_name_fits_and_a_longer_one_does_not() {
        let mut wire = b"\x01a".repeat(127);
        wire.push(0);
        let name = QuestionName::from_wire(&wire).unwrap();
        assert_eq!((wire.len(), name.label_count(), name.key().len()), (255, 127, 254));
        let mut wire = b"\x01a".repeat(128);
        wire.push(0);
        assert_eq!(QuestionName::from_wire(&wire).unwrap_err(), NameError::BadWire);
        for wire in [&b""[..], b"\x01", b"\x01a", b"\xc0\x0c", b"\x01a\x00\x00", b"\x41a\x00"] {
            assert_eq!(QuestionName::from_wire(wire).unwrap_err(), NameError::BadWire);
        }
    }
}
