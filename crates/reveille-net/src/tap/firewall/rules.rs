//! The rules as text for `nft`. Pure.
//!
//! ```text
//! from a guest ─► arp: its own addresses alone ─► the host
//!              ─► source: its own addresses alone ─► input, forward: answers ─► there
//!                                                                  └► its way: its policy ─► there, as the host
//! ```
//!
//! Each guest has chains of its own, found by its device with one look into a map: a packet costs the same however many
//! guests there are. All of a guest's chains are replaced in one batch.

use std::fmt::Write;
use std::net::{IpAddr, Ipv6Addr};

use reveille_core::answer::Network;

use super::super::device::{DeviceName, GATEWAY, TapAddresses};
use super::{EgressPolicy, Member};

/// Removes all, whether it is there or not.
pub(super) const NONE: &str = "\
add table inet reveille
delete table inet reveille
add table arp reveille
delete table arp reveille
";

/// What holds for all guests. Before other filters (`filter - 10`), and before connections are tracked (`raw`).
const BASE: &str = r#"
table inet reveille {
    counter spoofed { comment "with an address that is not the guest's own" }
    counter refused { comment "to whom the guest may not speak by itself" }
    map sources { type ifname : verdict; }
    map ways { type ifname : verdict; }
    chain source {
        type filter hook prerouting priority raw; policy accept;
        iifname vmap @sources
        iifname "rvg*" counter name spoofed drop
    }
    chain input {
        type filter hook input priority filter - 10; policy accept;
        iifname != "rvg*" accept
        ct state established,related accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        jump way
    }
    chain forward {
        type filter hook forward priority filter - 10; policy accept;
        iifname != "rvg*" accept
        ct state established,related accept
        jump way
    }
    chain way {
        iifname vmap @ways
        counter name refused
        meta l4proto tcp reject with tcp reset
        reject with icmpx admin-prohibited
    }
    # A datagram may wait for its guest for longer than the kernel remembers one without an answer.
    ct timeout held4 { protocol udp; l3proto ip; policy = { unreplied : 660, replied : 180 }; }
    ct timeout held6 { protocol udp; l3proto ip6; policy = { unreplied : 660, replied : 180 }; }
    chain held {
        type filter hook postrouting priority filter; policy accept;
        oifname "rvh*" ct state new meta nfproto ipv4 meta l4proto udp ct timeout set "held4"
        oifname "rvh*" ct state new meta nfproto ipv6 meta l4proto udp ct timeout set "held6"
    }
    chain translate {
        type nat hook postrouting priority srcnat; policy accept;
        iifname "rvg*" oifname != "rv*" masquerade
    }
}
table arp reveille {
    map sources { type ifname : verdict; }
    chain source {
        type filter hook input priority filter; policy accept;
        iifname vmap @sources
        iifname "rvg*" drop
    }
}
"#;

/// Everybody's rules in the place of those that are there.
pub(super) fn whole<'a>(members: impl Iterator<Item = &'a Member>) -> String {
    let mut batch = format!("{NONE}{BASE}");
    for member in members {
        batch += &with(member);
    }
    batch
}

/// A guest's rules, in the place of those that it has.
pub(super) fn with(member: &Member) -> String {
    let Names { device, key } = Names::of(member);
    let mut batch = String::new();
    for (table, chain) in [("inet", "s"), ("inet", "w"), ("arp", "s")] {
        // Writing to a string does not fail.
        let _ = writeln!(
            batch,
            "add chain {table} reveille {chain}{key}\nflush chain {table} reveille {chain}{key}"
        );
    }
    for rule in source_rules(&member.addresses) {
        let _ = writeln!(batch, "add rule inet reveille s{key} {rule}");
    }
    for rule in arp_rules(&member.addresses) {
        let _ = writeln!(batch, "add rule arp reveille s{key} {rule}");
    }
    for rule in way_rules(&member.egress) {
        let _ = writeln!(batch, "add rule inet reveille w{key} {rule}");
    }
    for (map, verdict) in [
        ("inet reveille sources", "goto s"),
        ("inet reveille ways", "jump w"),
        ("arp reveille sources", "goto s"),
    ] {
        let _ = writeln!(batch, "add element {map} {{ \"{device}\" : {verdict}{key} }}");
    }
    batch
}

/// Takes a guest's rules away.
pub(super) fn without(member: &Member) -> String {
    let Names { device, key } = Names::of(member);
    let mut batch = String::new();
    for map in ["inet reveille sources", "inet reveille ways", "arp reveille sources"] {
        let _ = writeln!(batch, "delete element {map} {{ \"{device}\" }}");
    }
    for (table, chain) in [("inet", "s"), ("inet", "w"), ("arp", "s")] {
        let _ = writeln!(
            batch,
            "flush chain {table} reveille {chain}{key}\ndelete chain {table} reveille {chain}{key}"
        );
    }
    batch
}

/// What a guest is called in the rules.
struct Names {
    device: DeviceName,
    key: String,
}

impl Names {
    fn of(member: &Member) -> Self {
        let v4 = member.addresses.v4;
        Self { device: DeviceName::of_guest(v4), key: format!("{:08x}", v4.to_bits()) }
    }
}

/// IP packets, neighbour discovery among them.
fn source_rules(addresses: &TapAddresses) -> Vec<String> {
    const SPOOFED: &str = "counter name spoofed drop";
    let (mac, link) = (mac(addresses), link_local(addresses));
    let mut rules = vec![
        format!("ether saddr != {mac} {SPOOFED}"),
        format!("ip saddr {} accept", addresses.v4),
        // The target of an advertisement is whom it says to be (RFC 4861 §4.4).
        format!("icmpv6 type nd-neighbor-advert @th,64,128 != {{ {} }} {SPOOFED}", targets(addresses, link)),
    ];
    rules.extend(addresses.v6.map(|v6| format!("ip6 saddr {v6} accept")));
    // Its address on the link, which it makes of its hardware address (RFC 4291 §2.5.1), is for neighbours alone.
    rules.push(format!(
        "ip6 saddr {{ ::, {link} }} icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept"
    ));
    // Group membership and the search for routers: of no use here, and no offence.
    rules.push(format!("ip6 saddr {{ ::, {link} }} drop"));
    rules.push(SPOOFED.to_owned());
    rules
}

/// The numbers that an advertisement's target may be.
fn targets(addresses: &TapAddresses, link: Ipv6Addr) -> String {
    let all = addresses.v6.into_iter().chain([link]);
    all.map(|address| format!("{:#034x}", address.to_bits())).collect::<Vec<_>>().join(", ")
}

/// ARP (RFC 826): who it is, to whom it says so, and nobody else's business.
fn arp_rules(addresses: &TapAddresses) -> Vec<String> {
    vec![
        // With the address zero it asks whether somebody has its own (RFC 5227 §2.1).
        format!(
            "arp htype 1 arp ptype 0x0800 arp hlen 6 arp plen 4 arp saddr ether {} arp saddr ip {{ 0.0.0.0, {} }} \
             arp daddr ip {GATEWAY} accept",
            mac(addresses),
            addresses.v4
        ),
        "drop".to_owned(),
    ]
}

/// What it may begin by itself: a rule that accepts, or `return` to be refused.
fn way_rules(egress: &EgressPolicy) -> Vec<String> {
    let EgressPolicy::Nat { allow, deny, nameserver } = egress else { return Vec::new() };
    let mut rules = Vec::new();
    each_family(deny, |family, networks| rules.push(format!("{family} daddr {networks} return")));
    if let Some(server) = nameserver {
        let family = family(*server);
        rules.push(format!("{family} daddr {server} meta l4proto {{ tcp, udp }} th dport 53 accept"));
    }
    let single = |network: &&Network| is_single(network);
    let singles: Vec<Network> = allow.iter().filter(single).copied().collect();
    each_family(&singles, |family, networks| rules.push(format!("{family} daddr {networks} accept")));
    rules.extend([
        // Other guests; the host itself; whom only the neighbours on a link reach, such as a cloud's metadata.
        "oifname \"rv*\" return".to_owned(),
        "fib daddr type { local, broadcast, anycast, multicast } return".to_owned(),
        "ip daddr { 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3 } return".to_owned(),
        "ip6 daddr { ::/127, fe80::/10, ff00::/8, fd00:ec2::254 } return".to_owned(),
    ]);
    if allow.is_empty() {
        rules.push("accept".to_owned());
    } else {
        each_family(allow, |family, networks| rules.push(format!("{family} daddr {networks} accept")));
    }
    rules
}

/// Calls `rule` with the networks of each family that has any, as a set.
fn each_family(networks: &[Network], mut rule: impl FnMut(&str, String)) {
    for name in ["ip", "ip6"] {
        let mut own: Vec<Network> =
            networks.iter().filter(|network| family(network.address()) == name).copied().collect();
        own.sort_unstable();
        own.dedup();
        // nft takes no network twice: one within another is left out.
        let wider = own.clone();
        own.retain(|inner| {
            !wider.iter().any(|outer| outer.prefix() < inner.prefix() && outer.contains(inner.address()))
        });
        if own.iter().any(|network| network.prefix() == 0) {
            rule(name, if name == "ip" { "0.0.0.0/0" } else { "::/0" }.to_owned());
        } else if !own.is_empty() {
            let texts: Vec<String> = own.iter().map(Network::to_string).collect();
            rule(name, format!("{{ {} }}", texts.join(", ")));
        }
    }
}

fn is_single(network: &Network) -> bool {
    network.prefix() == if network.address().is_ipv4() { 32 } else { 128 }
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

fn mac(addresses: &TapAddresses) -> String {
    addresses.mac().map(|byte| format!("{byte:02x}")).join(":")
}

fn link_local(addresses: &TapAddresses) -> Ipv6Addr {
    let [a, b, c, d, e, f] = addresses.mac().map(u16::from);
    Ipv6Addr::new(0xfe80, 0, 0, 0, ((a ^ 2) << 8) | b, (c << 8) | 0xff, 0xfe00 | d, (e << 8) | f)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(egress: EgressPolicy) -> Member {
        let addresses =
            TapAddresses { v4: "10.64.0.1".parse().unwrap(), v6: Some("fd64::a40:1".parse().unwrap()) };
        Member { addresses, egress }
    }

    #[test]
    fn a_guest_has_its_own_addresses_and_no_others() {
        let batch = with(&member(EgressPolicy::None));
        for line in [
            "add rule inet reveille s0a400001 ether saddr != 52:56:0a:40:00:01 counter name spoofed drop",
            "add rule inet reveille s0a400001 ip saddr 10.64.0.1 accept",
            "add rule inet reveille s0a400001 ip6 saddr fd64::a40:1 accept",
            "@th,64,128 != { 0xfd64000000000000000000000a400001, 0xfe8000000000000050560afffe400001 }",
            "ip6 saddr { ::, fe80::5056:aff:fe40:1 } icmpv6 type",
            "add element inet reveille sources { \"rvg0a400001\" : goto s0a400001 }",
        ] {
            assert!(batch.contains(line), "{line} in:\n{batch}");
        }
        assert!(!batch.contains("add rule inet reveille w0a400001"), "nothing is open:\n{batch}");
    }

    #[test]
    fn what_is_denied_comes_first_and_what_is_closed_to_all_opens_only_by_name() {
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let rules = way_rules(&EgressPolicy::Nat {
            allow: networks(&["0.0.0.0/0", "10.64.0.2", "192.0.2.0/24", "192.0.2.128/25"]),
            deny: networks(&["198.51.100.0/24", "2001:db8::/32", "198.51.100.7"]),
            nameserver: Some("192.0.2.53".parse().unwrap()),
        });
        assert_eq!(
            rules,
            [
                "ip daddr { 198.51.100.0/24 } return",
                "ip6 daddr { 2001:db8::/32 } return",
                "ip daddr 192.0.2.53 meta l4proto { tcp, udp } th dport 53 accept",
                "ip daddr { 10.64.0.2/32 } accept",
                "oifname \"rv*\" return",
                "fib daddr type { local, broadcast, anycast, multicast } return",
                "ip daddr { 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3 } return",
                "ip6 daddr { ::/127, fe80::/10, ff00::/8, fd00:ec2::254 } return",
                "ip daddr 0.0.0.0/0 accept",
            ]
        );
    }
}
