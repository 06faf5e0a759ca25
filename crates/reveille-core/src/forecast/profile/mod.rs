//! How users and groups behave, from request logs (F5): distributions of volume, execution time, CPU, memory and I/O, and
//! the runtimes that they prefer.
//!
//! ```text
//!   request ─┬─► user's profile  ─┐      volume_per_hour, seconds, cpu_seconds, memory_bytes, io_bytes:
//!            │   or all others'   ├─►    quantiles, intervals of 80 and 95 % and how often they held
//!            └─► group's profile ─┘      runtimes: shares
//! ```
//!
//! A quantity is a sketch of fixed size ([`Sketch`]) of this epoch and the one before, so that old behaviour is forgotten. Its
//! intervals are judged by each value before it is counted ([`Interval::coverage`]).
//!
//! Whoever writes the logs chooses the names in them, so profiles are bounded: the [`USERS_MAX`] users and [`GROUPS_MAX`] groups with
//! most requests have their own, once they were seen [`ADMITTED_AFTER`] times; what others do is in the profile of all others.
//!
//! A user or group without a request in this epoch and the one before is forgotten.
//!
//! **Cost**: at most [`PROFILE_BYTES_MAX`] a profile, mostly a fifth of it.

mod behaviour;
mod distribution;
mod sketch;
mod stored;
#[cfg(test)]
mod tests;
mod tops;

use crate::model::Timestamp;
use tops::Tops;

pub use super::stored::Damaged;
pub use behaviour::{Behaviour, Profile, QUIET_HOURS_MAX, RUNTIMES_MAX, Share};
pub use distribution::{Distribution, Interval, LEVELS, Summary, VALUES_MIN};
pub use sketch::{ACCURACY, BINS_MAX, Sketch, VALUE_MAX, VALUE_MIN};
pub use stored::{pack, unpack};

/// Users with a profile of their own.
pub const USERS_MAX: usize = 1_024;
/// Groups with a profile of their own.
pub const GROUPS_MAX: usize = 256;
/// Requests after which a name has one, if it is among those.
pub const ADMITTED_AFTER: u64 = 8;
/// An epoch, in ms: a week. Profiles are of this one and the one before.
pub const EPOCH_MS: u64 = 7 * 86_400_000;
/// At most this much is held for a profile, beside its names: a test holds it true.
pub const PROFILE_BYTES_MAX: usize = 64 * 1024;

/// A request as its log tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// When it came.
    pub at: Timestamp,
    /// Who made it.
    pub user: Box<str>,
    /// To which group that user belongs.
    pub group: Option<Box<str>>,
    /// Of which service, as the log names it.
    pub service: Box<str>,
    /// What ran it.
    pub runtime: Option<Box<str>>,
    /// Execution time, in seconds.
    pub seconds: f64,
    /// Processor time, in seconds.
    pub cpu_seconds: Option<f64>,
    /// Memory at its peak, in bytes.
    pub memory_bytes: Option<u64>,
    /// Read and written, in bytes.
    pub io_bytes: Option<u64>,
    /// Whatever else was noted.
    pub tags: Box<[Box<str>]>,
}

/// The profiles of all users and groups.
#[derive(Debug, Clone)]
pub struct Profiles {
    began: Option<Timestamp>,
    users: Kept,
    groups: Kept,
}

/// Profiles by name, and that of all others.
#[derive(Debug, Clone)]
struct Kept {
    by_name: Tops<Known>,
    others: Profile,
}

#[derive(Debug, Clone, Default)]
struct Known {
    /// Requests since it has a place.
    seen: u64,
    profile: Option<Box<Profile>>,
}

impl Default for Profiles {
    fn default() -> Self {
        Self::with_places(USERS_MAX, GROUPS_MAX)
    }
}

impl Profiles {
    /// With other numbers of users and groups, at least one each.
    #[must_use]
    pub fn with_places(users_max: usize, groups_max: usize) -> Self {
        Self { began: None, users: Kept::new(users_max), groups: Kept::new(groups_max) }
    }

    /// Takes a request in. The epoch ends by the times of the requests.
    pub fn take(&mut self, request: &Request) {
        let began = *self.began.get_or_insert(request.at);
        if request.at.ms_since(began) >= EPOCH_MS {
            self.began = Some(request.at);
            self.users.turn();
            self.groups.turn();
        }
        self.users.take(&request.user, request);
        if let Some(group) = &request.group {
            self.groups.take(group, request);
        }
    }

    /// A user's profile, if there is one.
    #[must_use]
    pub fn user(&self, name: &str) -> Option<&Profile> {
        self.users.get(name)
    }

    /// A group's profile, if there is one.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<&Profile> {
        self.groups.get(name)
    }

    /// Users with a profile, those with most requests first.
    pub fn users(&self) -> impl Iterator<Item = (&str, &Profile)> {
        self.users.iter()
    }

    /// Groups with a profile, those with most requests first.
    pub fn groups(&self) -> impl Iterator<Item = (&str, &Profile)> {
        self.groups.iter()
    }

    /// What all profiles hold, in bytes, but for names.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let own = self.users().chain(self.groups()).map(|(_, profile)| profile.size_bytes());
        own.sum::<usize>() + self.other_users().size_bytes() + self.other_groups().size_bytes()
    }

    /// What all users do that have no profile, together.
    #[must_use]
    pub fn other_users(&self) -> &Profile {
        &self.users.others
    }

    /// What all groups do that have no profile, together.
    #[must_use]
    pub fn other_groups(&self) -> &Profile {
        &self.groups.others
    }
}

impl Kept {
    fn new(places: usize) -> Self {
        Self { by_name: Tops::new(places), others: Profile::default() }
    }

    fn take(&mut self, name: &str, request: &Request) {
        let (known, left) = self.by_name.count(name, 1);
        known.seen += 1;
        if known.seen > ADMITTED_AFTER {
            known.profile.get_or_insert_default().take(request);
        } else {
            self.others.take(request);
        }
        if let Some(profile) = left.and_then(|known| known.profile) {
            self.others.merge(&profile);
        }
    }

    fn turn(&mut self) {
        self.others.turn();
        self.by_name
            .values_mut()
            .filter_map(|known| known.profile.as_mut())
            .for_each(|profile| profile.turn());
        // Who was not seen often enough for a profile starts anew.
        self.by_name.retain(|known| known.profile.as_ref().is_some_and(|profile| !profile.is_idle()));
    }

    fn get(&self, name: &str) -> Option<&Profile> {
        self.by_name.get(name)?.profile.as_deref()
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &Profile)> {
        self.by_name.iter().filter_map(|(name, known)| Some((name, known.profile.as_deref()?)))
    }
}
