//! The zones that all servers are given.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use reveille_core::answer::{ServiceView, Zone};
use reveille_core::model::DomainName;
use reveille_dns::zonefile;

use super::common::{active, service};

/// A zone as text.
pub struct ZoneText {
    pub apex: DomainName,
    /// As Reveille is given it.
    pub text: String,
    /// What Reveille has as services and the others as records.
    services: &'static [(&'static str, Ipv4Addr, Option<Ipv6Addr>)],
}

/// TTL of a running service's addresses, in seconds.
const SERVICE_TTL_S: u32 = 60;
/// Services of `conform.test`: beside static names, above and below others, with both kinds of addresses, a wildcard.
const SERVICES: [(&str, Ipv4Addr, Option<Ipv6Addr>); 6] = [
    ("service.conform.test", Ipv4Addr::new(127, 64, 0, 1), None),
    ("both.conform.test", Ipv4Addr::new(127, 64, 0, 2), Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2))),
    ("below.service.conform.test", Ipv4Addr::new(127, 64, 0, 3), None),
    ("in.service-ent.conform.test", Ipv4Addr::new(127, 64, 0, 4), None),
    ("*.service-wild.conform.test", Ipv4Addr::new(127, 64, 0, 5), None),
    ("x.wild.service.conform.test", Ipv4Addr::new(127, 64, 0, 6), None),
];
/// Services of `star.test`, where a wildcard stands for every other name.
const STAR_SERVICES: [(&str, Ipv4Addr, Option<Ipv6Addr>); 2] = [
    ("service.star.test", Ipv4Addr::new(127, 64, 0, 7), None),
    ("a.b.star.test", Ipv4Addr::new(127, 64, 0, 8), None),
];

impl ZoneText {
    fn new(apex: &str, text: &str) -> Self {
        Self { apex: apex.parse().unwrap(), text: text.to_owned(), services: &[] }
    }

    /// As the others are given it: services are records like any.
    pub fn static_text(&self) -> String {
        let mut text = self.text.clone();
        for (name, address, address6) in self.services {
            writeln!(text, "{name}. {SERVICE_TTL_S} A {address}").unwrap();
            if let Some(address6) = address6 {
                writeln!(text, "{name}. {SERVICE_TTL_S} AAAA {address6}").unwrap();
            }
        }
        text
    }

    /// The services, all of them running, so that their answers are as steady as records.
    pub fn services(&self) -> Vec<ServiceView> {
        let running = |(name, address, address6): &(&str, Ipv4Addr, Option<Ipv6Addr>)| ServiceView {
            address: *address,
            address6: *address6,
            ttl_s: SERVICE_TTL_S,
            ..active(service(name, 0))
        };
        self.services.iter().map(running).collect()
    }

    /// Name of its file.
    pub fn file(&self) -> String {
        format!("{}.zone", if self.apex.label_count() == 0 { "root".into() } else { self.apex.to_string() })
    }

    /// Its apex with a final dot.
    pub fn apex_text(&self) -> String {
        if self.apex.label_count() == 0 { ".".into() } else { format!("{}.", self.apex) }
    }

    /// As Reveille reads it.
    pub fn zone(&self) -> Zone {
        zonefile::parse(&self.file(), &self.text, &self.apex).unwrap_or_else(|faults| {
            panic!("{}", faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        })
    }
}

/// Every zone but the root.
pub fn all() -> Vec<ZoneText> {
    let mut zones = vec![
        ZoneText::new("conform.test", include_str!("zones/conform.test.zone")),
        ZoneText::new("child.conform.test", include_str!("zones/child.conform.test.zone")),
        ZoneText::new("deep.cut2.conform.test", include_str!("zones/deep.cut2.conform.test.zone")),
        ZoneText::new("undel.conform.test", include_str!("zones/undel.conform.test.zone")),
        ZoneText::new("x.undel2.conform.test", include_str!("zones/x.undel2.conform.test.zone")),
        ZoneText::new("other.test", include_str!("zones/other.test.zone")),
        ZoneText::new("star.test", include_str!("zones/star.test.zone")),
        ZoneText::new("2.0.192.in-addr.arpa", include_str!("zones/2.0.192.in-addr.arpa.zone")),
        ZoneText::new("x.y", include_str!("zones/x.y.zone")),
    ];
    zones[0].text += &sizes();
    zones[0].services = &SERVICES;
    zones[6].services = &STAR_SERVICES;
    zones[8].text += &long_names();
    zones
}

/// The root and a zone below it that it delegates.
pub fn root() -> Vec<ZoneText> {
    vec![
        ZoneText::new(".", include_str!("zones/root.zone")),
        ZoneText::new("other.test", include_str!("zones/other.test.zone")),
    ]
}

/// RRsets whose answers are just as long as a limit, or a little more or less, or very long.
fn sizes() -> String {
    let mut text = String::from("$ORIGIN conform.test.\n$TTL 60\n");
    for limit in [512usize, 1_232, 4_096] {
        // With and without an OPT of eleven bytes.
        for over in [-12isize, -11, -10, -1, 0, 1] {
            let label = format!("to{limit}{}", over.to_string().replace('-', "m"));
            // Header, question (with the name, type and class), and the record's fixed part with a pointer as owner.
            let fixed = 12 + 1 + label.len() + "conform.test".len() + 2 + 4 + 12;
            let data = limit.strict_add_signed(over) - fixed;
            writeln!(text, "{label} TXT {}", strings(data)).unwrap();
        }
    }
    for count in [28, 29, 30, 31, 70, 75, 76, 77, 100, 254] {
        for last in 1..=count {
            writeln!(text, "a{count} A 198.51.100.{last}").unwrap();
        }
    }
    for number in 0..180 {
        writeln!(text, "huge TXT {number:03}{}", "h".repeat(250)).unwrap();
    }
    for number in 0..40 {
        writeln!(text, "mx40 MX {number} t{number}.mx40\nt{number}.mx40 A 198.51.100.{number}").unwrap();
        writeln!(text, "srv40 SRV 0 0 {number} t{number}.mx40").unwrap();
    }
    // Delegations whose glue crosses the limit at some point.
    for count in 1..=20 {
        for number in 0..count {
            writeln!(text, "glue{count} NS ns{number}.glue{count}").unwrap();
            writeln!(text, "ns{number}.glue{count} A 198.51.100.{number}").unwrap();
            writeln!(text, "ns{number}.glue{count} AAAA 2001:db8::{number}").unwrap();
        }
    }
    // A chain of aliases of long names.
    let long = [62, 63, 63, 40].map(|length| "l".repeat(length)).join(".");
    writeln!(text, "alias-long CNAME 0{long}").unwrap();
    for number in 0..6 {
        writeln!(text, "{number}{long} CNAME {}{long}", number + 1).unwrap();
    }
    writeln!(text, "6{long} A 198.51.100.1").unwrap();
    // 255 bytes.
    let longest = [63, 63, 63, 48].map(|length| "m".repeat(length)).join(".");
    writeln!(text, "{longest} A 198.51.100.2\nalias-longest CNAME {longest}").unwrap();
    text
}

/// Strings that make so many bytes of TXT data.
fn strings(mut bytes: usize) -> String {
    let mut text = String::new();
    while bytes > 0 {
        let length = (bytes - 1).min(255);
        write!(text, "\"{}\" ", "s".repeat(length)).unwrap();
        bytes -= 1 + length;
    }
    text
}

/// Names of 127 labels below `x.y`.
fn long_names() -> String {
    let deep = ["d"; 124].join(".");
    format!("a.{deep} A 192.0.2.202\n*.{deep} TXT \"a wildcard of 127 labels\"\nalias CNAME a.{deep}\n")
}
