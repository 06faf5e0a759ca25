//! Points in time as they travel: RFC 3339 in UTC with milliseconds, `2026-11-22T01:17:05.123Z`.

use std::fmt;
use std::str::FromStr;

use reveille_core::model::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const DAY_MS: u64 = 86_400_000;
/// The last millisecond of the year 9999, beyond which RFC 3339 has no form.
const MS_MAX: u64 = 253_402_300_799_999;
/// From 0000-03-01, the day from which the calendar below counts, to 1970-01-01.
const DAYS_TO_EPOCH: u64 = 719_468;
/// Days of the 400 years after which the Gregorian calendar repeats.
const DAYS_OF_ERA: u64 = 146_097;

/// A [`Timestamp`] that is written as RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub Timestamp);

/// A text that is no such time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no time; write it as 2026-11-22T01:17:05.123Z")]
pub struct TimeError(String);

impl From<Timestamp> for Time {
    fn from(at: Timestamp) -> Self {
        Self(at)
    }
}

impl fmt::Display for Time {
    /// Times after the year 9999 are written as its last millisecond.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_ms().min(MS_MAX);
        // Years that begin in March put the leap day last, so that every month has a fixed first day.
        let days = ms / DAY_MS + DAYS_TO_EPOCH;
        let (era, day) = (days / DAYS_OF_ERA, days % DAYS_OF_ERA);
        let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let day_of_month = day_of_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let (hour, minute) = (ms % DAY_MS / 3_600_000, ms % 3_600_000 / 60_000);
        let (second, milli) = (ms % 60_000 / 1_000, ms % 1_000);
        write!(f, "{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
    }
}

impl FromStr for Time {
    type Err = TimeError;

    /// Reads exactly the form that is written; other offsets and precisions do not travel here.
    fn from_str(text: &str) -> Result<Self, TimeError> {
        let fault = || TimeError(text.to_owned());
        let number = |from: usize, to: usize| -> Result<u64, TimeError> {
            let digits = text.get(from..to).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
            digits.and_then(|digits| digits.parse().ok()).ok_or_else(fault)
        };
        let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let (hour, minute) = (number(11, 13)?, number(14, 16)?);
        let (second, milli) = (number(17, 19)?, number(20, 23)?);
        if year < 1970 || !(1..=12).contains(&month) || day == 0 {
            return Err(fault());
        }
        let shifted_year = year - u64::from(month <= 2);
        let shifted_month = if month > 2 { month - 3 } else { month + 9 };
        let year_of_era = shifted_year % 400;
        let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = shifted_year / 400 * DAYS_OF_ERA + day_of_era - DAYS_TO_EPOCH;
        let ms = days * DAY_MS + hour * 3_600_000 + minute * 60_000 + second * 1_000 + milli;
        let time = Self(Timestamp::from_ms(ms));
        // Written again it must be the same: that refuses wrong separators, February 30 and 24:00 alike.
        if time.to_string() == text { Ok(time) } else { Err(fault()) }
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times_are_written_and_read_back() {
        // Checked against `date -u -d @SECONDS`.
        let known = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_799_999, "2000-02-29T23:59:59.999Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_709_164_800_000, "2024-02-29T00:00:00.000Z"),
            (1_795_310_225_123, "2026-11-22T01:17:05.123Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (MS_MAX, "9999-12-31T23:59:59.999Z"),
        ];
        for (ms, text) in known {
            let time = Time(Timestamp::from_ms(ms));
            assert_eq!(time.to_string(), text);
            assert_eq!(text.parse(), Ok(time));
        }
        assert_eq!(Time(Timestamp::from_ms(u64::MAX)).to_string(), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn every_day_of_four_centuries_comes_back_and_follows_the_day_before() {
        let mut before = String::new();
        for day in 0..DAYS_OF_ERA {
            let time = Time(Timestamp::from_ms(day * DAY_MS));
            let text = time.to_string();
            assert!(text > before, "{before} then {text}");
            assert_eq!(text.parse(), Ok(time));
            before = text;
        }
        assert!(before.starts_with("2369-12-31"), "{before}");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        let wrong = [
            "",
            "2026-11-22",
            "2026-11-22T01:17:05Z",
            "2026-11-22 01:17:05.123Z",
            "2026-11-22T01:17:05.123+01:00",
            "2026-02-30T00:00:00.000Z",
            "2025-02-29T00:00:00.000Z",
            "2026-13-01T00:00:00.000Z",
            "2026-01-01T24:00:00.000Z",
            "2026-01-01T00:60:00.000Z",
            "1969-12-31T23:59:59.999Z",
            "２０26-01-01T00:00:00.000Z",
        ];
        for text in wrong {
            assert!(text.parse::<Time>().is_err(), "{text}");
        }
    }
}
