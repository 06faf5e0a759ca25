//! The static records of one zone, checked once.

mod edit;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::acl::Acl;
use super::content::History;
use super::key::{NameKey, QuestionName};
use super::rdata::{self, CNAME, NS, SOA};
use super::signing::Signer;
use crate::model::DomainName;

pub use edit::ZoneDraft;

/// Most bytes of data that one RRset may have: with its owner it still fits into one message over TCP.
const SET_BYTES_MAX: usize = 48 * 1024;
/// Bytes that each record takes beside its data, once its owner is compressed.
const RECORD_BYTES: usize = 12;

/// One record, class IN, as it was configured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Whose.
    pub owner: DomainName,
    /// Type.
    pub rtype: u16,
    /// Seconds.
    pub ttl: u32,
    /// Uncompressed wire format.
    pub data: Vec<u8>,
}

/// The records of one name and type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordSet {
    /// Seconds; the least of the records' (RFC 2181 §5.2 wants them equal).
    pub ttl: u32,
    /// The data of each record, uncompressed, no two equal.
    pub data: Vec<Box<[u8]>>,
}

/// Every RRset of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    owner: DomainName,
    sets: BTreeMap<u16, RecordSet>,
}

impl Node {
    /// The name.
    pub fn owner(&self) -> &DomainName {
        &self.owner
    }

    /// The RRset of that type.
    pub fn set(&self, rtype: u16) -> Option<&RecordSet> {
        self.sets.get(&rtype)
    }

    fn has_address(&self) -> bool {
        self.set(rdata::A).or(self.set(rdata::AAAA)).is_some()
    }

    /// Every RRset, by type.
    pub fn sets(&self) -> impl Iterator<Item = (u16, &RecordSet)> {
        self.sets.iter().map(|(&rtype, set)| (rtype, set))
    }
}

/// A zone that can be served: one SOA, name servers, nothing outside, no alias beside other data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    apex: DomainName,
    apex_labels: usize,
    serial: u32,
    negative_ttl: u32,
    soa: RecordSet,
    /// The apex, with the SOA of now.
    apex_node: Node,
    /// Shared between the serials of a zone, and its names between zones of which one was made from the other; here
    /// the SOA may be an older one.
    nodes: Arc<BTreeMap<NameKey, Arc<Node>>>,
    /// How many names below the apex have name servers of their own.
    cut_count: usize,
    /// Who may transfer it.
    transfer: Acl,
    /// What the last serials changed.
    history: History,
    signer: Option<Signer>,
}

/// One thing that is wrong with the records of a zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}")]
pub struct ZoneFault {
    /// Index of the record, if it is one record's fault.
    pub record: Option<usize>,
    /// What is wrong.
    pub kind: ZoneFaultKind,
}

/// What can be wrong with the records of a zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZoneFaultKind {
    /// No SOA at the apex.
    #[error(
        "the zone {0} has no SOA record at its apex; add one, such as `@ SOA ns1 hostmaster 1 3600 600 604800 60`"
    )]
    NoSoa(DomainName),
    /// More than one SOA.
    #[error("the zone {0} has more than one SOA record; keep one")]
    SecondSoa(DomainName),
    /// A SOA below the apex.
    #[error("{0} is not the apex and has a SOA record; another zone belongs into a file of its own")]
    SoaBelowApex(DomainName),
    /// No name server at the apex.
    #[error("the zone {0} has no NS record at its apex; add one, such as `@ NS ns1`")]
    NoNs(DomainName),
    /// A record outside the zone.
    #[error("{owner} is not in the zone {apex}; is a final dot missing or one too many?")]
    OutOfZone {
        /// Its owner.
        owner: DomainName,
        /// The zone.
        apex: DomainName,
    },
    /// An alias beside other records (RFC 1034 §3.6.2).
    #[error("{0} has a CNAME and other records; a CNAME must stand alone")]
    CnameAndOther(DomainName),
    /// Two aliases.
    #[error("{0} has more than one CNAME; keep one")]
    SecondCname(DomainName),
    /// A delegation at a wildcard (RFC 4592 §4.2).
    #[error("{0} is a wildcard and has NS records; what that should mean is undefined, so it is not served")]
    WildcardNs(DomainName),
    /// A name server at or below its own cut without an address.
    #[error(
        "the delegation of {cut} names {server}, which is below it, but gives no A or AAAA record for it"
    )]
    NoGlue {
        /// The delegated name.
        cut: DomainName,
        /// The name server.
        server: DomainName,
    },
    /// A type that is not served.
    #[error("{owner} has a {rtype} record, which is not served: {why}")]
    Unserved {
        /// Its owner.
        owner: DomainName,
        /// Its type.
        rtype: String,
        /// Why not.
        why: &'static str,
    },
    /// The data does not have the shape of its type.
    #[error("the data of the {rtype} record of {owner} is malformed")]
    BadData {
        /// Its owner.
        owner: DomainName,
        /// Its type.
        rtype: String,
    },
    /// Too many records of one name and type.
    #[error("the {rtype} records of {owner} take more than {SET_BYTES_MAX} bytes; no message can carry them")]
    SetTooLarge {
        /// Their owner.
        owner: DomainName,
        /// Their type.
        rtype: String,
    },
}

impl Zone {
    /// Checks the records and arranges them.
    ///
    /// # Errors
    /// Every fault, with the index of the record where it is one record's.
    pub fn new(apex: DomainName, records: &[Record]) -> Result<Self, Vec<ZoneFault>> {
        let mut faults = Vec::new();
        let mut nodes: BTreeMap<NameKey, Arc<Node>> = BTreeMap::new();
        for (index, record) in records.iter().enumerate() {
            if let Some(kind) = record_fault(&apex, record) {
                faults.push(ZoneFault { record: Some(index), kind });
                continue;
            }
            let node = nodes
                .entry(NameKey::from(&record.owner))
                .or_insert_with(|| Arc::new(Node { owner: record.owner.clone(), sets: BTreeMap::new() }));
            if let Some(kind) = Arc::make_mut(node).take(record, &apex) {
                faults.push(ZoneFault { record: Some(index), kind });
            }
        }
        // One fault for an RRset that is too large, not one for each record beyond.
        faults.dedup_by(|later, earlier| later.kind == earlier.kind);
        let apex_node = nodes.get(&NameKey::from(&apex)).map(|node| Node::clone(node));
        let soa = apex_node.as_ref().and_then(|node| node.set(SOA)).cloned();
        if soa.is_none() {
            faults.push(ZoneFault { record: None, kind: ZoneFaultKind::NoSoa(apex.clone()) });
        }
        if apex_node.as_ref().is_none_or(|node| node.set(NS).is_none()) {
            faults.push(ZoneFault { record: None, kind: ZoneFaultKind::NoNs(apex.clone()) });
        }
        faults.extend(missing_glue(&apex, &nodes));
        let cut_count = nodes.values().filter(|node| node.owner != apex && node.set(NS).is_some()).count();
        let numbers = soa.as_ref().and_then(|soa| rdata::soa_numbers(soa.data.first()?));
        match (soa.zip(apex_node), numbers) {
            (Some((soa, apex_node)), Some((serial, minimum))) if faults.is_empty() => Ok(Self {
                apex_labels: apex.label_count(),
                apex,
                serial,
                negative_ttl: soa.ttl.min(minimum),
                soa,
                apex_node,
                nodes: Arc::new(nodes),
                cut_count,
                transfer: Acl::default(),
                history: History::default(),
                signer: None,
            }),
            (Some(_) | None, Some(_) | None) => Err(faults),
        }
    }

    /// This zone, signed by `signer`, or unsigned. A zone that takes this one's place must have its signer too:
    /// validators take nothing unsigned from a zone that its parent says is signed.
    #[must_use]
    pub fn with_signer(mut self, signer: Option<Signer>) -> Self {
        self.signer = signer;
        self
    }

    /// Who signs its answers; `None` if nobody does.
    pub fn signer(&self) -> Option<&Signer> {
        self.signer.as_ref()
    }

    /// The zone with those who may transfer it; nobody otherwise.
    #[must_use]
    pub fn with_transfer(self, transfer: Acl) -> Self {
        Self { transfer, ..self }
    }

    /// The zone with that serial, and without a history.
    #[must_use]
    pub fn with_serial(mut self, serial: u32) -> Self {
        self.set_serial(serial);
        self.history = History::default();
        self
    }

    /// These static records with the serial and the history of the zone in whose place they come. What was signed
    /// stays so: its parent may say that it is.
    pub(super) fn continuing(&self, before: &Self) -> Self {
        let signer = self.signer.as_ref().or(before.signer.as_ref()).cloned();
        let mut next = Self { history: before.history.clone(), signer, ..self.clone() };
        next.set_serial(before.serial);
        next
    }

    /// The zone at its next serial (RFC 1982 §3.1), to which that difference led. Nothing is copied but the apex
    /// and the list of what is kept of the history; without anybody who may transfer the zone there is none.
    pub(super) fn advanced(&self, removed: Vec<Record>, added: Vec<Record>) -> Self {
        self.advanced_from(self, serial_after(self.serial), removed, added)
    }

    fn set_serial(&mut self, serial: u32) {
        self.serial = serial;
        for data in &mut self.soa.data {
            rdata::set_soa_serial(data, serial);
        }
        self.apex_node.sets.insert(SOA, self.soa.clone());
    }

    /// What the last serials changed.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Who may transfer it.
    pub fn transfer(&self) -> &Acl {
        &self.transfer
    }

    /// The zone's name.
    pub fn apex(&self) -> &DomainName {
        &self.apex
    }

    /// How many labels the apex has.
    pub fn apex_labels(&self) -> usize {
        self.apex_labels
    }

    /// The serial number of the SOA.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// For how long a negative answer may be kept, in seconds: min(TTL, MINIMUM) of the SOA (RFC 2308 §5).
    pub fn negative_ttl(&self) -> u32 {
        self.negative_ttl
    }

    /// The SOA.
    pub fn soa(&self) -> &RecordSet {
        &self.soa
    }

    /// Every name with records.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        // The apex's key is a prefix of all others, so the apex is the first.
        std::iter::once(&self.apex_node).chain(self.nodes.values().skip(1).map(|node| &**node))
    }

    /// The records of that name.
    pub fn node(&self, name: &DomainName) -> Option<&Node> {
        self.node_at(NameKey::from(name).as_ref())
    }

    pub(crate) fn node_at(&self, key: &[u8]) -> Option<&Node> {
        let node = self.nodes.get(key)?;
        Some(if node.owner == self.apex { &self.apex_node } else { node })
    }

    /// Whether the name is below the apex and delegated away.
    pub(crate) fn is_cut(&self, name: &DomainName) -> bool {
        *name != self.apex && self.node(name).is_some_and(|node| node.set(NS).is_some())
    }

    /// Whether any name below the apex is delegated away.
    pub fn has_cuts(&self) -> bool {
        self.cut_count > 0
    }

    /// The topmost name at or above `name` and below the apex that is delegated away.
    pub(crate) fn cut(&self, name: &QuestionName) -> Option<&Node> {
        if self.cut_count == 0 {
            return None;
        }
        (self.apex_labels + 1..=name.label_count())
            .filter_map(|labels| self.node_at(name.ancestor_key(labels)))
            .find(|node| node.set(NS).is_some())
    }
}

impl Node {
    /// Adds a record that is right by itself.
    fn take(&mut self, record: &Record, apex: &DomainName) -> Option<ZoneFaultKind> {
        let owner = &record.owner;
        let beside_cname = if record.rtype == CNAME {
            self.sets.keys().any(|&rtype| rtype != CNAME)
        } else {
            self.sets.contains_key(&CNAME)
        };
        if beside_cname {
            return Some(ZoneFaultKind::CnameAndOther(owner.clone()));
        }
        let set = self.sets.entry(record.rtype).or_insert(RecordSet { ttl: record.ttl, data: Vec::new() });
        set.ttl = set.ttl.min(record.ttl);
        if set.data.iter().any(|data| rdata::is_same(record.rtype, data, &record.data)) {
            return None;
        }
        if !set.data.is_empty() {
            match record.rtype {
                SOA => return Some(ZoneFaultKind::SecondSoa(apex.clone())),
                CNAME => return Some(ZoneFaultKind::SecondCname(owner.clone())),
                _ => {}
            }
        }
        let bytes: usize = set.data.iter().map(|data| data.len() + RECORD_BYTES).sum();
        if bytes + record.data.len() + RECORD_BYTES > SET_BYTES_MAX {
            let rtype = rdata::type_word(record.rtype);
            return Some(ZoneFaultKind::SetTooLarge { owner: owner.clone(), rtype });
        }
        set.data.push(record.data.clone().into_boxed_slice());
        None
    }
}

/// What is wrong with one record by itself.
fn record_fault(apex: &DomainName, record: &Record) -> Option<ZoneFaultKind> {
    let owner = record.owner.clone();
    let rtype = rdata::type_word(record.rtype);
    let unserved = |why| Some(ZoneFaultKind::Unserved { owner: owner.clone(), rtype: rtype.clone(), why });
    if !record.owner.is_at_or_below(apex) {
        return Some(ZoneFaultKind::OutOfZone { owner, apex: apex.clone() });
    }
    match record.rtype {
        rdata::DNAME => return unserved("write a CNAME for each name instead"),
        rdata::RRSIG | rdata::NSEC | rdata::DNSKEY | 50 | 51 | rdata::CDS | rdata::CDNSKEY => {
            return unserved(
                "signatures and keys are made here; write the zone unsigned, without its DNSSEC records",
            );
        }
        0 | rdata::OPT | 128..=255 => return unserved("it is a type of questions, not of data"),
        _ => {}
    }
    if !rdata::is_well_formed(record.rtype, &record.data) {
        return Some(ZoneFaultKind::BadData { owner, rtype });
    }
    if record.rtype == SOA && record.owner != *apex {
        return Some(ZoneFaultKind::SoaBelowApex(owner));
    }
    let wildcard = record.owner.labels().next() == Some(b"*");
    (record.rtype == NS && wildcard).then_some(ZoneFaultKind::WildcardNs(owner))
}

/// Delegations to a name server at or below the cut that nobody could reach.
fn missing_glue(apex: &DomainName, nodes: &BTreeMap<NameKey, Arc<Node>>) -> Vec<ZoneFault> {
    let look = |name: &DomainName| nodes.get(&NameKey::from(name)).map(|node| &**node);
    let cuts = nodes.values().filter(|node| node.owner != *apex);
    cuts.flat_map(|cut| unreachable_servers(cut, look)).map(|kind| ZoneFault { record: None, kind }).collect()
}

/// The name servers at or below a cut for which `look` finds no address.
fn unreachable_servers<'a>(
    cut: &'a Node,
    look: impl Fn(&DomainName) -> Option<&'a Node> + 'a,
) -> impl Iterator<Item = ZoneFaultKind> + 'a {
    let servers = cut.set(NS).into_iter().flat_map(|set| &set.data);
    let servers = servers.filter_map(|data| DomainName::from_wire(data).ok());
    let below = servers.filter(|server| server.is_at_or_below(&cut.owner));
    let missing = below.filter(move |server| !look(server).is_some_and(Node::has_address));
    missing.map(|server| ZoneFaultKind::NoGlue { cut: cut.owner.clone(), server })
}

/// The serial that follows: one more, and never 0, which some take for "none".
pub fn serial_after(serial: u32) -> u32 {
    serial.wrapping_add(1).max(1)
}

/// Whether a serial is newer than another (RFC 1982 §3.2). Of two that are half the circle apart neither is.
pub fn is_newer_serial(serial: u32, than: u32) -> bool {
    let ahead = serial.wrapping_sub(than);
    ahead != 0 && ahead < 1 << 31
}

/// What a zone without a file has at its apex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneDefaults {
    /// The zone's name.
    pub apex: DomainName,
    /// Its name servers, the primary first, each with the addresses that are published for it if it is in the
    /// zone. At least one.
    pub name_servers: Vec<(DomainName, Vec<IpAddr>)>,
    /// Mailbox of who is responsible, as a name (RFC 1035 §8).
    pub hostmaster: DomainName,
    /// Serial number.
    pub serial: u32,
    /// TTL of these records, in seconds.
    pub ttl: u32,
    /// For how long a negative answer may be kept, in seconds.
    pub negative_ttl: u32,
}

impl ZoneDefaults {
    /// How often a secondary looks for a new serial, in seconds.
    const REFRESH_S: u32 = 3_600;
    /// How soon it tries again, in seconds.
    const RETRY_S: u32 = 600;
    /// For how long it serves what it has, in seconds.
    const EXPIRE_S: u32 = 604_800;

    /// SOA, NS and the name servers' addresses.
    pub fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        let mut push = |owner: &DomainName, rtype, data| {
            records.push(Record { owner: owner.clone(), rtype, ttl: self.ttl, data });
        };
        let numbers = [self.serial, Self::REFRESH_S, Self::RETRY_S, Self::EXPIRE_S, self.negative_ttl];
        if let Some((primary, _)) = self.name_servers.first() {
            push(&self.apex, SOA, rdata::soa(primary, &self.hostmaster, numbers));
        }
        for (server, addresses) in &self.name_servers {
            push(&self.apex, NS, server.as_wire().to_vec());
            for address in addresses.iter().filter(|_| server.is_at_or_below(&self.apex)) {
                match address {
                    IpAddr::V4(address) => push(server, rdata::A, address.octets().to_vec()),
                    IpAddr::V6(address) => push(server, rdata::AAAA, address.octets().to_vec()),
                }
            }
        }
        records
    }

    /// The zone with these records and nothing else.
    ///
    /// # Errors
    /// As of [`Zone::new`]; with a name server there is nothing to find fault with.
    pub fn zone(&self) -> Result<Zone, Vec<ZoneFault>> {
        Zone::new(self.apex.clone(), &self.records())
    }
}
