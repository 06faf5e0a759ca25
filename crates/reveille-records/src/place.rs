//! What files are called, and where they lie below `records/`.
//!
//! ```text
//! kind=query/date=2026-11-23/20261123T070000Z-0123456789abcdef-000001.parquet
//!      what       of when       written when    of which run    which of it
//! ```

use reveille_core::model::Timestamp;

const DAY_MS: u64 = 86_400_000;
const END: &str = ".parquet";

/// What rows tell of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Questions.
    Query,
    /// Requests that logs tell of.
    Request,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Query, Self::Request];

    /// As it is in paths.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Request => "request",
        }
    }

    /// Where its files lie.
    pub(crate) fn shelf(self) -> String {
        format!("kind={}", self.word())
    }
}

/// The date at `at`, by UTC: `2026-11-23`. Dates are in the order of their texts, up to the year 9999.
#[must_use]
pub fn day_of(at: Timestamp) -> String {
    let mut text = at.utc();
    text.truncate(text.find('T').unwrap_or(text.len()));
    text
}

/// The first date that is still kept.
pub(crate) fn first_kept(now: Timestamp, keep_days: u64) -> String {
    day_of(Timestamp::from_ms(now.as_ms().saturating_sub(keep_days.saturating_mul(DAY_MS))))
}

/// The path of a file of rows of `day`, which nobody has used before: the `number`th of the run.
pub(crate) fn path(kind: Kind, day: &str, now: Timestamp, run: u64, number: u64) -> String {
    let written: String = now.utc().chars().filter(|c| !matches!(c, '-' | ':')).collect();
    format!("{}/date={day}/{written}-{run:016x}-{number:06}{END}", kind.shelf())
}

/// The date of a directory; `None` if it is none of ours.
pub(crate) fn day_of_directory(name: &str) -> Option<&str> {
    let day = name.strip_prefix("date=")?;
    has_shape(day, "0000-00-00").then_some(day)
}

/// Whether it is the name of a file of ours.
pub(crate) fn is_own(name: &str) -> bool {
    let Some((written, rest)) = name.strip_suffix(END).and_then(|name| name.split_once('-')) else {
        return false;
    };
    let Some((run, number)) = rest.split_once('-') else { return false };
    let is_run = run.len() == 16 && run.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_number = (6..=20).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    has_shape(written, "00000000T000000Z") && is_run && is_number
}

/// Whether it has digits where the shape has zeros, and the same as the shape elsewhere.
fn has_shape(text: &str, shape: &str) -> bool {
    let fits = |(byte, shape): (u8, u8)| if shape == b'0' { byte.is_ascii_digit() } else { byte == shape };
    text.len() == shape.len() && text.bytes().zip(shape.bytes()).all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_again_and_others_are_not() {
        // 2026-11-23T06:50:47Z.
        let now = Timestamp::from_ms(1_795_416_647_000);
        let path = path(Kind::Query, "2026-11-22", now, 0xabc, 7);
        assert_eq!(path, "kind=query/date=2026-11-22/20261123T065047Z-0000000000000abc-000007.parquet");
        let (directory, name) = path.strip_prefix("kind=query/").unwrap().split_once('/').unwrap();
        assert_eq!((day_of_directory(directory), is_own(name)), (Some("2026-11-22"), true));
        assert!(is_own("20261123T065047Z-0000000000000abc-1234567.parquet"));
        for other in [
            "part-0.parquet",
            "20261123T065047Z-0000000000000abc-000007.parquet#1",
            "20261123T065047Z-0000000000000ABC-000007.parquet",
            "20261123T065047-0000000000000abc-000007.parquet",
            "20261123T065047Z-0000000000000abc-7.parquet",
            "20261123T065047Z-000007.parquet",
            ".parquet",
        ] {
            assert!(!is_own(other), "{other}");
        }
        for other in ["2026-11-22", "date=2026-11-2", "date=2026-11-22x", "date=202a-11-22"] {
            assert_eq!(day_of_directory(other), None, "{other}");
        }
        assert_eq!((day_of(now), first_kept(now, 23)), ("2026-11-23".into(), "2026-10-31".into()));
    }
}
