//! What is known, as bytes.

use super::name::{Asker, Name};
use super::regression::Regression;
use super::{Gaps, Host};
use crate::forecast::stored::{Damaged, Number, Reader, opened, sealed};

/// The form of these bytes. Others are of another version of this program, and are not read.
const FORM: u8 = 1;

impl Name {
    /// As bytes, fewer than 400.
    pub fn to_bytes(&self) -> Vec<u8> {
        sealed(FORM, |out| self.put(out))
    }

    /// From the bytes of [`Name::to_bytes`].
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Damaged> {
        opened(FORM, bytes, Self::get)
    }
}

impl Gaps {
    /// As bytes, some 200 kB at most. Who asked of late is not in them.
    pub fn to_bytes(&self) -> Vec<u8> {
        sealed(FORM, |out| {
            self.host.put(out);
            self.regression.put(out);
        })
    }

    /// From the bytes of [`Gaps::to_bytes`].
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Damaged> {
        opened(FORM, bytes, |from| Some(Self { host: Host::get(from)?, regression: Regression::get(from)? }))
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
