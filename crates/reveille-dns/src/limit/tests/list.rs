//! Lists: the first rule that fits, however they are stored.

use std::net::IpAddr;

use proptest::prelude::*;
use reveille_core::answer::Network;
use reveille_core::model::DomainName;

use super::super::client::Source;
use super::super::list::{Action, Asked, Lists, NETWORKS_MAX, QueryType, RULES_MAX, Rule, faults};
use super::Numbers;
use crate::wire::{Query, Subnet};

/// A client subnet, by way of a packet.
fn subnet(address: IpAddr, prefix: u8) -> Subnet {
    let (family, octets) = match address {
        IpAddr::V4(address) => (1, address.octets().to_vec()),
        IpAddr::V6(address) => (2, address.octets().to_vec()),
    };
    let octets = &octets[..usize::from(prefix).div_ceil(8)];
    let length = u8::try_from(octets.len() + 4).unwrap();
    let mut packet = vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 41, 4, 208, 0, 0, 0, 0];
    packet.extend([0, length + 4, 0, 8, 0, length, 0, family, prefix, 0]);
    packet.extend(octets);
    Query::parse(&packet).unwrap().edns.unwrap().subnet.unwrap()
}

fn zone_number(apex: &DomainName) -> Option<u16> {
    match apex.to_string().as_str() {
        "a.test" => Some(0),
        "b.test" => Some(1),
        _ => None,
    }
}

/// As the words say it: rule after rule, condition after condition.
fn plainly(rules: &[Rule], asked: &Asked<'_>) -> Option<Action> {
    let fits = |rule: &&Rule| {
        let network = rule.network.is_empty() || rule.network.iter().any(|one| one.contains(asked.address));
        let inside = |subnet: &Subnet| rule.subnet.iter().any(|one| subnet.is_inside(one));
        let subnet = rule.subnet.is_empty() || asked.subnet.is_some_and(inside);
        let qtype = rule.qtype.is_empty() || rule.qtype.contains(&QueryType(asked.qtype));
        let zones: Vec<u16> = rule.zone.iter().filter_map(zone_number).collect();
        let zone = rule.zone.is_empty() || asked.zone.is_some_and(|zone| zones.contains(&zone));
        network && subnet && qtype && zone && rule.source.is_none_or(|source| source == asked.source)
    };
    rules.iter().find(fits).map(|rule| rule.action)
}

/// Addresses close to each other, so that networks and questions meet.
fn address(numbers: &mut Numbers) -> IpAddr {
    let low = u32::try_from(numbers.below(16) << 28 | numbers.below(4) << 8 | numbers.below(3)).unwrap();
    if numbers.below(2) == 0 {
        std::net::Ipv4Addr::from_bits(low).into()
    } else {
        std::net::Ipv6Addr::from_bits(u128::from(low) << 96 | u128::from(low)).into()
    }
}

fn network(numbers: &mut Numbers) -> Network {
    let address = address(numbers);
    let prefix = [0, 4, 24, 31, 32, 128][usize::try_from(numbers.below(6)).unwrap()];
    let prefix = if address.is_ipv4() { prefix.min(32) } else { prefix };
    match format!("{address}/{prefix}").parse() {
        Ok(network) => network,
        Err(reveille_core::answer::NetworkError::HostBits { meant, .. }) => meant,
        Err(error) => panic!("{error}"),
    }
}

fn rule(numbers: &mut Numbers) -> Rule {
    let actions = [Action::Refuse, Action::Drop, Action::NoWake, Action::Exempt];
    let mut rule = Rule::all(actions[usize::try_from(numbers.below(4)).unwrap()]);
    rule.network = (0..numbers.below(4)).map(|_| network(numbers)).collect();
    rule.subnet = (0..numbers.below(5).saturating_sub(3)).map(|_| network(numbers)).collect();
    if numbers.below(3) == 0 {
        rule.qtype = vec![QueryType(28), QueryType(1)];
    }
    if numbers.below(3) == 0 {
        rule.zone =
            vec![["a.test", "b.test", "c.test"][usize::try_from(numbers.below(3)).unwrap()].parse().unwrap()];
    }
    if numbers.below(4) == 0 {
        rule.source = Some(Source::Proven);
    }
    rule
}

proptest! {
    #[test]
    fn the_first_rule_that_fits_decides(seed: u64, count in 0u64..12) {
        let mut numbers = Numbers(seed);
        let rules: Vec<Rule> = (0..count).map(|_| rule(&mut numbers)).collect();
        let lists = Lists::new(&rules, zone_number).unwrap();
        for _ in 0..200 {
            let subnet = (numbers.below(2) == 0).then(|| {
                let network = network(&mut numbers);
                subnet(network.address(), network.prefix())
            });
            let asked = Asked {
                address: address(&mut numbers),
                source: if numbers.below(2) == 0 { Source::Proven } else { Source::Unproven },
                subnet: subnet.as_ref(),
                qtype: [1, 28, 16][usize::try_from(numbers.below(3)).unwrap()],
                zone: [None, Some(0), Some(1)][usize::try_from(numbers.below(3)).unwrap()],
            };
            prop_assert_eq!(lists.action(&asked), plainly(&rules, &asked), "{:?} {:?}", asked, rules);
        }
    }
}

#[test]
fn the_largest_lists_that_are_allowed_are_made_and_searched() {
    let rules: Vec<Rule> = (0..RULES_MAX)
        .map(|number| {
            let network = (0..NETWORKS_MAX / RULES_MAX)
                .map(|part| format!("10.{}.{}.{}/32", number / 256, number % 256, part).parse().unwrap())
                .collect();
            Rule { network, qtype: vec![QueryType(1)], ..Rule::all(Action::NoWake) }
        })
        .collect();
    assert_eq!(faults(&rules), []);
    let lists = Lists::new(&rules, |_| None).unwrap();
    let asked = |address: &str, qtype| {
        let address = address.parse().unwrap();
        lists.action(&Asked { address, source: Source::Unproven, subnet: None, qtype, zone: None })
    };
    assert_eq!(asked("10.3.255.15", 1), Some(Action::NoWake));
    assert_eq!(asked("10.3.255.15", 28), None);
    assert_eq!(asked("10.3.255.16", 1), None);
    assert_eq!(asked("255.255.255.255", 1), None);
    assert_eq!(asked("::", 1), None);
}

#[test]
fn what_is_too_much_or_unsafe_is_a_fault() {
    let many = vec![Rule::all(Action::Drop); RULES_MAX + 1];
    assert_eq!(faults(&many)[0].key, "rule");
    let network: Network = "192.0.2.0/24".parse().unwrap();
    let wide = Rule { network: vec![network; NETWORKS_MAX + 1], ..Rule::all(Action::Drop) };
    assert!(faults(&[wide])[0].value.contains("16385"));
    // Anybody can say for whom they ask.
    let mut believing = Rule { subnet: vec![network], ..Rule::all(Action::Exempt) };
    let found = faults(&[Rule::all(Action::NoWake), believing.clone()]);
    assert_eq!((found.len(), found[0].key.as_str()), (1, "rule[1].subnet"));
    believing.network = vec!["198.51.100.53".parse().unwrap()];
    assert_eq!(faults(&[believing]), []);
}

#[test]
fn rules_that_lie_in_each_other_are_kept_once_or_are_a_fault() {
    let conditional =
        |network: Vec<Network>| Rule { network, qtype: vec![QueryType(1)], ..Rule::all(Action::NoWake) };
    let mut everywhere = vec![conditional(Vec::new()); RULES_MAX - 1];
    let part = |part: usize| format!("10.{}.{}.0/24", part / 256, part % 256).parse().unwrap();
    everywhere.push(Rule { network: (0..2_000).map(part).collect(), ..Rule::all(Action::Drop) });
    assert_eq!(faults(&everywhere), [], "pieces with the same rules share them");
    // Half of the rules fit everywhere; of the others every two meet somewhere else.
    let half = RULES_MAX / 2;
    let mut tangled = vec![conditional(Vec::new()); half];
    for rule in 0..half {
        let meet = |with: usize| [rule * 16 + with, (rule + half - with) % half * 16 + with];
        tangled.push(conditional((0..16).flat_map(meet).map(part).collect()));
    }
    let found = faults(&tangled);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].allowed.contains("networks that lie in each other"), "{found:?}");
}

#[test]
fn query_types_are_written_as_people_write_them() {
    for (text, number) in [("A", 1), ("aaaa", 28), ("HTTPS", 65), ("TYPE65280", 65_280), ("ANY", 255)] {
        assert_eq!(text.parse::<QueryType>(), Ok(QueryType(number)), "{text}");
    }
    assert_eq!(QueryType(28).to_string(), "AAAA");
    let error = "HOUSE".parse::<QueryType>().unwrap_err().to_string();
    assert!(error.contains("`HOUSE`"), "{error}");
}
