//! What is known, as bytes.

use super::host::FORM_WITHOUT_GROUPS;
use super::name::{Asker, Name};
use super::regression::Regression;
use super::{Gaps, Host};
use crate::forecast::stored::{Damaged, Number, Reader, opened, sealed};

/// The form of these bytes. Others are of another version of this program, and are not read.
const FORM: u8 = 1;
/// The form of what names have in common.
const GAPS_FORM: u8 = 2;

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
        sealed(GAPS_FORM, |out| {
            self.host.put(out);
            self.regression.put(out);
        })
    }

    /// From the bytes of [`Gaps::to_bytes`].
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Damaged> {
        let form = if bytes.first() == Some(&FORM_WITHOUT_GROUPS) { FORM_WITHOUT_GROUPS } else { GAPS_FORM };
        opened(form, bytes, |from| {
            Some(Self { host: Host::get(from, form)?, regression: Regression::get(from)? })
        })
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
            gaps.arrived(
                &mut name,
                Arrival { at, client: Some(hour % 3), busy_ms: Some(hour * 7), group: None },
            );
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
    fn what_groups_do_is_kept_and_what_was_stored_before_there_were_groups_is_read() {
        let (mut gaps, mut name) = known();
        let last = name.last_ms();
        let at =
            |ms: u64| Arrival { at: Timestamp::from_ms(ms), client: None, busy_ms: None, group: Some(7) };
        (1..60).for_each(|n| gaps.arrived(&mut name, at(last + n * 2_000)));
        // A name of the group that is as new after the restart.
        let first = |mut gaps: Gaps| {
            let mut new = Name::default();
            gaps.arrived(&mut new, at(last + 200_000));
            gaps.hazard(&new, 5)
        };
        let again = Gaps::from_bytes(&gaps.to_bytes()).unwrap();
        assert_eq!(first(again), first(gaps.clone()));
        let old = sealed(1, |out| {
            let mut host = Vec::new();
            Host::default().put(&mut host);
            out.extend(&host[..host.len() - 2]);
            Regression::default().put(out);
        });
        assert_ne!(first(gaps), first(Gaps::from_bytes(&old).unwrap()));
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
