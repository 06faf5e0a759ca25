//! One look at the gate: every verdict on a question.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::Guard;
use reveille_core::model::Timestamp;

use super::bucket::{Key, Micros};
use super::budget::{WakeLimit, WakeVerdict};
use super::client::Source;
use super::config::WakeMode;
use super::cookie::{CookieSecrets, CookieStatus};
use super::gate::{Cookies, Gate, Rules};
use super::list::{Action, Asked};
use super::rate::{Kind, RateVerdict};
use super::tally::{Counter, GateTally};
use crate::respond::Transport;
use crate::wake::AskKind;
use crate::wire::{COOKIE_BYTES, Cookie, Subnet};

/// A question at the gate.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'q> {
    /// Where it came from.
    pub peer: IpAddr,
    /// How.
    pub transport: Transport,
    /// Its cookies.
    pub cookie: Option<&'q Cookie>,
    /// Its client subnet.
    pub subnet: Option<&'q Subnet>,
    /// Its type; 0 if it could not be read.
    pub qtype: u16,
    /// Number of the zone that its name lies in.
    pub zone: Option<u16>,
}

/// Whether a question is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// It is looked up and answered.
    Enter,
    /// It is answered with REFUSED.
    Refuse,
    /// It is answered with BADCOOKIE and the cookie to ask with again (RFC 7873 §5.2.3).
    BadCookie,
    /// It is answered with TC alone, so that it comes again over TCP.
    Truncate,
    /// It is not answered.
    Drop,
}

/// What the lists make of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Ordinary,
    NoWake,
    Exempt,
}

/// Who asks, as the gate knows them from here on. For one question of one batch.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// Whether the question is let in.
    pub entry: Entry,
    /// Whether the address is proven.
    pub source: Source,
    /// What the cookies are worth.
    pub cookie: CookieStatus,
    standing: Standing,
    hash: u64,
    /// IPv4 not written as IPv6.
    address: IpAddr,
}

/// A look at the gate: rules and time for a batch of questions. Cheap to make; to be made anew for each batch.
pub struct Judge<'g> {
    pub(super) gate: &'g Gate,
    pub(super) rules: Guard<Arc<Rules>>,
    /// Rules and questions mean the same zones by their numbers.
    pub(super) knows_zones: bool,
    pub(super) secrets: Guard<Arc<CookieSecrets>>,
    pub(super) now: Timestamp,
    pub(super) now_us: Micros,
    pub(super) tally: &'g GateTally,
}

impl fmt::Debug for Judge<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judge").field("rules", &self.rules).field("now", &self.now).finish_non_exhaustive()
    }
}

impl Judge<'_> {
    /// Looks at a question as it arrives: its cookies, and the lists. To be called once for each question, also for
    /// one that cannot be read.
    #[inline]
    pub fn arrive(&self, arrival: &Arrival<'_>) -> Client {
        let rules = &*self.rules;
        let address = arrival.peer.to_canonical();
        let cookie = match rules.cookies {
            Cookies::Off => CookieStatus::None,
            Cookies::On | Cookies::Required => self.secrets.check(arrival.cookie, address, self.now),
        };
        self.tally.count(Counter::Cookie(cookie));
        let source = match arrival.transport {
            Transport::Tcp | Transport::Tls | Transport::Https => Source::Proven,
            Transport::Udp if cookie.proves() => Source::Proven,
            Transport::Udp => Source::Unproven,
        };
        let Arrival { subnet, qtype, zone, .. } = *arrival;
        let zone = zone.filter(|_| self.knows_zones);
        let action = rules.lists.action(&Asked { address, source, subnet, qtype, zone });
        let (mut entry, standing) = match action {
            None => (Entry::Enter, Standing::Ordinary),
            Some(Action::Refuse) => (Entry::Refuse, Standing::NoWake),
            Some(Action::Drop) => (Entry::Drop, Standing::NoWake),
            Some(Action::NoWake) => (Entry::Enter, Standing::NoWake),
            Some(Action::Exempt) => (Entry::Enter, Standing::Exempt),
        };
        if let Some(action) = action {
            self.tally.count(Counter::Rule(action));
        }
        let lacks_proof = rules.cookies == Cookies::Required && source == Source::Unproven;
        if lacks_proof && entry == Entry::Enter && standing != Standing::Exempt {
            entry = self.ask_for_proof(cookie);
        }
        if rules.dry_run {
            entry = Entry::Enter;
        }
        Client {
            entry,
            source,
            cookie,
            standing,
            hash: self.gate.hash.of(rules.bits.network(address)),
            address,
        }
    }

    /// Brings the client's buckets near, so that the cache misses of a batch overlap.
    #[inline]
    pub fn touch(&self, client: &Client) {
        self.rules.rate_table.touch(Key::new(client.hash, 0));
    }

    /// Judges an answer of that kind, and charges it to the client network. To be called once for each answer that
    /// is ready to be sent; over TCP it only counts.
    #[inline]
    pub fn rate(&self, client: &Client, kind: Kind) -> RateVerdict {
        let limited = client.source == Source::Unproven && client.standing != Standing::Exempt;
        let Some(limits) = self.rules.rate.as_ref().filter(|_| limited) else {
            self.tally.count(Counter::RateFree);
            return RateVerdict::Pass;
        };
        let who = (client.hash, client.address);
        let over = || self.tally.count_over();
        let look = limits.judge(&self.rules.rate_table, who, kind, self.now_us, over);
        self.tally.count(Counter::Rate(kind, look.verdict));
        if look.shared {
            self.tally.count(Counter::RateShared);
        }
        if self.rules.dry_run { RateVerdict::Pass } else { look.verdict }
    }

    /// Judges a wake, and charges it to all budgets or to none. To be called only where a wake would begin: not for
    /// a service that was asked for in this view already.
    pub fn wake(&self, client: &Client, zone: u16) -> WakeVerdict {
        let rules = &*self.rules;
        let judged = match (rules.wake_mode, client.standing) {
            (WakeMode::Off, _) => Err(WakeLimit::Mode),
            (WakeMode::On | WakeMode::DryRun, Standing::NoWake) => Err(WakeLimit::Rule),
            (WakeMode::On | WakeMode::DryRun, Standing::Exempt) => Ok(Counter::WakeExempt),
            (WakeMode::On | WakeMode::DryRun, Standing::Ordinary) => self
                .gate
                .budgets
                .spend(&rules.wake, client.hash, client.source, zone, self.now_us)
                .map(|()| Counter::Wake(client.source)),
        };
        let counter = judged.unwrap_or_else(|limit| match client.source {
            Source::Unproven => Counter::WakeRefusedUnproven(limit),
            Source::Proven => Counter::WakeRefusedProven(limit),
        });
        self.tally.count(counter);
        match (rules.wake_mode, judged) {
            (WakeMode::On, Ok(_)) => WakeVerdict::Wake,
            (WakeMode::On, Err(_)) if rules.dry_run => WakeVerdict::Wake,
            (WakeMode::On, Err(limit)) => WakeVerdict::Refused(limit),
            (WakeMode::DryRun | WakeMode::Off, _) => WakeVerdict::Refused(WakeLimit::Mode),
        }
    }

    /// Whether a wake, or a wait for one, is passed on.
    pub(crate) fn lets(&self, client: &Client, zone: u16, kind: AskKind) -> bool {
        match kind {
            AskKind::Wake => self.wake(client, zone).passes(),
            AskKind::Wait => self.may_wake(client),
        }
    }

    /// Whether any wake, or wait for one, of the client counts at all: no rule and no mode forbids it. Charges and
    /// counts nothing.
    #[inline]
    pub fn may_wake(&self, client: &Client) -> bool {
        match (self.rules.wake_mode, client.standing) {
            (WakeMode::DryRun | WakeMode::Off, _) => false,
            (WakeMode::On, Standing::NoWake) => self.rules.dry_run,
            (WakeMode::On, Standing::Ordinary | Standing::Exempt) => true,
        }
    }

    /// What the COOKIE option of the answer says; none: it has no such option. `cookie` as it arrived.
    #[inline]
    pub fn cookie_for(&self, client: &Client, cookie: Option<&Cookie>) -> Option<[u8; COOKIE_BYTES]> {
        self.secrets.answer(client.cookie, cookie, client.address, self.now)
    }

    #[cold]
    fn ask_for_proof(&self, cookie: CookieStatus) -> Entry {
        // A client that has never heard of cookies could do nothing with BADCOOKIE, and has no OPT for it perhaps.
        let (counter, entry) = match cookie {
            CookieStatus::None => (Counter::CookieMissing, Entry::Truncate),
            CookieStatus::ClientOnly | CookieStatus::Bad | CookieStatus::Valid | CookieStatus::Renew => {
                (Counter::BadCookie, Entry::BadCookie)
            }
        };
        self.tally.count(counter);
        entry
    }
}
