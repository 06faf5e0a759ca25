//! Time as the core sees it: a number that the shell hands in.

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch on the daemon's own clock.
///
/// The shell reads the wall clock once at start and adds monotonic time from then on, so a jump of the wall
/// clock never moves an idle time-out. A stored timestamp of an earlier run can lie in the future after the
/// wall clock was set back; every difference here saturates at zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The time `ms` milliseconds after the Unix epoch.
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_ms(self) -> u64 {
        self.0
    }

    /// This time and `ms` milliseconds more.
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to this time; zero when `earlier` is later.
    pub const fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
