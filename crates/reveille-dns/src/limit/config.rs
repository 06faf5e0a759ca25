//! `[gate]`: every setting with its default and the reason for it.

use std::path::PathBuf;

use reveille_core::answer::Network;
use reveille_core::model::SpecFault;
use serde::{Deserialize, Serialize};

use super::bucket::{Limit, SET_BYTES};
use super::budget::WakeLimits;
use super::list::{self, Rule};
use super::rate::RateLimits;

/// Most answers or wakes in a second or minute, and of a burst.
const RATE_MAX: u32 = 1_000_000;
/// Longest time that a client network may need to have its whole burst back, in seconds.
const REFILL_S_MAX: u64 = 3_600;

const SECOND_US: u64 = 1_000_000;
const MINUTE_US: u64 = 60 * SECOND_US;

/// `[gate]`: who is answered, how often, and who may wake how much.
///
/// The defaults are to be felt by nobody who asks for what they use: neither a household, nor a provider's resolver
/// with a hundred thousand of them behind it. They bound what somebody can do who forges addresses or walks through
/// all names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GateConfig {
    /// Everything is judged and counted, and nothing is carried out: every answer goes out, every wake passes.
    /// Default false.
    pub dry_run: bool,
    /// Bits of an IPv4 address that name a client network, 8 to 32. Default 24, as with BIND, NSD and Knot: the
    /// smallest network that is routed by itself.
    pub ipv4_prefix: u8,
    /// Bits of an IPv6 address that name a client network, 16 to 64. Default 56, as with BIND and Knot: what a
    /// household is given.
    pub ipv6_prefix: u8,
    /// Limits of answers over UDP.
    pub rate: RateConfig,
    /// Budgets of wakes.
    pub wake: WakeConfig,
    /// DNS cookies.
    pub cookies: CookieConfig,
    /// Allow and deny lists: in order, the first that fits decides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rule: Vec<Rule>,
}

/// `[gate.rate]`: answers over UDP to one client network that has not proven its address, by kind of answer. For
/// each kind the answers per second (0: not limited) and how many may come at once after a rest.
///
/// NSD limits to 200 a second for a client network and kind where nothing else is set; it serves top-level domains
/// with that. BIND's and Knot's limits are off where nothing is set; BIND's manual goes down to 5 *equal* answers a
/// second, which does not compare: here all names of a kind count together. An answer of 100 bytes 200 times a second
/// is 160 kbit/s: no weapon. A resolver over the limit gets every second answer truncated, comes over TCP, and most of
/// them send cookies and are not limited anyway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateConfig {
    /// Whether answers are limited at all. Default true.
    pub enabled: bool,
    /// Answers with records, and referrals. Default 200 a second, 1,000 at once: a resolver that starts with an
    /// empty cache asks for everything at once. 5 s of it are the longest flood that goes unnoticed.
    pub positive_per_s: u32,
    /// See `positive_per_s`.
    pub positive_burst: u32,
    /// Answers that a name has nothing of a type. Default 400 a second, 2,000 at once: beside each A, browsers ask
    /// for AAAA and HTTPS, which many services do not have.
    pub nodata_per_s: u32,
    /// See `nodata_per_s`.
    pub nodata_burst: u32,
    /// Answers that a name does not exist. Default 100 a second, 500 at once: who asks for more walks through names.
    pub nxdomain_per_s: u32,
    /// See `nxdomain_per_s`.
    pub nxdomain_burst: u32,
    /// Errors: REFUSED, FORMERR, BADCOOKIE … Default 50 a second, 250 at once: no client that works needs them.
    pub error_per_s: u32,
    /// See `error_per_s`.
    pub error_burst: u32,
    /// Over the limit every `slip`-th answer is sent truncated, the others not at all. 1: all are truncated; 0: none
    /// is sent. Up to 1,000. Default 2, as with BIND and NSD: halves the packets, and a client that asks twice hears
    /// of TCP.
    pub slip: u32,
    /// Networks that are not limited. Default the host itself.
    pub exempt: Vec<Network>,
    /// Memory of the buckets in KiB, 64 to 262,144, rounded up to a power of two. Default 1,024: 115,000 client
    /// networks that are being answered within the same milliseconds; more share.
    pub table_kib: u32,
}

/// `[gate.wake]`: how many wakes questions may set off. Only a question that would begin a wake counts: not one for
/// a service that is awake or already waking. Each budget is wakes per minute (0: no budget) and how many may come
/// at once after a rest.
///
/// To be over a budget costs little: the answer is the same, and the first packet to the address wakes the service.
/// So the budgets can be low enough to hold back who walks through names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WakeConfig {
    /// `on`; `dry_run`: judged and counted, no wake is passed on; `off`: questions do not wake, packets do. Default
    /// `on`.
    pub mode: WakeMode,
    /// Of a client network; twice, for proven and for unproven addresses. Default 30 a minute, 60 at once: a page of
    /// links to 60 services opens, a resolver for many people wakes 1,800 services an hour, and a scanner needs
    /// more than two days for 100,000.
    pub client_per_min: u32,
    /// See `client_per_min`.
    pub client_burst: u32,
    /// Of a zone, for addresses that may be forged. Default 120 a minute, 240 at once: all that a flood can wake.
    pub zone_unproven_per_min: u32,
    /// See `zone_unproven_per_min`.
    pub zone_unproven_burst: u32,
    /// Of a zone, for clients with a server cookie or over TCP. Default 300 a minute, 300 at once.
    pub zone_proven_per_min: u32,
    /// See `zone_proven_per_min`.
    pub zone_proven_burst: u32,
    /// Of the host. Default 600 a minute, 600 at once, of which unproven addresses may use the first half; proven ones
    /// go first. More than a host restores in that time only makes a queue.
    pub host_per_min: u32,
    /// See `host_per_min`.
    pub host_burst: u32,
}

/// Whether questions wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WakeMode {
    /// They do.
    On,
    /// It is judged and counted, but no wake is passed on.
    DryRun,
    /// They do not; nothing is judged.
    Off,
}

/// `[gate.cookies]`: DNS cookies (RFC 7873, RFC 9018).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CookieConfig {
    /// Whether cookies are given out and believed. Default true.
    pub enabled: bool,
    /// Whether a question over UDP needs a server cookie to be answered: a client that knows cookies gets BADCOOKIE
    /// and its cookie, another a truncated answer, so that it comes over TCP. Default false; for times of attack.
    pub require: bool,
    /// Seconds after which a new secret is made, 3,600 to 3,110,400 (36 days, RFC 7873 §7.1). Default a day.
    pub rotate_s: u64,
    /// File with the secrets of all servers of an address (anycast), mode 600; read again when the configuration is.
    /// Without one the secret is random, and nobody but this process knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
}

impl Default for GateConfig {
    fn default() -> Self {
        Self {
            dry_run: false,
            ipv4_prefix: 24,
            ipv6_prefix: 56,
            rate: RateConfig::default(),
            wake: WakeConfig::default(),
            cookies: CookieConfig::default(),
            rule: Vec::new(),
        }
    }
}

impl Default for RateConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            positive_per_s: 200,
            positive_burst: 1_000,
            nodata_per_s: 400,
            nodata_burst: 2_000,
            nxdomain_per_s: 100,
            nxdomain_burst: 500,
            error_per_s: 50,
            error_burst: 250,
            slip: 2,
            exempt: vec![Network::LOOPBACK4, Network::LOOPBACK6],
            table_kib: 1_024,
        }
    }
}

impl Default for WakeConfig {
    fn default() -> Self {
        Self {
            mode: WakeMode::On,
            client_per_min: 30,
            client_burst: 60,
            zone_unproven_per_min: 120,
            zone_unproven_burst: 240,
            zone_proven_per_min: 300,
            zone_proven_burst: 300,
            host_per_min: 600,
            host_burst: 600,
        }
    }
}

impl Default for CookieConfig {
    fn default() -> Self {
        Self { enabled: true, require: false, rotate_s: 86_400, secret_file: None }
    }
}

/// Most networks under `rate.exempt`.
const EXEMPT_MAX: usize = 64;

impl GateConfig {
    /// Every value that is out of its range; keys are below `gate`.
    pub fn faults(&self) -> Vec<SpecFault> {
        let ranged = [
            ("ipv4_prefix", self.ipv4_prefix.into(), 8, 32),
            ("ipv6_prefix", self.ipv6_prefix.into(), 16, 64),
            ("rate.slip", self.rate.slip.into(), 0, 1_000),
            ("rate.table_kib", self.rate.table_kib.into(), 64, 262_144),
            ("cookies.rotate_s", self.cookies.rotate_s, 3_600, 3_110_400),
        ];
        let mut faults: Vec<SpecFault> = ranged
            .into_iter()
            .filter(|(_, value, least, most)| value < least || value > most)
            .map(|(key, value, least, most)| SpecFault::new(key, value, format!("{least} to {most}")))
            .collect();
        let exempt = self.rate.exempt.len();
        if exempt > EXEMPT_MAX {
            let allowed = format!("up to {EXEMPT_MAX} networks; more go into a rule with action \"exempt\"");
            faults.push(SpecFault::new("rate.exempt", format!("{exempt} networks"), allowed));
        }
        for limit in self.named_limits() {
            limit.faults(&mut faults);
        }
        faults.extend(list::faults(&self.rule));
        faults
    }

    /// Every rate with its keys, in the order in which `rate_limits` and `wake_limits` take them.
    fn named_limits(&self) -> [NamedLimit; 8] {
        let RateConfig {
            positive_per_s,
            positive_burst,
            nodata_per_s,
            nodata_burst,
            nxdomain_per_s,
            nxdomain_burst,
            error_per_s,
            error_burst,
            ..
        } = self.rate;
        let WakeConfig {
            client_per_min,
            client_burst,
            zone_unproven_per_min,
            zone_unproven_burst,
            zone_proven_per_min,
            zone_proven_burst,
            host_per_min,
            host_burst,
            ..
        } = self.wake;
        let per_s =
            |name, count, burst| NamedLimit { name, unit: "per_s", count, period_us: SECOND_US, burst };
        let per_min =
            |name, count, burst| NamedLimit { name, unit: "per_min", count, period_us: MINUTE_US, burst };
        [
            per_s("rate.positive", positive_per_s, positive_burst),
            per_s("rate.nodata", nodata_per_s, nodata_burst),
            per_s("rate.nxdomain", nxdomain_per_s, nxdomain_burst),
            per_s("rate.error", error_per_s, error_burst),
            per_min("wake.client", client_per_min, client_burst),
            per_min("wake.zone_unproven", zone_unproven_per_min, zone_unproven_burst),
            per_min("wake.zone_proven", zone_proven_per_min, zone_proven_burst),
            per_min("wake.host", host_per_min, host_burst),
        ]
    }

    /// The rate limits; none if they are off.
    pub(crate) fn rate_limits(&self) -> Option<RateLimits> {
        let [positive, nodata, nxdomain, error, ..] = self.named_limits().map(|limit| limit.limit());
        let RateConfig { enabled, slip, exempt, .. } = &self.rate;
        enabled.then(|| RateLimits::new([positive, nodata, nxdomain, error], *slip, exempt))
    }

    /// The budgets.
    pub(crate) fn wake_limits(&self) -> WakeLimits {
        let [.., client, zone_unproven, zone_proven, host] = self.named_limits().map(|limit| limit.limit());
        WakeLimits::new(client, zone_unproven, zone_proven, host)
    }

    /// Sets of the table of rate limits.
    pub(crate) fn rate_sets(&self) -> usize {
        usize::try_from(self.rate.table_kib).unwrap_or(usize::MAX).saturating_mul(1_024) / SET_BYTES
    }
}

/// A rate and a burst with their keys.
struct NamedLimit {
    name: &'static str,
    unit: &'static str,
    count: u32,
    period_us: u64,
    burst: u32,
}

impl NamedLimit {
    fn limit(&self) -> Option<Limit> {
        Limit::new(self.count, self.period_us, self.burst)
    }

    fn faults(&self, faults: &mut Vec<SpecFault>) {
        let Self { name, unit, count, period_us, burst } = *self;
        if count > RATE_MAX {
            let allowed = format!("0 (no limit) to {RATE_MAX}");
            faults.push(SpecFault::new(&format!("{name}_{unit}"), count, allowed));
        } else if !(1..=RATE_MAX).contains(&burst) {
            faults.push(SpecFault::new(&format!("{name}_burst"), burst, format!("1 to {RATE_MAX}")));
        } else if count > 0 && u64::from(burst) * period_us / u64::from(count) > REFILL_S_MAX * SECOND_US {
            let most = u64::from(count) * REFILL_S_MAX * SECOND_US / period_us;
            let allowed = format!("1 to {most}: what {name}_{unit} = {count} fills again within an hour");
            faults.push(SpecFault::new(&format!("{name}_burst"), burst, allowed));
        }
    }
}
