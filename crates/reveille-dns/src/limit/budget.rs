//! Wake budgets: how many sleeping services questions may wake, whoever asks and however fast.
//!
//! A wake is asked of four buckets: the client network's, its zone's, and the host's; those of a client network
//! and of a zone are there twice, for sources that prove their address and for those that do not. So who asks in
//! another's name can use up what is left to those who cannot prove theirs, and nothing else:
//!
//! - of a client network: a forger cannot spend what the network's own cookies or connections could;
//! - of a zone: the same for the zone as a whole;
//! - of the host: unproven sources leave the last part of the burst ([`UNPROVEN_HOST_PERCENT`]) alone. Under a
//!   lasting flood of them that part is what proven ones find, and every token that they take from it is
//!   replaced before unproven ones pass again: proven ones go first.
//!
//! All buckets are looked at before one is charged, so a wake that one of them refuses costs nothing at the
//! others: neither a flood for a zone that is spent, nor a client that is over its own budget, can use up the
//! rest. Two threads that look at the same moment may both see the last token. Then the slower one is refused
//! while it charges and gives back what it had taken; in between, for some nanoseconds, a third may see up to one
//! token less for each such thread than there is, and be refused. No bucket ever passes more than its limit.
//!
//! To be refused does little harm: the question is answered all the same, and the first packet to the address
//! wakes the service.

use super::bucket::{Bucket, BucketTable, Key, Limit, Micros, Place, Take};
use super::client::Source;

/// Zones with buckets of their own, a power of two. Of more zones, those whose numbers are equal in the lower bits
/// share theirs.
pub const ZONES_MAX: usize = 4_096;
/// Part of the host's burst that unproven sources may use, in percent.
pub const UNPROVEN_HOST_PERCENT: u64 = 50;

/// Sets of the table of client networks: 64 KiB. A network is in it only while it has wakes to answer for, so the
/// host's budget bounds how many there are.
const CLIENT_SETS: usize = 1_024;

/// Which limit refused a wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WakeLimit {
    /// A rule with `no_wake`.
    Rule,
    /// The client network's budget.
    Client,
    /// The zone's budget for sources of this kind.
    Zone,
    /// The host's budget.
    Host,
    /// Wakes by questions are off, or only counted.
    Mode,
}

/// Whether a question wakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WakeVerdict {
    /// It does.
    Wake,
    /// It does not: answer it, do not hold it.
    Refused(WakeLimit),
}

impl WakeVerdict {
    /// Whether the question wakes.
    pub const fn passes(self) -> bool {
        matches!(self, Self::Wake)
    }
}

/// The limits in force. None: not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WakeLimits {
    /// Of a client network.
    client: Option<Limit>,
    /// Of a zone, for unproven sources.
    zone_unproven: Option<Limit>,
    /// Of a zone, for proven sources.
    zone_proven: Option<Limit>,
    /// Of the host, for proven sources.
    host_proven: Option<Limit>,
    /// Of the host, for unproven sources: the same bucket, less deep.
    host_unproven: Option<Limit>,
}

impl WakeLimits {
    /// These limits.
    pub fn new(
        client: Option<Limit>,
        zone_unproven: Option<Limit>,
        zone_proven: Option<Limit>,
        host: Option<Limit>,
    ) -> Self {
        let host_unproven = host.map(|host| host.with_burst_percent(UNPROVEN_HOST_PERCENT));
        Self { client, zone_unproven, zone_proven, host_proven: host, host_unproven }
    }
}

/// The buckets of all wake budgets, in memory of fixed size.
#[derive(Debug)]
pub struct WakeBudgets {
    clients: BucketTable,
    zones: Box<[ZoneBuckets]>,
    host: HostBucket,
}

#[derive(Debug, Default)]
struct ZoneBuckets {
    unproven: Bucket,
    proven: Bucket,
}

/// Alone on its cache line: everybody reads it.
#[derive(Debug, Default)]
#[repr(align(128))]
struct HostBucket(Bucket);

impl Default for WakeBudgets {
    fn default() -> Self {
        Self {
            clients: BucketTable::new(CLIENT_SETS),
            zones: (0..ZONES_MAX).map(|_| ZoneBuckets::default()).collect(),
            host: HostBucket::default(),
        }
    }
}

/// A bucket and the limit that is on it.
type Limited<'b> = Option<(&'b Bucket, &'b Limit)>;

impl WakeBudgets {
    /// Charges a wake to all budgets, or to none.
    ///
    /// # Errors
    /// The first limit that refuses, in the order client, zone, host.
    pub fn spend(
        &self,
        limits: &WakeLimits,
        client_hash: u64,
        source: Source,
        zone: u16,
        now: Micros,
    ) -> Result<(), WakeLimit> {
        let buckets = self.zones.get(usize::from(zone) % ZONES_MAX).ok_or(WakeLimit::Zone)?;
        let (lane, zone, host) = match source {
            Source::Unproven => {
                let zone = limits.zone_unproven.as_ref().map(|limit| (&buckets.unproven, limit));
                (0, zone, &limits.host_unproven)
            }
            Source::Proven => {
                let zone = limits.zone_proven.as_ref().map(|limit| (&buckets.proven, limit));
                (1, zone, &limits.host_proven)
            }
        };
        let host: Limited<'_> = host.as_ref().map(|limit| (&self.host.0, limit));
        let client = limits.client.as_ref().map(|limit| (Key::new(client_hash, lane), limit));
        self.look(client, zone, host, now)?;
        self.charge(client, zone, host, now)
    }

    /// Whether each has a token.
    fn look(
        &self,
        client: Option<(Key, &Limit)>,
        zone: Limited<'_>,
        host: Limited<'_>,
        now: Micros,
    ) -> Result<(), WakeLimit> {
        let would_pass = |(bucket, limit): (&Bucket, &Limit)| bucket.would_pass(limit, now);
        if !client.is_none_or(|(key, limit)| self.clients.would_pass(key, limit, now)) {
            return Err(WakeLimit::Client);
        }
        if !zone.is_none_or(would_pass) {
            return Err(WakeLimit::Zone);
        }
        if host.is_none_or(would_pass) { Ok(()) } else { Err(WakeLimit::Host) }
    }

    /// Takes a token of each; gives back what was taken if another thread was quicker at a later one.
    fn charge(
        &self,
        client: Option<(Key, &Limit)>,
        zone: Limited<'_>,
        host: Limited<'_>,
        now: Micros,
    ) -> Result<(), WakeLimit> {
        let mut taken: Option<(Place, &Limit)> = None;
        if let Some((key, limit)) = client {
            match self.clients.take(key, limit, now) {
                Take::Passed(place) => taken = Some((place, limit)),
                Take::Refused(_) => return Err(WakeLimit::Client),
            }
        }
        let give_back_client = || {
            if let Some((place, limit)) = taken {
                self.clients.give_back(place, limit);
            }
        };
        if zone.is_some_and(|(bucket, limit)| !bucket.take(limit, now)) {
            give_back_client();
            return Err(WakeLimit::Zone);
        }
        if host.is_some_and(|(bucket, limit)| !bucket.take(limit, now)) {
            give_back_client();
            if let Some((bucket, limit)) = zone {
                bucket.give_back(limit);
            }
            return Err(WakeLimit::Host);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As when other threads were quicker between the look and the charge.
    #[test]
    fn who_comes_too_late_gives_back_what_was_taken() {
        let now = Micros::from_ms(1);
        let mut limits = [1, 2].map(|burst| Limit::new(1, 60_000_000, burst));
        Limit::on_same_buckets(&mut limits);
        let [one, two] = limits.map(Option::unwrap);
        let key = Key::new(1, 0);
        let left = |budgets: &WakeBudgets| {
            let zone = budgets.zones.first().unwrap();
            (budgets.clients.would_pass(key, &one, now), zone.proven.would_pass(&one, now))
        };
        let charge = |budgets: &WakeBudgets| {
            let zone = budgets.zones.first().unwrap();
            budgets.charge(Some((key, &two)), Some((&zone.proven, &two)), Some((&budgets.host.0, &one)), now)
        };
        let spent_host = WakeBudgets::default();
        assert!(spent_host.host.0.take(&one, now));
        assert_eq!(charge(&spent_host), Err(WakeLimit::Host));
        assert_eq!(left(&spent_host), (true, true));
        let spent_zone = WakeBudgets::default();
        while spent_zone.zones.first().unwrap().proven.take(&two, now) {}
        assert_eq!(charge(&spent_zone), Err(WakeLimit::Zone));
        assert_eq!(left(&spent_zone), (true, false));
        assert!(spent_zone.host.0.would_pass(&one, now));
    }
}
