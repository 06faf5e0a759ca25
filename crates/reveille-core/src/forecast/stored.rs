//! What is known, as bytes: a letter for the form, the numbers in little-endian order, and a check sum (FNV-1a) of both.

/// Why bytes are not what was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    /// Another form.
    #[error("its form is {0}, which this program does not know: it was stored by another version")]
    Form(u8),
    /// Too few or too many bytes, or a wrong check sum.
    #[error("it is damaged at byte {at} of {of}")]
    At {
        /// Where.
        at: usize,
        /// How many there are.
        of: usize,
    },
}

/// One of the numbers that are stored.
pub(super) trait Number: Copy + Sized {
    fn put(self, out: &mut Vec<u8>);
    fn get(from: &mut Reader<'_>) -> Option<Self>;
}

macro_rules! numbers {
    ($($kind:ty),*) => {$(
        impl Number for $kind {
            fn put(self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }

            fn get(from: &mut Reader<'_>) -> Option<Self> {
                from.take().map(Self::from_le_bytes)
            }
        }
    )*};
}
numbers!(i16, u16, u32, u64, f32, f64);

impl<T: Number, const N: usize> Number for [T; N] {
    fn put(self, out: &mut Vec<u8>) {
        self.into_iter().for_each(|number| number.put(out));
    }

    fn get(from: &mut Reader<'_>) -> Option<Self> {
        let mut numbers = [T::get(from)?; N];
        for number in numbers.iter_mut().skip(1) {
            *number = T::get(from)?;
        }
        Some(numbers)
    }
}

impl<T: Number> Number for Option<T> {
    fn put(self, out: &mut Vec<u8>) {
        u16::from(self.is_some()).put(out);
        if let Some(number) = self {
            number.put(out);
        }
    }

    fn get(from: &mut Reader<'_>) -> Option<Self> {
        match u16::get(from)? {
            0 => Some(None),
            1 => T::get(from).map(Some),
            _ => None,
        }
    }
}

/// Bytes that are read from the front.
pub(super) struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Reader<'b> {
    /// Takes so many bytes.
    pub fn slice(&mut self, length: usize) -> Option<&'b [u8]> {
        let taken = self.bytes.get(self.at..)?.get(..length)?;
        self.at += length;
        Some(taken)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = self.bytes.get(self.at..)?.first_chunk()?;
        self.at += N;
        Some(*taken)
    }
}

/// What `put` puts, as bytes of that form.
pub(super) fn sealed(form: u8, put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![form];
    put(&mut out);
    checksum(&out).put(&mut out);
    out
}

/// What `get` gets of bytes of that form, which it has to read to their end.
pub(super) fn opened<T>(
    form: u8,
    bytes: &[u8],
    get: impl FnOnce(&mut Reader<'_>) -> Option<T>,
) -> Result<T, Damaged> {
    let damaged = |at| Damaged::At { at, of: bytes.len() };
    let (body, sum) = bytes.split_last_chunk::<8>().ok_or(damaged(0))?;
    match body.first() {
        Some(&found) if found == form => {}
        Some(&found) => return Err(Damaged::Form(found)),
        None => return Err(damaged(0)),
    }
    if checksum(body) != u64::from_le_bytes(*sum) {
        return Err(damaged(body.len()));
    }
    let mut reader = Reader { bytes: body, at: 1 };
    match get(&mut reader) {
        Some(value) if reader.at == body.len() => Ok(value),
        Some(_) | None => Err(damaged(reader.at)),
    }
}

pub(super) fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
