//! Allow and deny lists: rules in the order of the config file; the first that fits a question decides.
//!
//! A question is compared with few rules, however many there are: when the lists are made, the addresses are cut
//! at every border of a network, and each of the pieces gets the rules that can fit an address in it, up to the
//! first one that fits all of them. Piece and rules are found by halving.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use domain::base::iana::Rtype;
use reveille_core::answer::Network;
use reveille_core::model::{DomainName, SpecFault};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::client::Source;
use crate::wire::Subnet;

/// Most rules.
pub const RULES_MAX: usize = 1_024;
/// Most networks and subnets in all rules together.
pub const NETWORKS_MAX: usize = 16_384;
/// Most query types, and most zones, of one rule.
pub const NAMES_PER_RULE_MAX: usize = 256;
/// Most entries of all pieces of the address space together: 2 MiB. Only many rules with conditions over many
/// networks that lie in each other come near it.
const CANDIDATES_MAX: usize = 1 << 20;

/// What becomes of a question that a rule fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is answered with REFUSED.
    Refuse,
    /// It is not answered.
    Drop,
    /// It is answered and wakes nothing: monitors, scanners, crawlers.
    NoWake,
    /// It is answered without a rate limit, and wakes whatever the budgets say.
    Exempt,
}

/// A query type as config files name it: `A`, `HTTPS`, `TYPE65`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryType(pub u16);

/// A text is no query type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no query type; write one such as A, TXT, HTTPS or TYPE65280")]
pub struct QueryTypeError(String);

impl FromStr for QueryType {
    type Err = QueryTypeError;

    fn from_str(text: &str) -> Result<Self, QueryTypeError> {
        let rtype = text.parse::<Rtype>().map_err(|_| QueryTypeError(text.to_owned()))?;
        Ok(Self(rtype.to_int()))
    }
}

impl fmt::Display for QueryType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Rtype::from_int(self.0).fmt(f)
    }
}

impl Serialize for QueryType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for QueryType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// `[[gate.rule]]`: fits a question that fits each condition that is given; a list is fitted by any of its entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What becomes of the question.
    pub action: Action,
    /// Networks of the asker, mostly a resolver.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network: Vec<Network>,
    /// Networks for which a resolver says that it asks (EDNS client subnet). Anybody can say that, so a rule that
    /// exempts must name the resolver's network too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnet: Vec<Network>,
    /// Query types.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub qtype: Vec<QueryType>,
    /// Apexes of zones in which the name lies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zone: Vec<DomainName>,
    /// Whether the asker's address is proven: by a server cookie, or over TCP. Where a network can be forged, a rule
    /// that exempts it should ask for `proven`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

impl Rule {
    /// A rule that fits every question.
    pub fn all(action: Action) -> Self {
        let (network, subnet, qtype, zone) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { action, network, subnet, qtype, zone, source: None }
    }
}

/// Every fault of the rules; keys begin with `rule[0]`.
pub fn faults(rules: &[Rule]) -> Vec<SpecFault> {
    let mut faults = Vec::new();
    if rules.len() > RULES_MAX {
        let given = format!("{} rules", rules.len());
        faults.push(SpecFault::new("rule", given, format!("up to {RULES_MAX} rules")));
        return faults;
    }
    let networks: usize = rules.iter().map(|rule| rule.network.len() + rule.subnet.len()).sum();
    if networks > NETWORKS_MAX {
        let given = format!("{networks} networks");
        faults.push(SpecFault::new("rule", given, format!("up to {NETWORKS_MAX} in all rules together")));
        return faults;
    }
    for (index, rule) in rules.iter().enumerate() {
        for (key, count) in [("qtype", rule.qtype.len()), ("zone", rule.zone.len())] {
            if count > NAMES_PER_RULE_MAX {
                let allowed = format!("up to {NAMES_PER_RULE_MAX}");
                faults.push(SpecFault::new(&format!("rule[{index}].{key}"), count, allowed));
            }
        }
        if rule.action == Action::Exempt && rule.network.is_empty() && !rule.subnet.is_empty() {
            let allowed = "`network` beside it, the resolvers that are believed: anybody can send any subnet";
            let given = rule.subnet.iter().map(Network::to_string).collect::<Vec<_>>().join(", ");
            faults.push(SpecFault::new(&format!("rule[{index}].subnet"), given, allowed));
        }
    }
    if let Err(fault) = Lists::new(rules, |_| None) {
        faults.push(fault);
    }
    faults
}

/// What of a question rules are compared with.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'q> {
    /// The asker's address, IPv4 not written as IPv6.
    pub address: IpAddr,
    /// Whether it is the asker's.
    pub source: Source,
    /// Client subnet.
    pub subnet: Option<&'q Subnet>,
    /// Query type.
    pub qtype: u16,
    /// Number of the zone, if the name is in one that is served.
    pub zone: Option<u16>,
}

/// The rules in force.
#[derive(Debug, Default)]
pub struct Lists {
    rules: Box<[Compiled]>,
    v4: Pieces<u32>,
    v6: Pieces<u128>,
}

/// What is left of a rule when its networks are known to fit.
#[derive(Debug)]
struct Compiled {
    action: Action,
    subnet: Box<[Network]>,
    /// Sorted.
    qtype: Box<[u16]>,
    /// Sorted. None: any zone, or none.
    zone: Option<Box<[u16]>>,
    source: Option<Source>,
}

impl Compiled {
    fn is_unconditional(&self) -> bool {
        self.subnet.is_empty() && self.qtype.is_empty() && self.zone.is_none() && self.source.is_none()
    }

    #[inline]
    fn fits(&self, asked: &Asked<'_>) -> bool {
        let fits_subnet = || {
            let inside = |subnet: &Subnet| self.subnet.iter().any(|network| subnet.is_inside(network));
            self.subnet.is_empty() || asked.subnet.is_some_and(inside)
        };
        let fits_zone = |zones: &[u16]| asked.zone.is_some_and(|zone| zones.binary_search(&zone).is_ok());
        (self.qtype.is_empty() || self.qtype.binary_search(&asked.qtype).is_ok())
            && self.source.is_none_or(|source| source == asked.source)
            && self.zone.as_deref().is_none_or(fits_zone)
            && fits_subnet()
    }
}

impl Lists {
    /// These rules. `number` gives a zone's number by its apex; a rule whose zones all have none fits nothing.
    ///
    /// # Errors
    /// The rules lie in each other so often that the lists would be too large.
    pub fn new(rules: &[Rule], number: impl Fn(&DomainName) -> Option<u16>) -> Result<Self, SpecFault> {
        let sorted = |mut numbers: Vec<u16>| {
            numbers.sort_unstable();
            numbers.into_boxed_slice()
        };
        let compiled: Box<[Compiled]> = rules
            .iter()
            .map(|rule| Compiled {
                action: rule.action,
                subnet: rule.subnet.as_slice().into(),
                qtype: sorted(rule.qtype.iter().map(|qtype| qtype.0).collect()),
                zone: (!rule.zone.is_empty()).then(|| sorted(rule.zone.iter().filter_map(&number).collect())),
                source: rule.source,
            })
            .collect();
        let ends_search = |rule: u16| compiled.get(usize::from(rule)).is_some_and(Compiled::is_unconditional);
        let v4 = Pieces::new(rules, range4, ends_search)?;
        let v6 = Pieces::new(rules, range6, ends_search)?;
        Ok(Self { rules: compiled, v4, v6 })
    }

    /// What the first rule that fits says.
    #[inline]
    pub fn action(&self, asked: &Asked<'_>) -> Option<Action> {
        if self.rules.is_empty() {
            return None;
        }
        let candidates = match asked.address {
            IpAddr::V4(address) => self.v4.of(address.to_bits()),
            IpAddr::V6(address) => self.v6.of(address.to_bits()),
        };
        let mut rules = candidates.iter().filter_map(|&rule| self.rules.get(usize::from(rule)));
        rules.find(|rule| rule.fits(asked)).map(|rule| rule.action)
    }
}

/// The address space of one family in pieces, each with the rules that can fit an address in it.
#[derive(Debug, Default)]
struct Pieces<A> {
    /// First address of each piece, rising; the first is zero.
    starts: Box<[A]>,
    /// Of each piece, where its rules stand in `candidates`.
    spans: Box<[(u32, u32)]>,
    /// Numbers of rules, in order. Pieces with the same rules share them.
    candidates: Box<[u16]>,
}

/// First and last address of a network of that family.
type Range<A> = fn(&Network) -> Option<(A, A)>;

impl<A: Copy + Ord + Default + Step> Pieces<A> {
    fn new(rules: &[Rule], range: Range<A>, ends_search: impl Fn(u16) -> bool) -> Result<Self, SpecFault> {
        // What begins and ceases to fit at an address: rule and whether it begins. A rule may have networks that
        // lie in each other.
        let mut borders: BTreeMap<A, Vec<(u16, bool)>> = BTreeMap::from([(A::default(), Vec::new())]);
        for (rule, number) in rules.iter().zip(0u16..) {
            if rule.network.is_empty() {
                borders.entry(A::default()).or_default().push((number, true));
            }
            for (first, last) in rule.network.iter().filter_map(range) {
                borders.entry(first).or_default().push((number, true));
                if let Some(after) = last.next() {
                    borders.entry(after).or_default().push((number, false));
                }
            }
        }
        let mut fitting: BTreeMap<u16, usize> = BTreeMap::new();
        let mut known: BTreeMap<Vec<u16>, (u32, u32)> = BTreeMap::new();
        let (mut starts, mut spans, mut candidates) = (Vec::new(), Vec::new(), Vec::new());
        for (start, changes) in borders {
            for (rule, begins) in changes {
                let count = fitting.entry(rule).or_default();
                *count = if begins { *count + 1 } else { count.saturating_sub(1) };
            }
            fitting.retain(|_, count| *count > 0);
            let mut here = Vec::new();
            for &rule in fitting.keys() {
                here.push(rule);
                if ends_search(rule) {
                    break;
                }
            }
            let span = known.get(&here).copied().unwrap_or_else(|| {
                let first = candidates.len();
                candidates.extend_from_slice(&here);
                let place = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
                let span = (place(first), place(candidates.len()));
                known.insert(here, span);
                span
            });
            if candidates.len() > CANDIDATES_MAX {
                let given = format!("{} rules", rules.len());
                let allowed = "fewer rules with conditions for networks that lie in each other";
                return Err(SpecFault::new("rule", given, allowed));
            }
            starts.push(start);
            spans.push(span);
        }
        Ok(Self { starts: starts.into(), spans: spans.into(), candidates: candidates.into() })
    }

    #[inline]
    fn of(&self, address: A) -> &[u16] {
        let piece = self.starts.partition_point(|&start| start <= address).saturating_sub(1);
        let place = |at: u32| usize::try_from(at).ok();
        let span = self.spans.get(piece).and_then(|&(first, end)| Some(place(first)?..place(end)?));
        span.and_then(|span| self.candidates.get(span)).unwrap_or_default()
    }
}

/// The address after one.
trait Step: Sized {
    fn next(self) -> Option<Self>;
}

impl Step for u32 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Step for u128 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

fn range4(network: &Network) -> Option<(u32, u32)> {
    let IpAddr::V4(first) = network.address() else { return None };
    let below = u32::MAX.checked_shr(network.prefix().into()).unwrap_or(0);
    Some((first.to_bits(), first.to_bits() | below))
}

fn range6(network: &Network) -> Option<(u128, u128)> {
    let IpAddr::V6(first) = network.address() else { return None };
    let below = u128::MAX.checked_shr(network.prefix().into()).unwrap_or(0);
    Some((first.to_bits(), first.to_bits() | below))
}
