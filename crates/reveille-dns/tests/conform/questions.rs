//! Random and adversarial questions, repeatable by their seed.

use std::collections::BTreeSet;

use reveille_core::answer::{Zone, rdata};
use reveille_core::model::DomainName;

use super::common::exchange::SENTINEL_ID;
use super::common::random::Random;
use super::odd::{Odd, spoil};

/// A question and what a reader of a difference must know of it.
#[derive(Debug, Clone)]
pub struct Asked {
    pub packet: Vec<u8>,
    pub over_udp: bool,
    pub name: Vec<u8>,
    pub qtype: u16,
    pub qclass: u16,
    pub opcode: u8,
    /// As in the header, without opcode and rcode.
    pub flags: u16,
    pub edns: Option<Edns>,
    /// What is wrong with its form.
    pub odd: Option<Odd>,
}

#[derive(Debug, Clone)]
pub struct Edns {
    pub payload: u16,
    /// Upper bits of an rcode, which have no meaning in a question.
    pub rcode: u8,
    pub version: u8,
    pub flags: u16,
    pub options: Vec<(u16, Vec<u8>)>,
}

impl Asked {
    pub fn option(&self, code: u16) -> Option<&[u8]> {
        let edns = self.edns.as_ref()?;
        edns.options.iter().find(|option| option.0 == code).map(|(_, data)| &**data)
    }

    /// Whether its form, perhaps odd, lets it be read to its end.
    pub fn is_readable(&self) -> bool {
        use Odd::{BehindOpt, InAdditional, InAnswer, InAuthority, ManyRecords};
        matches!(self.odd, None | Some(InAnswer | InAuthority | InAdditional | BehindOpt | ManyRecords))
    }

    /// Most bytes that the answer may have.
    pub fn limit(&self) -> usize {
        let own = self.edns.as_ref().map_or(512, |edns| edns.payload.clamp(512, 1_232));
        if self.over_udp { own.into() } else { 65_535 }
    }
}

/// Types that have a meaning of their own.
const SPECIAL_TYPES: [u16; 26] = [
    0, 3, 4, 10, 11, 24, 25, 30, 38, 41, 46, 47, 48, 50, 51, 99, 100, 128, 249, 250, 251, 252, 253, 254, 255,
    65_535,
];
/// Types that stand in the zones or might.
const DATA_TYPES: [u16; 38] = [
    1, 1, 1, 1, 2, 2, 5, 5, 6, 12, 13, 14, 15, 15, 16, 16, 17, 18, 28, 28, 29, 33, 33, 35, 39, 43, 43, 44,
    46, 47, 52, 59, 61, 64, 65, 257, 65400, 65401,
];

/// Parts of names of which there are many of a kind.
const GENERATED: [&[u8]; 4] = [b"glue", b"\x01d\x01d", b"mx40", b"with-a-rather"];

/// Draws questions about the names of some zones.
pub struct Source {
    random: Random,
    all_names: Vec<Vec<u8>>,
    /// Without those of which there are many of a kind.
    names: Vec<Vec<u8>>,
    services: Vec<Vec<u8>>,
    labels: Vec<Vec<u8>>,
}

impl Source {
    pub fn new(seed: u64, zones: &[Zone], services: impl IntoIterator<Item = DomainName>) -> Self {
        let services: Vec<Vec<u8>> = services.into_iter().map(|name| name.as_wire().to_vec()).collect();
        let mut names: BTreeSet<Vec<u8>> = services.iter().cloned().collect();
        for node in zones.iter().flat_map(Zone::nodes) {
            names.insert(node.owner().as_wire().to_vec());
            for (rtype, set) in node.sets() {
                names.extend(
                    set.data.iter().filter_map(|data| rdata::target(rtype, data)).map(<[u8]>::to_vec),
                );
            }
        }
        let above: Vec<Vec<u8>> = names.iter().flat_map(|name| ancestors(name)).collect();
        names.extend(above);
        let outside = ["www.example", "example", "cut1.conform.tes", "xconform.test", "conform.test.test"];
        names.extend(outside.map(|name| name.parse::<DomainName>().unwrap().as_wire().to_vec()));
        let labels: BTreeSet<Vec<u8>> = names.iter().flat_map(|name| split(name)).collect();
        let all_names: Vec<Vec<u8>> = names.into_iter().collect();
        let is_one_of_many = |name: &Vec<u8>| {
            GENERATED.iter().any(|part| name.windows(part.len()).any(|window| window == *part))
        };
        let names = all_names.iter().filter(|name| !is_one_of_many(name)).cloned().collect();
        Self { random: Random::new(seed), all_names, names, services, labels: labels.into_iter().collect() }
    }

    /// Each RRset of the zones once over UDP, and its name once more for another type over TCP; then the addresses of
    /// each service, with and without EDNS.
    pub fn of_all_records(&mut self, zones: &[Zone]) -> Vec<Asked> {
        let mut all = Vec::new();
        for node in zones.iter().flat_map(Zone::nodes) {
            let name = node.owner().as_wire();
            all.extend(node.sets().map(|(qtype, _)| self.plain(name, qtype, true, None)));
            let other = *self.random.pick(&DATA_TYPES);
            all.push(self.plain(name, other, false, None));
        }
        for name in self.services.clone() {
            for qtype in [1, 28, 16] {
                let dnssec_ok = Edns { payload: 1_232, rcode: 0, version: 0, flags: 0x8000, options: vec![] };
                let without = Edns { flags: 0, ..dnssec_ok.clone() };
                let variants = [None, Some(without), Some(dnssec_ok)];
                all.extend(variants.map(|edns| self.plain(&name, qtype, true, edns)));
            }
        }
        all
    }

    fn plain(&mut self, name: &[u8], qtype: u16, over_udp: bool, edns: Option<Edns>) -> Asked {
        let name = name.to_vec();
        let mut asked =
            Asked { packet: vec![], over_udp, name, qtype, qclass: 1, opcode: 0, flags: 0, edns, odd: None };
        asked.packet = asked.written(self.random.short() % SENTINEL_ID);
        asked
    }

    pub fn question(&mut self) -> Asked {
        let mut name = self.name();
        if self.random.percent(50) {
            self.vary_case(&mut name);
        }
        let qclass = self.class();
        let qtype = self.qtype();
        if qclass == 3 && self.random.percent(50) {
            name = self.chaos_name();
        }
        let random = &mut self.random;
        let opcode = if random.percent(97) { 0 } else { u8::try_from(random.below(16)).unwrap() };
        let mut flags = if random.percent(40) { 0x0100 } else { 0 };
        if random.percent(10) {
            // AA, TC, RA, Z, AD, CD: in a question they have no meaning to an authoritative server.
            flags |= random.short() & 0x07f0;
        }
        let edns = (!random.percent(30)).then(|| self.edns());
        let over_udp = self.random.percent(70);
        let mut asked =
            Asked { packet: Vec::new(), over_udp, name, qtype, qclass, opcode, flags, edns, odd: None };
        asked.packet = asked.written(self.random.short() % SENTINEL_ID);
        if self.random.percent(8) {
            spoil(&mut asked, &mut self.random);
        }
        asked
    }

    fn name(&mut self) -> Vec<u8> {
        let names = match self.random.below(10) {
            0 if !self.services.is_empty() => &self.services,
            0..7 => &self.names,
            _ => &self.all_names,
        };
        let mut labels = split(self.random.pick::<Vec<u8>>(names));
        let random = &mut self.random;
        match random.below(20) {
            0..=8 => {}
            9..=11 => labels.insert(0, self.label()),
            12 => {
                let at = random.below(labels.len() + 1);
                labels.insert(at, self.label());
            }
            13 => {
                labels = labels.split_off(labels.len().min(1));
            }
            14..=15 if !labels.is_empty() => labels[0] = self.label(),
            16 if !labels.is_empty() => {
                let at = random.below(labels.len());
                let byte = random.below(labels[at].len());
                labels[at][byte] = random.byte();
            }
            17 => {
                // As many labels or bytes as fit.
                let label = if random.percent(50) { b"*".to_vec() } else { self.label() };
                while bytes(&labels) + 1 + label.len() <= 255 {
                    labels.insert(0, label.clone());
                }
            }
            18 => {
                let other = split(random.pick::<Vec<u8>>(&self.names));
                labels.splice(0..0, other.into_iter().take(2));
            }
            _ => labels = (0..random.below(5)).map(|_| self.label()).collect(),
        }
        while bytes(&labels) > 255 {
            labels.remove(0);
        }
        joined(&labels)
    }

    fn label(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        match random.below(8) {
            0..=3 => random.pick(&self.labels).clone(),
            4 => b"*".to_vec(),
            5 => b"www".to_vec(),
            6 => {
                let length = 1 + random.below(63);
                random.bytes(length)
            }
            _ => {
                let length = 1 + random.below(12);
                (0..length).map(|_| b'a' + random.byte() % 26).collect()
            }
        }
    }

    fn vary_case(&mut self, name: &mut [u8]) {
        // Length octets are below the letters.
        for byte in name.iter_mut().filter(|byte| byte.is_ascii_alphabetic()) {
            *byte ^= self.random.byte() & 0x20;
        }
    }

    fn class(&mut self) -> u16 {
        match self.random.below(40) {
            0 => 3,
            1 => *self.random.pick(&[0, 2, 4, 254, 255, 65_535]),
            2 => self.random.short(),
            _ => 1,
        }
    }

    fn qtype(&mut self) -> u16 {
        match self.random.below(20) {
            0 => *self.random.pick(&SPECIAL_TYPES),
            1 => self.random.short(),
            2 => 255,
            _ => *self.random.pick(&DATA_TYPES),
        }
    }

    fn chaos_name(&mut self) -> Vec<u8> {
        let names = [
            "version.bind",
            "version.server",
            "hostname.bind",
            "id.server",
            "authors.bind",
            "a.version.bind",
        ];
        joined(
            &self.random.pick(&names).split('.').map(|label| label.as_bytes().to_vec()).collect::<Vec<_>>(),
        )
    }

    fn edns(&mut self) -> Edns {
        let random = &mut self.random;
        let sizes = [0, 511, 512, 513, 1_220, 1_231, 1_232, 1_233, 1_400, 4_096, 4_096, 65_535];
        let payload = if random.percent(80) { *random.pick(&sizes) } else { random.short() };
        let version = if random.percent(95) { 0 } else { *random.pick(&[1, 1, 2, 255]) };
        let mut flags = if random.percent(30) { 0x8000 } else { 0 };
        if random.percent(5) {
            flags |= random.short();
        }
        let rcode = if random.percent(3) { random.byte() } else { 0 };
        let count = if random.percent(50) { 0 } else { 1 + random.below(3) };
        let options = (0..count).map(|_| self.edns_option()).collect();
        Edns { payload, rcode, version, flags, options }
    }

    fn edns_option(&mut self) -> (u16, Vec<u8>) {
        let random = &mut self.random;
        match random.below(12) {
            // NSID
            0 => (3, vec![]),
            1..=2 => (8, subnet(random)),
            3 => (8, bad_subnet(random)),
            // Cookies: a client's, a client's with a server's, and of any length.
            4 => (10, random.bytes(8)),
            5 => {
                let length = *random.pick(&[16, 24, 24, 40]);
                (10, random.bytes(length))
            }
            6 => {
                let length = random.below(50);
                (10, random.bytes(length))
            }
            // Padding.
            7 => (12, vec![0; random.below(300)]),
            // Keep-alive, which a client leaves empty.
            8 => (11, if random.percent(70) { vec![] } else { vec![0, 100] }),
            // Expire, chain, key tags, an error, and what nobody knows.
            9 => (*random.pick(&[5, 6, 7, 9, 13, 14, 15]), random.bytes(2)),
            _ => {
                let length = random.below(20);
                (*random.pick(&[0, 4, 26_946, 65_001, 65_535]), random.bytes(length))
            }
        }
    }
}

/// A client subnet as it should be (RFC 7871 §6).
fn subnet(random: &mut Random) -> Vec<u8> {
    let (family, bits) = *random.pick(&[(0, 0), (1, 32), (2, 128)]);
    let prefix = random.below(bits + 1);
    let mut address = random.bytes(prefix.div_ceil(8));
    if let (Some(last), unused @ 1..) = (address.last_mut(), (8 - prefix % 8) % 8) {
        *last = *last >> unused << unused;
    }
    [vec![0, family, u8::try_from(prefix).unwrap(), 0], address].concat()
}

fn bad_subnet(random: &mut Random) -> Vec<u8> {
    match random.below(9) {
        0 => vec![],
        7 => vec![0, 3, 0, 0],
        8 => vec![0, 0, 1, 0, 0],
        1 => vec![0, 1, 24],
        2 => vec![0, 1, 24, 0, 192, 0],
        3 => vec![0, 1, 24, 0, 192, 0, 2, 0],
        4 => vec![0, 1, 23, 0, 192, 0, 3],
        5 => vec![0, 1, 33, 0, 192, 0, 2, 1, 128],
        _ => vec![0, 1, 24, 24, 192, 0, 2],
    }
}

impl Asked {
    /// The message, with nothing wrong.
    fn written(&self, id: u16) -> Vec<u8> {
        let mut packet = Vec::new();
        packet.extend(id.to_be_bytes());
        packet.extend((self.flags | u16::from(self.opcode) << 11).to_be_bytes());
        packet.extend([0, 1, 0, 0, 0, 0, 0, self.edns.is_some().into()]);
        packet.extend(&self.name);
        packet.extend(self.qtype.to_be_bytes());
        packet.extend(self.qclass.to_be_bytes());
        packet.extend(self.edns.as_ref().map_or(Vec::new(), Edns::written));
        packet
    }
}

impl Edns {
    pub fn written(&self) -> Vec<u8> {
        let mut options = Vec::new();
        for (code, data) in &self.options {
            options.extend(code.to_be_bytes());
            options.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            options.extend(data);
        }
        let mut record = vec![0, 0, 41];
        record.extend(self.payload.to_be_bytes());
        record.extend([self.rcode, self.version]);
        record.extend(self.flags.to_be_bytes());
        record.extend(u16::try_from(options.len()).unwrap().to_be_bytes());
        record.extend(options);
        record
    }
}

/// The labels of a name, without the root.
pub fn split(name: &[u8]) -> Vec<Vec<u8>> {
    let mut labels = Vec::new();
    let mut rest = name;
    while let Some((&length, tail)) = rest.split_first().filter(|&(&length, _)| length > 0) {
        let (label, after) = tail.split_at(length.into());
        labels.push(label.to_vec());
        rest = after;
    }
    labels
}

/// The name of these labels, in wire format.
pub fn joined(labels: &[Vec<u8>]) -> Vec<u8> {
    let mut name = Vec::new();
    for label in labels {
        name.push(u8::try_from(label.len()).unwrap());
        name.extend(label);
    }
    name.push(0);
    name
}

fn bytes(labels: &[Vec<u8>]) -> usize {
    labels.iter().map(|label| 1 + label.len()).sum::<usize>() + 1
}

fn ancestors(name: &[u8]) -> Vec<Vec<u8>> {
    let labels = split(name);
    (1..labels.len()).map(|skipped| joined(&labels[skipped..])).collect()
}
