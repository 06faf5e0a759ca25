//! Response-rate limiting: how many answers over UDP a client network gets, so that this server is of no use to
//! those who ask in somebody else's name.
//!
//! Limits are by client network and kind of answer, not by name: each answer here is about as small as its
//! question, so what is to be bounded is packets towards a victim. A client over its limit is not cut off: every
//! n-th answer goes out truncated, without records, and a real client comes again over TCP, where it is not limited.

use std::net::IpAddr;

use reveille_core::answer::{Network, Rcode, Reply};

use super::bucket::{BucketTable, Key, Limit, Micros};

/// Kind of an answer. Each has limits of its own, so that a flood of one kind leaves the others alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// It has records, or refers to other name servers.
    Positive,
    /// The name exists, this type does not.
    NoData,
    /// The name does not exist.
    NxDomain,
    /// Anything else: REFUSED, FORMERR, SERVFAIL, BADCOOKIE …
    Error,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Positive, Self::NoData, Self::NxDomain, Self::Error];

    /// The kind of a reply.
    pub fn of(reply: &Reply<'_>) -> Self {
        match reply.rcode {
            // Not authoritative and without an answer: a referral.
            Rcode::NoError if !reply.answer.is_empty() || !reply.authoritative => Self::Positive,
            Rcode::NoError => Self::NoData,
            Rcode::NxDomain => Self::NxDomain,
            Rcode::FormErr
            | Rcode::ServFail
            | Rcode::NotImp
            | Rcode::Refused
            | Rcode::YxDomain
            | Rcode::YxRrset
            | Rcode::NxRrset
            | Rcode::NotAuth
            | Rcode::NotZone
            | Rcode::BadVers
            | Rcode::BadCookie => Self::Error,
        }
    }

    /// A small number: which bucket of a client network.
    pub const fn index(self) -> u8 {
        match self {
            Self::Positive => 0,
            Self::NoData => 1,
            Self::NxDomain => 2,
            Self::Error => 3,
        }
    }
}

/// What becomes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RateVerdict {
    /// It goes out.
    Pass,
    /// It goes out without records and with TC, so that the client comes again over TCP. An error, which a client
    /// would not ask for again, goes out as it is.
    Slip,
    /// It does not go out.
    Drop,
}

/// The limits in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimits {
    /// By [`Kind::index`]; none: not limited.
    limits: [Option<Limit>; Kind::ALL.len()],
    slip: u64,
    exempt: Box<[Network]>,
}

/// What came of one look at a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RateLook {
    pub verdict: RateVerdict,
    /// A bucket that several clients share decided.
    pub shared: bool,
}

impl RateLimits {
    /// These limits, in the order of [`Kind::ALL`]. Over them every `slip`-th answer slips; 0: none does. `exempt`
    /// networks are not limited.
    pub fn new(mut limits: [Option<Limit>; 4], slip: u32, exempt: &[Network]) -> Self {
        Limit::on_same_buckets(&mut limits);
        Self { limits, slip: slip.into(), exempt: exempt.into() }
    }

    /// Judges one answer to an unproven source and charges the client's bucket. `over` counts an answer
    /// that is over a limit, and tells which it is.
    #[inline]
    pub(crate) fn judge(
        &self,
        table: &BucketTable,
        (hash, address): (u64, IpAddr),
        kind: Kind,
        now: Micros,
        over: impl FnOnce() -> u64,
    ) -> RateLook {
        let [positive, no_data, nx_domain, error] = &self.limits;
        let limit = match kind {
            Kind::Positive => positive,
            Kind::NoData => no_data,
            Kind::NxDomain => nx_domain,
            Kind::Error => error,
        };
        let Some(limit) = limit else { return RateLook { verdict: RateVerdict::Pass, shared: false } };
        let take = table.take(Key::new(hash, kind.index()), limit, now);
        let verdict = if take.passed() { RateVerdict::Pass } else { self.over(address, over) };
        RateLook { verdict, shared: take.shared() }
    }

    #[cold]
    fn over(&self, address: IpAddr, over: impl FnOnce() -> u64) -> RateVerdict {
        // Looked at only now: exempt clients are few, and seldom over the limit.
        if self.exempt.iter().any(|network| network.contains(address)) {
            return RateVerdict::Pass;
        }
        match self.slip {
            0 => RateVerdict::Drop,
            slip if over().is_multiple_of(slip) => RateVerdict::Slip,
            _ => RateVerdict::Drop,
        }
    }
}
