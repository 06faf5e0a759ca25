//! The one place where time is read.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use reveille_core::model::Timestamp;

/// A monotonic reading. It is that of the timers, so that both agree also where time is simulated.
pub fn monotonic() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Wall time at the start plus monotonic time since: a jump of the wall clock moves nothing.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
    started_wall_ms: u64,
}

impl Clock {
    /// A clock that starts at the wall time of now.
    pub fn start() -> Self {
        Self::starting_at(Self::wall())
    }

    /// A clock that starts now, at the wall time `wall`.
    pub fn starting_at(wall: Timestamp) -> Self {
        Self { started: monotonic(), started_wall_ms: wall.as_ms() }
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        self.at(monotonic())
    }

    /// The time by the host's clock, which jumps when it is set. Only those outside go by it.
    pub fn wall() -> Timestamp {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_ms(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX))
    }

    /// The time of a monotonic reading.
    pub fn at(&self, instant: Instant) -> Timestamp {
        let elapsed = instant.saturating_duration_since(self.started);
        Timestamp::from_ms(
            self.started_wall_ms.saturating_add(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    /// The monotonic reading at `time`, for timers.
    pub fn instant_of(&self, time: Timestamp) -> Instant {
        let ms = time.as_ms().saturating_sub(self.started_wall_ms);
        // A time that no clock reaches is as good as a day from now: it is looked at again then.
        self.started
            .checked_add(std::time::Duration::from_millis(ms))
            .unwrap_or_else(|| monotonic() + std::time::Duration::from_secs(86_400))
    }
}
