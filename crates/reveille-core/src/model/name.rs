//! Domain names in the form in which they are compared: lower case, uncompressed wire format.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest name in wire format, root label included (RFC 1035 §2.3.4).
const NAME_BYTES_MAX: usize = 255;
/// Longest label (RFC 1035 §2.3.4).
const LABEL_BYTES_MAX: usize = 63;

/// A fully qualified domain name, lower-cased (RFC 4343), in uncompressed wire format with the root label.
///
/// Orders canonically (RFC 4034 §6.1), so that all names below a name follow it directly in a sorted map.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct DomainName(Wire);

/// Longest name that lies in place, in wire format.
const IN_PLACE_BYTES_MAX: usize = 22;

/// The bytes of a name. A service's name stands in many places: a short one takes no allocation of its own there, and
/// a long one is there once.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Wire {
    /// What follows the name is zero.
    InPlace { length: u8, bytes: [u8; IN_PLACE_BYTES_MAX] },
    /// Only longer ones.
    Shared(Arc<[u8]>),
}

impl Wire {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::InPlace { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Self::Shared(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for Wire {
    fn from(wire: &[u8]) -> Self {
        let mut bytes = [0; IN_PLACE_BYTES_MAX];
        match (bytes.get_mut(..wire.len()), u8::try_from(wire.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(wire);
                Self::InPlace { length, bytes }
            }
            (Some(_) | None, _) => Self::Shared(wire.into()),
        }
    }
}

/// Why a text or a byte string is no domain name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or two dots in a row.
    #[error("`{0}` has an empty label; write a name such as hello.vm.test")]
    EmptyLabel(String),
    /// A label of more than 63 bytes.
    #[error("a label of `{0}` is longer than 63 bytes")]
    LabelTooLong(String),
    /// More than 255 bytes in all.
    #[error("`{0}` is longer than 255 bytes")]
    TooLong(String),
    /// A byte that a host name may not have; only letters, digits, `-`, `_` and a leading `*` label are taken.
    #[error("`{name}` has the character {character:?}; only letters, digits, `-` and `_` are allowed")]
    BadCharacter {
        /// The text that was given.
        name: String,
        /// The first character that is not allowed.
        character: char,
    },
    /// Wire bytes that end early or hold a compression pointer.
    #[error("not an uncompressed name in wire format")]
    BadWire,
}

impl DomainName {
    /// The root.
    pub fn root() -> Self {
        Self(Wire::from(&[0][..]))
    }

    /// Takes an uncompressed name in wire format, lower-casing ASCII letters.
    ///
    /// # Errors
    /// [`NameError::BadWire`] if the bytes are not exactly one name.
    pub fn from_wire(wire: &[u8]) -> Result<Self, NameError> {
        if wire.len() > NAME_BYTES_MAX {
            return Err(NameError::BadWire);
        }
        let mut at = 0;
        loop {
            let length = usize::from(*wire.get(at).ok_or(NameError::BadWire)?);
            if length == 0 {
                break;
            }
            if length > LABEL_BYTES_MAX {
                return Err(NameError::BadWire);
            }
            at += 1 + length;
        }
        if at + 1 != wire.len() {
            return Err(NameError::BadWire);
        }
        // Length octets are at most 63 and so below b'A': lower-casing the whole string leaves them alone.
        Ok(Self(Wire::from(&*wire.to_ascii_lowercase())))
    }

    /// The name in wire format, lower case, with the root label.
    pub fn as_wire(&self) -> &[u8] {
        self.0.bytes()
    }

    /// The labels, leftmost first, without the root label.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest: &[u8] = self.as_wire();
        std::iter::from_fn(move || {
            let (&length, tail) = rest.split_first()?;
            if length == 0 {
                return None;
            }
            let (label, after) = tail.split_at(usize::from(length));
            rest = after;
            Some(label)
        })
    }

    /// How many labels the name has, the root label not counted.
    pub fn label_count(&self) -> usize {
        self.labels().count()
    }

    /// The name without its leftmost label; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        let wire = self.as_wire();
        let length = usize::from(*wire.first()?);
        if length == 0 {
            return None;
        }
        Some(Self(Wire::from(wire.get(1 + length..)?)))
    }

    /// Whether this name is `other` or below it.
    pub fn is_at_or_below(&self, other: &Self) -> bool {
        let (mine, theirs) = (self.label_count(), other.label_count());
        mine >= theirs && self.labels().skip(mine - theirs).eq(other.labels())
    }

    /// `label.self`.
    ///
    /// # Errors
    /// As of parsing the text `label.self`.
    pub fn prepend(&self, label: &str) -> Result<Self, NameError> {
        format!("{label}.{self}").parse()
    }

    /// The leftmost label as text; `None` for the root.
    pub fn first_label(&self) -> Option<String> {
        self.labels().next().map(|label| String::from_utf8_lossy(label).into_owned())
    }
}

impl FromStr for DomainName {
    type Err = NameError;

    /// Reads `hello.vm.test`, with or without the final dot; relative names do not exist here.
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text == "." {
            return Ok(Self::root());
        }
        let body = text.strip_suffix('.').unwrap_or(text);
        let mut wire = Vec::with_capacity(body.len() + 2);
        for (index, label) in body.split('.').enumerate() {
            if label.is_empty() {
                return Err(NameError::EmptyLabel(text.to_owned()));
            }
            let wildcard = index == 0 && label == "*";
            let bad = label.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_')));
            if let (Some(character), false) = (bad, wildcard) {
                return Err(NameError::BadCharacter { name: text.to_owned(), character });
            }
            let length = u8::try_from(label.len()).unwrap_or(u8::MAX);
            if usize::from(length) > LABEL_BYTES_MAX {
                return Err(NameError::LabelTooLong(text.to_owned()));
            }
            wire.push(length);
            wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
        }
        wire.push(0);
        if wire.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong(text.to_owned()));
        }
        Ok(Self(Wire::from(&*wire)))
    }
}

impl fmt::Display for DomainName {
    /// Without the final dot; bytes that are not printable as in RFC 1035 §5.1 (`\DDD`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut any = false;
        for label in self.labels() {
            if any {
                f.write_str(".")?;
            }
            any = true;
            for &byte in label {
                match byte {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(byte))?,
                    0x21..=0x7e => write!(f, "{}", char::from(byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
        }
        if any { Ok(()) } else { f.write_str(".") }
    }
}

impl fmt::Debug for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Ord for DomainName {
    fn cmp(&self, other: &Self) -> Ordering {
        let mine: Vec<&[u8]> = self.labels().collect();
        let theirs: Vec<&[u8]> = other.labels().collect();
        mine.iter().rev().cmp(theirs.iter().rev())
    }
}

impl PartialOrd for DomainName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Serialize for DomainName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DomainName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DomainName {
        text.parse().unwrap()
    }

    #[test]
    fn case_and_final_dot_do_not_matter() {
        assert_eq!(name("Hello.VM.test."), name("hello.vm.TEST"));
        assert_eq!(name("hello.vm.test").as_wire(), b"\x05hello\x02vm\x04test\x00");
        assert_eq!(DomainName::from_wire(b"\x05HELLO\x02vm\x04test\x00").unwrap(), name("hello.vm.test"));
    }

    #[test]
    fn names_of_every_length_are_themselves() {
        for length in 1..=60 {
            let text = "x".repeat(length);
            let one = name(&text);
            assert_eq!((one.to_string(), one.as_wire().len()), (text.clone(), length + 2));
            assert_eq!(DomainName::from_wire(one.as_wire()).unwrap(), one);
            assert_eq!(name(&format!("a.{text}")).parent(), Some(one.clone()));
            assert_ne!(one, name(&"x".repeat(length + 1)));
        }
        assert_eq!(size_of::<DomainName>(), 24);
    }

    #[test]
    fn canonical_order_keeps_a_subtree_together() {
        let mut names = ["z.a.test", "b.test", "a.test", "a.a.test", "test", "ab.test"].map(name);
        names.sort();
        assert_eq!(names, ["test", "a.test", "a.a.test", "z.a.test", "ab.test", "b.test"].map(name));
    }

    #[test]
    fn a_suffix_of_a_label_is_not_a_parent() {
        assert!(name("hello.vm.test").is_at_or_below(&name("vm.test")));
        assert!(!name("hellovm.test").is_at_or_below(&name("vm.test")));
        assert_eq!(name("vm.test").parent(), Some(name("test")));
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_place() {
        assert!(matches!("a..b".parse::<DomainName>(), Err(NameError::EmptyLabel(_))));
        assert!(matches!("a b".parse::<DomainName>(), Err(NameError::BadCharacter { character: ' ', .. })));
        assert!(matches!("x".repeat(64).parse::<DomainName>(), Err(NameError::LabelTooLong(_))));
        assert!(matches!(["a"; 200].join(".").parse::<DomainName>(), Err(NameError::TooLong(_))));
        for wire in [&b""[..], b"\x01", b"\x01a", b"\xc0\x0c", b"\x01a\x00\x00"] {
            assert_eq!(DomainName::from_wire(wire), Err(NameError::BadWire));
        }
    }
}
