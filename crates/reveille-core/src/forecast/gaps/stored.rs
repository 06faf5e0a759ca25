//! What is known, as bytes: a letter for the form, the numbers in little-endian order, and a check sum (FNV-1a) of both.

use super::name::{Asker, Name};
use super::regression::Regression;
use super::{Gaps, Host};

/// The form of these bytes. Others are of another version of this program, and are not read.
const FORM: u8 = 1;

/// Why bytes are not what was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    /// Another form.
    #[error("its form is {0}, this program knows {FORM}: it was stored by another version")]
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
numbers!(u16, u32, u64, f32, f64);

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

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = self.bytes.get(self.at..)?.first_chunk()?;
        self.at += N;
        Some(*taken)
    }
}

fn sealed(put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![FORM];
    put(&mut out);
    checksum(&out).put(&mut out);
    out
}

fn opened<T>(bytes: &[u8], get: impl FnOnce(&mut Reader<'_>) -> Option<T>) -> Result<T, Damaged> {
    let damaged = |at| Damaged::At { at, of: bytes.len() };
    let (body, sum) = bytes.split_last_chunk::<8>().ok_or(damaged(0))?;
    match body.first() {
        Some(&FORM) => {}
        Some(&form) => return Err(Damaged::Form(form)),
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

fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Name {
    /// As bytes, fewer than 400.
    pub fn to_bytes(&self) -> Vec<u8> {
        sealed(|out| self.put(out))
    }

    /// From the bytes of [`Name::to_bytes`].
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Damaged> {
        opened(bytes, Self::get)
    }
}

impl Gaps {
    /// As bytes, some 200 kB at most. Who asked of late is not in them.
    pub fn to_bytes(&self) -> Vec<u8> {
        sealed(|out| {
            self.host.put(out);
            self.regression.put(out);
        })
    }

    /// From the bytes of [`Gaps::to_bytes`].
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Damaged> {
        opened(bytes, |from| Some(Self { host: Host::get(from)?, regression: Regression::get(from)? }))
    }
}

impl Number for Asker {
    fn put(self, out: &mut Vec<u8>) {
        self.id.put(out);
        [self.log_count, self.log_gap, self.log_last].put(out);
    }

    fn get(from: &mut Reader<'_>) -> Option<Self> {
        let id = u64::get(from)?;
        let [log_count, log_gap, log_last] = <[f32; 3]>::get(from)?;
        Some(Self { id, log_count, log_gap, log_last })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Arrival, PIECES};
    use super::*;
    use crate::model::Timestamp;

    fn known() -> (Gaps, Name) {
        let (mut gaps, mut name) = (Gaps::default(), Name::default());
        for hour in 0..50 {
            let at = Timestamp::from_ms(1_700_000_000_000 + hour * 3_600_000 + hour * hour * 999);
            gaps.arrived(&mut name, Arrival { at, client: Some(hour % 3), busy_ms: Some(hour * 7) });
        }
        (gaps, name)
    }

    #[test]
    fn what_is_known_is_the_same_after_it_was_stored() {
        let (gaps, name) = known();
        let now = Timestamp::from_ms(name.last_ms() + 1_000);
        let again =
            (Gaps::from_bytes(&gaps.to_bytes()).unwrap(), Name::from_bytes(&name.to_bytes()).unwrap());
        assert!(!again.0.hazards(&again.1, now, PIECES).is_empty());
        assert_eq!(again.0.hazards(&again.1, now, PIECES), gaps.hazards(&name, now, PIECES));
        assert!(name.to_bytes().len() < 400 && gaps.to_bytes().len() < 200_000, "{}", gaps.to_bytes().len());
        let new = Name::default();
        assert_eq!(Name::from_bytes(&new.to_bytes()).unwrap().to_bytes(), new.to_bytes());
    }

    #[test]
    fn damaged_bytes_are_refused_wherever_they_are() {
        let bytes = known().1.to_bytes();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            assert!(Name::from_bytes(&flipped).is_err(), "{at}");
            assert!(Name::from_bytes(&bytes[..at]).is_err(), "{at}");
        }
        let mut other = bytes.clone();
        other[0] = 9;
        assert_eq!(Name::from_bytes(&other).unwrap_err(), Damaged::Form(9));
        assert!(Gaps::from_bytes(&bytes).is_err());
        assert!(Gaps::from_bytes(&[]).is_err());
    }
}
