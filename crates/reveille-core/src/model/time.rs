//! Time as the core sees it: a number that the shell hands in.

use std::fmt;
use std::num::NonZero;

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch on the daemon's own clock.
///
/// The shell reads the wall clock once at start and adds monotonic time from then on, so a jump of the wall
/// clock never moves an idle time-out. A stored timestamp of an earlier run can lie in the future after the
/// wall clock was set back; every difference here saturates at zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "u64", into = "u64")]
pub struct Timestamp {
    /// Never zero, so that a time that may be unknown takes no more room: services have several.
    ms_and_one: NonZero<u64>,
}

impl Default for Timestamp {
    fn default() -> Self {
        Self::from_ms(0)
    }
}

impl From<u64> for Timestamp {
    fn from(ms: u64) -> Self {
        Self::from_ms(ms)
    }
}

impl From<Timestamp> for u64 {
    fn from(at: Timestamp) -> Self {
        at.as_ms()
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Timestamp").field(&self.as_ms()).finish()
    }
}

impl Timestamp {
    /// The time `ms` milliseconds after the Unix epoch.
    pub const fn from_ms(ms: u64) -> Self {
        Self { ms_and_one: NonZero::<u64>::MIN.saturating_add(ms) }
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_ms(self) -> u64 {
        self.ms_and_one.get() - 1
    }

    /// This time and `ms` milliseconds more.
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self { ms_and_one: self.ms_and_one.saturating_add(ms) }
    }

    /// Milliseconds from `earlier` to this time; zero when `earlier` is later.
    pub const fn ms_since(self, earlier: Self) -> u64 {
        self.as_ms().saturating_sub(earlier.as_ms())
    }

    /// `2026-11-22T01:02:03Z`, by the civil calendar (days since 1970 in eras of 400 years that begin in March).
    pub fn utc(self) -> String {
        let seconds = self.as_ms() / 1_000;
        let days = seconds / 86_400 + 719_468;
        let day_of_era = days % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + days / 146_097 * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_stored_as_milliseconds_and_an_unknown_one_takes_no_more_room() {
        for ms in [0, 1, 1_800_000_000_000] {
            let at = Timestamp::from_ms(ms);
            let json = serde_json::to_string(&at).unwrap();
            assert_eq!((at.as_ms(), json.parse::<u64>().unwrap()), (ms, ms));
            assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), at);
        }
        // One millisecond before the end of time.
        assert_eq!(Timestamp::from_ms(u64::MAX), Timestamp::from_ms(u64::MAX - 1));
        assert_eq!(Timestamp::from_ms(5).ms_since(Timestamp::from_ms(u64::MAX)), 0);
        assert_eq!(size_of::<Option<Timestamp>>(), 8);
    }

    #[test]
    fn times_are_written_in_utc() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, text) in cases {
            assert_eq!(Timestamp::from_ms(seconds * 1_000 + 999).utc(), text);
        }
    }
}
