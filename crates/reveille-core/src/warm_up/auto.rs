//! `profile = "auto"`: which built-in profile fits a service, and whether its restore set is worth what it takes.
//!
//! The profile follows from the ports that the service declares. Whether the restore set is run follows from what
//! clients have waited: a client whose packet woke the service gets its first byte after the restore *and* the set, so
//! the set pays only where it saves the first request more than it takes itself. Both ways are tried a few times on each
//! rung, then the one with the lower median is taken, and now and then the other one is tried again. Where nobody waits
//! yet (a start ahead of demand) the set is always run, and after a boot the boot set always is. Nothing else is learned.

use crate::model::{PortSpec, Protocol, ReadyCheck, RungMeasured, ServiceSpec};

/// What a service says to have its profile chosen.
pub const AUTO: &str = "auto";

/// Ports of databases and stores: PostgreSQL, MySQL, SQL Server, Oracle, MongoDB, Redis, Cassandra, Elasticsearch.
const DATABASE_PORTS: [u16; 8] = [5432, 3306, 1433, 1521, 27017, 6379, 9042, 9200];
/// Ports on which HTTP is usual.
const HTTP_PORTS: [u16; 8] = [80, 8080, 443, 8443, 3000, 5000, 8000, 8888];
/// Wakes that are seen of each way, before they are compared.
const TRIES: usize = 3;
/// Each so many starts the way that was slower is tried again.
const AGAIN_EVERY: u64 = 16;

/// A profile, and why it fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fitting {
    /// Its name.
    pub profile: &'static str,
    /// Why, as the end of a sentence.
    pub why: String,
}

/// The built-in profile that fits a service by what it declares.
pub fn fitting(spec: &ServiceSpec) -> Fitting {
    let tcp = |of: &[u16]| {
        let fits = |port: &&PortSpec| port.protocol == Protocol::Tcp && of.contains(&port.number);
        spec.ports.iter().find(fits).copied()
    };
    if let Some(port) = tcp(&DATABASE_PORTS) {
        return Fitting { profile: "database-heavy", why: format!("{port} is a port of databases") };
    }
    if matches!(spec.ready, Some(ReadyCheck::Http { .. })) {
        return Fitting { profile: "cache-heavy", why: "its readiness check speaks HTTP".to_owned() };
    }
    if let Some(port) = tcp(&HTTP_PORTS) {
        return Fitting { profile: "cache-heavy", why: format!("{port} is a port of HTTP") };
    }
    Fitting { profile: "compute-heavy", why: "no port is one of HTTP or of databases".to_owned() }
}

/// Whether the restore set is run by a start from a rung of which `of` was measured, and why. `ahead`: nobody has asked for
/// the start. `start` is its number.
pub fn takes_restore_set(of: Option<&RungMeasured>, ahead: bool, start: u64) -> (bool, String) {
    if ahead {
        return (true, "nobody waits for it".to_owned());
    }
    let seen = of.map(|of| (of.first_warmed.count(), of.first_straight.count())).unwrap_or_default();
    if seen.0 < TRIES {
        return (true, format!("it was seen with it {} times, {TRIES} are wanted", seen.0));
    }
    if seen.1 < TRIES {
        return (false, format!("it was seen without it {} times, {TRIES} are wanted", seen.1));
    }
    let median = |warmed: bool| {
        of.and_then(|of| if warmed { &of.first_warmed } else { &of.first_straight }.percentile_ms(50))
    };
    let (warmed, straight) = (median(true).unwrap_or(0), median(false).unwrap_or(0));
    let best = warmed <= straight;
    let figures = format!("clients had their first byte after {warmed} ms with it and {straight} ms without");
    if start.is_multiple_of(AGAIN_EVERY) {
        (!best, format!("{figures}, and the slower way is tried again"))
    } else {
        (best, figures)
    }
}
