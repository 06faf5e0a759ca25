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

/// Where fields are written, or only measured: the length of a message stands before it.
pub(super) trait Sink {
    fn put(&mut self, bytes: &[u8]);

    fn varint(&mut self, number: u32, value: u64) {
        self.raw(u64::from(number) << 3);
        self.raw(value);
    }

    fn fixed32(&mut self, number: u32, value: u32) {
        self.raw(u64::from(number) << 3 | 5);
        self.put(&value.to_le_bytes());
    }

    fn bytes(&mut self, number: u32, value: &[u8]) {
        self.header(number, value.len());
        self.put(value);
    }

    /// What stands before a field of that length.
    fn header(&mut self, number: u32, length: usize) {
        self.raw(u64::from(number) << 3 | 2);
        self.raw(length as u64);
    }

    fn raw(&mut self, mut value: u64) {
        loop {
            let [byte, ..] = value.to_le_bytes();
            value >>= 7;
            if value == 0 {
                return self.put(&[byte & 0x7f]);
            }
            self.put(&[byte | 0x80]);
        }
    }
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// How many bytes are written.
#[derive(Debug, Default)]
pub(super) struct Length(pub usize);

impl Sink for Length {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_measured() {
        let mut out = Vec::new();
        let values = [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX];
        let mut length = Length::default();
        for sink in [&mut out as &mut dyn Sink, &mut length] {
            values.iter().for_each(|value| sink.varint(3, *value));
            sink.bytes(536_870_911, b"text");
            sink.fixed32(1, 0x0102_0304);
        }
        assert_eq!(length.0, out.len());
        let fields: Vec<_> = Fields::new(&out, 0).map(|field| field.unwrap().value).collect();
        let mut expected: Vec<_> = values.map(Value::Varint).to_vec();
        expected.extend([Value::Bytes(b"text"), Value::Fixed32(0x0102_0304)]);
        assert_eq!(fields, expected);
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
