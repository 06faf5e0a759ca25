//! As much of protocol buffers' encoding as dnstap needs, without a copy: fields one after another, each with its place.
//!
//! <https://protobuf.dev/programming-guides/encoding/>. Groups, which are deprecated and which no dnstap message has,
//! are refused.

/// Longest number: 64 bits, 7 in each byte.
const VARINT_BYTES_MAX: usize = 10;

/// What is wrong with an encoding, and at which byte of what was decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("byte {at} of the message: {fault}")]
pub struct DecodeError {
    /// Where the field begins.
    pub at: usize,
    /// What is wrong with it.
    pub fault: &'static str,
}

/// One field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field<'b> {
    pub number: u32,
    pub value: Value<'b>,
    /// Where it begins, and where its value does.
    pub at: usize,
    pub value_at: usize,
}

/// The value of a field, by its wire type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'b> {
    Varint(u64),
    Fixed64,
    Bytes(&'b [u8]),
    Fixed32(u32),
}

/// The fields of one message.
#[derive(Debug)]
pub(super) struct Fields<'b> {
    bytes: &'b [u8],
    /// Where `bytes` begin in what is decoded.
    base: usize,
    at: usize,
}

impl<'b> Fields<'b> {
    pub fn new(bytes: &'b [u8], base: usize) -> Self {
        Self { bytes, base, at: 0 }
    }

    fn field(&mut self) -> Result<Field<'b>, DecodeError> {
        let at = self.base + self.at;
        let fail = |fault| DecodeError { at, fault };
        let tag = self.varint().ok_or(fail("a tag is cut or too long"))?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| (1..1 << 29).contains(number));
        let number = number.ok_or(fail("a field number is out of range"))?;
        let mut value_at = self.base + self.at;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint().ok_or(fail("a number is cut or too long"))?),
            1 => self.take(8).map(|_| Value::Fixed64).ok_or(fail("a field is cut"))?,
            2 => {
                let length = self.varint().ok_or(fail("a length is cut or too long"))?;
                value_at = self.base + self.at;
                let bytes = usize::try_from(length).ok().and_then(|length| self.take(length));
                Value::Bytes(bytes.ok_or(fail("a field is longer than what holds it"))?)
            }
            5 => {
                let bytes = self.take(4).and_then(<[u8]>::first_chunk).ok_or(fail("a field is cut"))?;
                Value::Fixed32(u32::from_le_bytes(*bytes))
            }
            _ => return Err(fail("a field has a wire type that is not used")),
        };
        Ok(Field { number, value, at, value_at })
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for (place, &byte) in self.bytes.get(self.at..)?.iter().take(VARINT_BYTES_MAX).enumerate() {
            let bits = u64::from(byte & 0x7f);
            let shift = 7 * u32::try_from(place).ok()?;
            // The last byte has room for one bit.
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                self.at += place + 1;
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'b [u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }
}

impl<'b> Iterator for Fields<'b> {
    type Item = Result<Field<'b>, DecodeError>;

    /// Ends after the first error.
    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.bytes.len();
        }
        Some(field)
    }
}

/// Bytes of the length of a message inside: as many for a short one as for the longest, so that it need not be known before
/// the message is written. Readers take a number that is longer than it would have to be. Enough for 2 MiB.
const INSIDE_LENGTH_BYTES: usize = 3;

/// Fields are written at its end.
pub(super) struct Output<'o>(pub &'o mut Vec<u8>);

impl Output<'_> {
    pub fn varint(&mut self, number: u32, value: u64) {
        self.raw(u64::from(number) << 3);
        self.raw(value);
    }

    pub fn fixed32(&mut self, number: u32, value: u32) {
        self.raw(u64::from(number) << 3 | 5);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub fn bytes(&mut self, number: u32, value: &[u8]) {
        self.raw(u64::from(number) << 3 | 2);
        self.raw(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    /// A message inside, which is shorter than a frame may be.
    pub fn inside(&mut self, number: u32, write: impl FnOnce(&mut Self)) {
        self.raw(u64::from(number) << 3 | 2);
        let start = self.0.len() + INSIDE_LENGTH_BYTES;
        self.0.extend([0; INSIDE_LENGTH_BYTES]);
        write(self);
        let [low, middle, high, ..] = (self.0.len() - start).to_le_bytes();
        let length = u32::from_le_bytes([low, middle, high, 0]);
        let [first, second, third] = [0, 7, 14].map(|shift| (length >> shift).to_le_bytes()[0] & 0x7f);
        if let Some(place) = self.0.get_mut(start - INSIDE_LENGTH_BYTES..start) {
            place.copy_from_slice(&[first | 0x80, second | 0x80, third]);
        }
    }

    #[inline]
    fn raw(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let values = [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX];
        for length in [0, 1, 127, 128, 16_383, 16_384, 65_600] {
            let text = vec![b'x'; length];
            let mut out = b"before".to_vec();
            Output(&mut out).inside(14, |out| {
                values.iter().for_each(|value| out.varint(3, *value));
                out.bytes(536_870_911, &text);
                out.fixed32(1, 0x0102_0304);
            });
            Output(&mut out).varint(1, 7);
            let fields: Vec<_> = Fields::new(&out[6..], 0).map(|field| field.unwrap().value).collect();
            let &[Value::Bytes(inside), Value::Varint(7)] = &fields[..] else { panic!("{fields:?}") };
            let fields: Vec<_> = Fields::new(inside, 0).map(|field| field.unwrap().value).collect();
            let mut expected: Vec<_> = values.map(Value::Varint).to_vec();
            expected.extend([Value::Bytes(&text), Value::Fixed32(0x0102_0304)]);
            assert_eq!(fields, expected);
        }
    }

    #[test]
    fn what_is_malformed_is_named_once_with_its_place() {
        let cases: [(&[u8], usize, &str); 9] = [
            (b"\x08", 0, "a number is cut or too long"),
            (b"\x08\x01\x80", 2, "a tag is cut or too long"),
            (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 0, "a number is cut or too long"),
            (b"\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", 0, "a number is cut or too long"),
            (b"\x0a\x05abcd", 0, "a field is longer than what holds it"),
            (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 0, "a field is longer than what holds it"),
            (b"\x09abcdefg", 0, "a field is cut"),
            (b"\x00\x00", 0, "a field number is out of range"),
            (b"\x08\x00\x0b", 2, "a field has a wire type that is not used"),
        ];
        for (bytes, at, fault) in cases {
            let all: Vec<_> = Fields::new(bytes, 100).collect();
            assert_eq!(all.iter().filter(|field| field.is_err()).count(), 1, "{bytes:?}");
            assert_eq!(*all.last().unwrap(), Err(DecodeError { at: 100 + at, fault }), "{bytes:?}");
        }
    }
}
