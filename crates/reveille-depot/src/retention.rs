//! Which versions of a service are kept. Pure: versions, policy and time in, a verdict with its reason for each out.

/// What is kept. The newest version always is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// So many of the last ones.
    pub keep_last: u32,
    /// And all that are younger, in ms.
    pub keep_for_ms: u64,
}

/// A version, as far as this matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its number.
    pub number: u64,
    /// The epoch of the host that took it. What a host wrote that had lost the service is older than what its
    /// successor wrote, whatever its number.
    pub epoch: u64,
    /// When it was taken, in ms since 1970.
    pub taken_at_ms: u64,
    /// Whether it is pinned.
    pub pinned: bool,
    /// Whether it is in use: being restored, fetched or exported.
    pub held: bool,
}

/// Why a version stays or goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is the newest.
    Newest,
    /// Somebody pinned it.
    Pinned,
    /// It is in use.
    Held,
    /// It is one of the last.
    AmongLast {
        /// Its place, the newest is 1.
        place: u64,
    },
    /// It is young enough.
    Young {
        /// Its age.
        age_ms: u64,
    },
    /// Nothing keeps it.
    Surplus {
        /// Its place, the newest is 1.
        place: u64,
        /// Its age.
        age_ms: u64,
    },
}

impl Verdict {
    /// Whether the version stays.
    pub fn stays(self) -> bool {
        match self {
            Self::Newest | Self::Pinned | Self::Held | Self::AmongLast { .. } | Self::Young { .. } => true,
            Self::Surplus { .. } => false,
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Newest => f.write_str("kept: the newest"),
            Self::Pinned => f.write_str("kept: pinned"),
            Self::Held => f.write_str("kept: in use"),
            Self::AmongLast { place } => write!(f, "kept: number {place} of the last"),
            Self::Young { age_ms } => write!(f, "kept: {} old", age(*age_ms)),
            Self::Surplus { place, age_ms } => {
                write!(f, "to go: number {place} of the last, {} old", age(*age_ms))
            }
        }
    }
}

/// An age as people say it.
fn age(ms: u64) -> String {
    match ms / 1_000 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// A verdict on each version, newest first.
pub fn judge(versions: &[Candidate], retention: Retention, now_ms: u64) -> Vec<(u64, Verdict)> {
    let mut newest_first = versions.to_vec();
    newest_first.sort_by_key(|version| std::cmp::Reverse((version.epoch, version.number)));
    let verdict = |(place, version): (u64, &Candidate)| {
        let age_ms = now_ms.saturating_sub(version.taken_at_ms);
        let verdict = if place == 1 {
            Verdict::Newest
        } else if version.pinned {
            Verdict::Pinned
        } else if version.held {
            Verdict::Held
        } else if place <= u64::from(retention.keep_last) {
            Verdict::AmongLast { place }
        } else if age_ms < retention.keep_for_ms {
            Verdict::Young { age_ms }
        } else {
            Verdict::Surplus { place, age_ms }
        };
        (version.number, verdict)
    };
    (1..).zip(&newest_first).map(verdict).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_its_reason() {
        let version = |number, taken_at_ms| Candidate {
            number,
            epoch: 1,
            taken_at_ms,
            pinned: number == 1,
            held: number == 2,
        };
        let mut versions = vec![
            version(1, 0),
            version(2, 0),
            version(3, 0),
            version(4, 900),
            version(5, 0),
            version(6, 0),
            version(7, 0),
        ];
        let policy = Retention { keep_last: 2, keep_for_ms: 200 };
        assert_eq!(
            judge(&versions, policy, 1_000),
            [
                (7, Verdict::Newest),
                (6, Verdict::AmongLast { place: 2 }),
                (5, Verdict::Surplus { place: 3, age_ms: 1_000 }),
                (4, Verdict::Young { age_ms: 100 }),
                (3, Verdict::Surplus { place: 5, age_ms: 1_000 }),
                (2, Verdict::Held),
                (1, Verdict::Pinned),
            ]
        );
        // A version of a later epoch is newer, whatever its number. A clock that was set back makes nothing old.
        versions.truncate(3);
        versions[2].epoch = 2;
        versions[2].number = 0;
        let nothing = Retention { keep_last: 0, keep_for_ms: 0 };
        assert_eq!(judge(&versions, nothing, 0).first(), Some(&(0, Verdict::Newest)));
        assert_eq!(judge(&[], nothing, 0), []);
    }
}
