//! What is recorded: names, kinds of series, points, and the batch that a second's points come in.

/// Longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Most points of one [`Batch`]; a sender with more sends several.
pub const BATCH_POINTS_MAX: usize = 262_144;

/// What a series counts. All are amounts that can be added: a mean is the quotient of two of them.
///
/// The codes are on disk: one is never used for something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Questions that were answered, as resolvers asked them.
    Queries = 1,
    /// Clients that wanted the service: first packets after a quiet time.
    Arrivals = 2,
    /// Arrivals with those put back that a resolver's cache answered; in thousandths, since it is an estimate.
    DemandMilli = 3,
    /// Microseconds that clients waited, added up; divided by arrivals it is the mean.
    LatencyUs = 4,
    /// Milliseconds for which clients used it, added up over all of them: divided by 1,000 what was in use in a second.
    ExecutionMs = 5,
    /// What was kept out of demand: floods, refused questions.
    Refused = 6,
    /// Requests that logs told of. Apart from arrivals, since the same client may be in both.
    Requests = 7,
    /// Milliseconds of execution of those requests, added up. Apart from what was seen to be in use, for the same reason.
    RequestMs = 8,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Queries,
        Self::Arrivals,
        Self::DemandMilli,
        Self::LatencyUs,
        Self::ExecutionMs,
        Self::Refused,
        Self::Requests,
        Self::RequestMs,
    ];

    /// Its code on disk.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

/// A set of kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KindSet(u16);

impl KindSet {
    /// No kind.
    pub const NONE: Self = Self(0);

    /// This set and `kind`.
    pub const fn with(self, kind: Kind) -> Self {
        Self(self.0 | 1 << kind.code())
    }

    /// Whether `kind` is in it.
    pub const fn has(self, kind: Kind) -> bool {
        self.0 & 1 << kind.code() != 0
    }

    /// The kinds in it.
    pub fn iter(self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(move |kind| self.has(*kind))
    }
}

impl FromIterator<Kind> for KindSet {
    fn from_iter<I: IntoIterator<Item = Kind>>(kinds: I) -> Self {
        kinds.into_iter().fold(Self::NONE, Self::with)
    }
}

/// An amount of a second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Whose: 1 to [`NAME_BYTES_MAX`] bytes.
    pub name: Box<[u8]>,
    /// What is counted.
    pub kind: Kind,
    /// The second, since the Unix epoch.
    pub at_s: u64,
    /// How much; added to what is there of the same second.
    pub amount: u64,
}

/// What a sender has to say at one time, usually once a second. It is taken as a whole or dropped as a whole, so what is
/// said to be seen never lacks points.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// Wall clock, in seconds since the Unix epoch: what is late, and what is to be packed or dropped, is judged by it.
    pub now_s: u64,
    /// The second that was watched, and which kinds: a name without a point in it was not asked for. What no batch
    /// declares is unseen, which is not zero.
    pub seen: Option<Seen>,
    /// Points of that second or of earlier ones, in any order.
    pub points: Vec<Point>,
}

/// A second that was watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The second, since the Unix epoch.
    pub at_s: u64,
    /// What was counted in it.
    pub kinds: KindSet,
}

/// The name under which watched seconds are counted, one amount per second: no user's name is empty.
pub(super) const WATCHED: &[u8] = &[];

/// A step of time that points are kept at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resolution {
    /// 1 s, in memory, of busy names.
    Second,
    /// 1 min.
    Minute,
    /// 1 h.
    Hour,
}

impl Resolution {
    /// Its length in seconds.
    pub const fn seconds(self) -> u64 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3_600,
        }
    }
}

/// What one file of blocks spans. Data go down this list as they age, and lose nothing but resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Level {
    /// The minutes of an hour: what was just packed.
    MinutesOfHour,
    /// The minutes of a day.
    MinutesOfDay,
    /// The hours of a day whose minutes are gone.
    HoursOfDay,
    /// The hours of thirty days.
    HoursOfMonth,
}

impl Level {
    pub const ALL: [Self; 4] =
        [Self::MinutesOfHour, Self::MinutesOfDay, Self::HoursOfDay, Self::HoursOfMonth];

    pub const fn resolution(self) -> Resolution {
        match self {
            Self::MinutesOfHour | Self::MinutesOfDay => Resolution::Minute,
            Self::HoursOfDay | Self::HoursOfMonth => Resolution::Hour,
        }
    }

    /// Seconds that a file spans; it begins at a multiple of that.
    pub const fn span_s(self) -> u64 {
        match self {
            Self::MinutesOfHour => HOUR_S,
            Self::MinutesOfDay | Self::HoursOfDay => DAY_S,
            Self::HoursOfMonth => 30 * DAY_S,
        }
    }

    /// Points that a series can have in a file.
    pub const fn slots(self) -> u64 {
        self.span_s() / self.resolution().seconds()
    }

    /// First part of a file's name.
    pub const fn tag(self) -> &'static str {
        match self {
            Self::MinutesOfHour => "minutes1h",
            Self::MinutesOfDay => "minutes1d",
            Self::HoursOfDay => "hours1d",
            Self::HoursOfMonth => "hours30d",
        }
    }
}

pub(super) const HOUR_S: u64 = 3_600;
pub(super) const DAY_S: u64 = 86_400;
