//! The signer of one zone: from an unsigned reply to the one that is sent.
//!
//! - Every RRset that the zone is authoritative for is followed by its RRSIG; glue and the name servers of a
//!   delegation are not signed (RFC 4035 §2.2). What is additional is left out unless it is glue: each would cost a
//!   signature, and resolvers ask for what they need.
//! - NODATA and names that do not exist are denied with one NSEC at the very name (RFC 9824). A name that a wildcard
//!   stands for is signed as if it existed (RFC 9824 §3.3): a proof that there is no closer match would need a
//!   second signature, and an NSEC that covers the name where all others here match it.
//! - The DNSKEY, CDS and CDNSKEY sets are signed by every key of the DNSKEY set, all else by the active one.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use arc_swap::ArcSwap;
use reveille_core::answer::rdata::{CDNSKEY, CDS, DNSKEY, DS, NS, NSEC, NXNAME, RRSIG, SOA};
use reveille_core::answer::{
    Asked, Data, Denial, Ede, Owner, Rcode, Records, Reply, Section, SignReplies, Standing, Zone,
};
use reveille_core::model::DomainName;

use super::canonical::{RrSet, rrsig_head};
use super::denial::nsec;
use super::key::SigningKey;
use super::room::{Found, SigningRoom, Wanted};
use crate::wire::UDP_PAYLOAD_MAX;

/// Largest TTL that a service's addresses may have: what they are signed with, as their TTL goes with the state and
/// the signature should not (RFC 4034 §3.1.4 lets a record have any TTL below).
const SERVICE_TTL_S_MAX: u32 = 86_400;

/// Data of an answer that does not fit into any datagram, however well its names are compressed: it is not signed in
/// vain.
const DATAGRAM_DATA_BYTES_MAX: usize = 4 * UDP_PAYLOAD_MAX as usize;

/// What a zone is signed with.
#[derive(Debug)]
pub(super) struct Keyset {
    /// Signs the data.
    pub active: Arc<SigningKey>,
    /// Sign the key sets.
    pub published: Vec<Arc<SigningKey>>,
    pub dnskey: RecordData,
    pub cds: Option<RecordData>,
    pub cdnskey: Option<RecordData>,
    /// TTL of these sets, in seconds.
    pub key_ttl_s: u32,
    /// Longest TTL of any answer, in seconds.
    pub ttl_s_max: u32,
}

/// The data of the records of one set.
pub(super) type RecordData = Arc<[Box<[u8]>]>;

/// Signs the replies of one zone.
#[derive(Debug)]
pub(super) struct ZoneSigner {
    apex: DomainName,
    keys: ArcSwap<Keyset>,
    room: Arc<SigningRoom>,
}

impl Keyset {
    /// The data of the set of that type, if the apex has it.
    fn set(&self, rtype: u16) -> Option<&RecordData> {
        match rtype {
            DNSKEY => Some(&self.dnskey),
            CDS => self.cds.as_ref(),
            CDNSKEY => self.cdnskey.as_ref(),
            _ => None,
        }
    }

    /// The keys that sign sets of that type.
    fn signing(&self, rtype: u16) -> &[Arc<SigningKey>] {
        match rtype {
            DNSKEY | CDS | CDNSKEY => &self.published,
            _ => std::slice::from_ref(&self.active),
        }
    }
}

impl SignReplies for ZoneSigner {
    fn sign<'v>(&self, mut reply: Reply<'v>, asked: &Asked<'_>) -> Reply<'v> {
        let Some(zone) = reply.zone else { return reply };
        let keys = self.keys.load();
        let signing = Signing { room: &self.room, apex: &self.apex, keys: &keys, zone, asked };
        signing.add_key_sets(&mut reply);
        let qtype = asked.question.qtype;
        if !asked.dnssec_ok {
            // These two are given to whoever asks for them by name (RFC 4035 §3.1), where there is a name.
            let is_asked_for = matches!(qtype, NSEC | RRSIG) && reply.rcode == Rcode::NoError;
            if !is_asked_for || refers(&reply) {
                return reply;
            }
        }
        signing.cap_ttls(&mut reply);
        signing.prove(&mut reply);
        if asked.dnssec_ok || qtype == RRSIG { signing.sign(reply) } else { reply }
    }
}

impl ZoneSigner {
    pub fn new(apex: DomainName, keys: Keyset, room: Arc<SigningRoom>) -> Self {
        Self { apex, keys: ArcSwap::from_pointee(keys), room }
    }

    /// From now on these keys sign.
    pub fn set_keys(&self, keys: Keyset) {
        self.keys.store(Arc::new(keys));
    }
}

/// Why there are no signatures.
enum Unsigned {
    /// Too many were made already.
    OverBudget,
    /// The system gives no random numbers.
    Failed,
}

/// One reply on its way.
struct Signing<'a> {
    room: &'a SigningRoom,
    apex: &'a DomainName,
    keys: &'a Keyset,
    zone: &'a Zone,
    asked: &'a Asked<'a>,
}

impl Signing<'_> {
    /// The sets that the apex has because the zone is signed.
    fn add_key_sets(&self, reply: &mut Reply<'_>) {
        let Some(denial) = reply.denial.filter(|denial| self.is_apex(denial)) else { return };
        let rtype = self.asked.question.qtype;
        let Some(set) = self.keys.set(rtype) else { return };
        reply.denial = None;
        reply.authority = Section::default();
        let data = Data::Shared(Arc::clone(set));
        reply.answer.push(Records { owner: denial.owner, rtype, ttl: self.keys.key_ttl_s, data });
    }

    fn is_apex(&self, denial: &Denial<'_>) -> bool {
        matches!(denial.standing, Standing::Name { node: Some(node), .. } if node.owner() == self.apex)
    }

    /// No cache may hold a signature for longer than its key stays.
    fn cap_ttls(&self, reply: &mut Reply<'_>) {
        let ttl_s_max = self.keys.ttl_s_max;
        for section in [&mut reply.answer, &mut reply.authority, &mut reply.additional] {
            if section.iter().any(|records| records.ttl > ttl_s_max) {
                let mut capped = Section::default();
                for records in section.iter() {
                    capped.push(Records { ttl: records.ttl.min(ttl_s_max), ..records.clone() });
                }
                *section = capped;
            }
        }
    }

    /// Adds the proof of what is not there, and says NXDOMAIN only to those who take it beside a compact denial.
    fn prove(&self, reply: &mut Reply<'_>) {
        reply.compact = self.asked.dnssec_ok && self.asked.compact_ok;
        let Some(denial) = reply.denial else { return };
        if denial.standing == Standing::Nothing && !reply.compact {
            reply.rcode = Rcode::NoError;
        }
        if let Standing::Cut(Some(cut)) = denial.standing
            && let Some(set) = cut.set(DS)
        {
            let ttl = set.ttl.min(self.keys.ttl_s_max);
            let data = Data::Zone(&set.data);
            reply.authority.push(Records { owner: denial.owner, rtype: DS, ttl, data });
            return;
        }
        let mut types = denial.standing.types();
        if denial.standing == Standing::Nothing {
            types.push(NXNAME);
        }
        if self.is_apex(&denial) {
            types.extend([DNSKEY, CDS, CDNSKEY].into_iter().filter(|&rtype| self.keys.set(rtype).is_some()));
        }
        let data = Data::Made(nsec(&self.owner(denial.owner), types));
        // As long as the denial itself may be kept (RFC 9077 §3).
        let ttl = self.zone.negative_ttl().min(self.keys.ttl_s_max);
        let records = Records { owner: denial.owner, rtype: NSEC, ttl, data };
        if matches!(self.asked.question.qtype, NSEC | RRSIG) && !refers(reply) {
            // Its bitmap says that both types are there, so they are no denial but the answer.
            reply.rcode = Rcode::NoError;
            reply.authority = Section::default();
            reply.answer.push(records);
        } else {
            reply.authority.push(records);
        }
    }

    fn sign<'v>(&self, mut reply: Reply<'v>) -> Reply<'v> {
        if !reply.glue {
            reply.additional = Section::default();
        }
        let bytes = |records: &Records<'_>| records.iter().map(<[u8]>::len).sum::<usize>();
        if self.asked.may_truncate && reply.answer.iter().map(bytes).sum::<usize>() > DATAGRAM_DATA_BYTES_MAX
        {
            return truncated(&reply);
        }
        let mut signatures = match self.signatures(&reply) {
            Ok(signatures) => signatures.into_iter(),
            Err(Unsigned::OverBudget) => return self.over_budget(&reply),
            Err(Unsigned::Failed) => {
                self.room.counts.failed.fetch_add(1, Relaxed);
                return Reply::error(Rcode::ServFail, Ede::NOT_READY, "the answer could not be signed");
            }
        };
        let refers = refers(&reply);
        let shows = |rtype| rtype != NSEC || refers || self.asked.question.qtype != RRSIG;
        for section in [&mut reply.answer, &mut reply.authority] {
            let mut signed = Section::default();
            for records in section.iter() {
                if shows(records.rtype) {
                    signed.push(records.clone());
                }
                let count =
                    if is_signed(records, refers) { self.keys.signing(records.rtype).len() } else { 0 };
                for data in signatures.by_ref().take(count) {
                    let Records { owner, ttl, .. } = *records;
                    signed.push(Records { owner, rtype: RRSIG, ttl, data: Data::Made(data) });
                }
            }
            *section = signed;
        }
        reply
    }

    /// Too many signatures are being made. Who may be forged comes back over a stream; nothing is woken for it.
    fn over_budget<'v>(&self, reply: &Reply<'_>) -> Reply<'v> {
        let counts = &self.room.counts;
        if self.asked.may_truncate {
            counts.truncated.fetch_add(1, Relaxed);
            return truncated(reply);
        }
        counts.refused.fetch_add(1, Relaxed);
        Reply::error(Rcode::ServFail, Ede::NOT_READY, "too many signatures are being made; ask again")
    }

    /// The data of every RRSIG, in the order of the records.
    fn signatures(&self, reply: &Reply<'_>) -> Result<Vec<Vec<u8>>, Unsigned> {
        let refers = refers(reply);
        let sets = reply.answer.iter().chain(reply.authority.iter());
        let sets: Vec<&Records<'_>> = sets.filter(|records| is_signed(records, refers)).collect();
        let owners: Vec<Vec<u8>> = sets.iter().map(|records| self.owner(records.owner)).collect();
        let data: Vec<Vec<&[u8]>> = sets.iter().map(|records| records.iter().collect()).collect();
        let mut wanted = Vec::with_capacity(sets.len());
        for ((records, owner), data) in sets.iter().zip(&owners).zip(&data) {
            let set = RrSet { owner, rtype: records.rtype, original_ttl: self.original_ttl(records), data };
            // What nobody may keep is different the next time.
            let fleeting = records.ttl == 0 && matches!(records.data, Data::Made(_));
            let keys = self.keys.signing(records.rtype);
            wanted.extend(keys.iter().map(|key| Wanted { set, key, fleeting }));
        }
        self.signatures_of(&wanted, reply.of_endless_names)
    }

    fn signatures_of(&self, wanted: &[Wanted<'_>], endless: bool) -> Result<Vec<Vec<u8>>, Unsigned> {
        let clocks = self.room.clocks(self.asked.now);
        let signer = self.apex.as_wire();
        let found: Vec<Found> = wanted.iter().map(|wanted| self.room.find(wanted, signer, clocks)).collect();
        let missing = found.iter().filter(|found| matches!(found, Found::Missing(_))).count();
        let old = found.iter().filter(|found| matches!(found, Found::Old(..))).count();
        let Asked { proven, now, .. } = *self.asked;
        let take = |count| count == 0 || self.room.budgets.take(count, proven, endless, now);
        // What is good still can wait for a quieter moment.
        let renews = take(missing + old);
        if !renews && !take(missing) {
            return Err(Unsigned::OverBudget);
        }
        let mut reused = 0;
        let mut rrsigs = Vec::with_capacity(wanted.len());
        for (wanted, found) in wanted.iter().zip(found) {
            let make = |key| self.room.make(wanted, signer, key, clocks);
            let (kept, made) = match found {
                Found::Fresh(signed) => (Some(signed), None),
                Found::Old(signed, key) => (Some(signed), if renews { make(Some(key)) } else { None }),
                Found::Missing(key) => (None, make(key)),
            };
            reused += u64::from(made.is_none());
            let signed = made.or(kept).ok_or(Unsigned::Failed)?;
            let mut rrsig = rrsig_head(&wanted.set, signed.validity, wanted.key.tag(), signer);
            rrsig.extend_from_slice(&signed.signature);
            rrsigs.push(rrsig);
        }
        self.room.counts.reused.fetch_add(reused, Relaxed);
        Ok(rrsigs)
    }

    /// The largest TTL that the records are ever answered with.
    fn original_ttl(&self, records: &Records<'_>) -> u32 {
        let ttl = match (&records.data, records.rtype) {
            (Data::Address(_) | Data::Address6(_), _) => SERVICE_TTL_S_MAX,
            // Shorter beside a denial (RFC 2308 §3).
            (Data::Zone(_), SOA) => self.zone.soa().ttl,
            (Data::Zone(_) | Data::Made(_) | Data::Shared(_), _) => records.ttl,
        };
        ttl.min(self.keys.ttl_s_max)
    }

    /// The owner in wire format, lower case.
    fn owner(&self, owner: Owner<'_>) -> Vec<u8> {
        let wire = match owner {
            Owner::Question => self.asked.question.name.as_wire(),
            Owner::Name(wire) => wire,
        };
        // Length octets are below b'A'.
        wire.to_ascii_lowercase()
    }
}

/// Nothing but that there is more to be had over a stream.
fn truncated<'v>(reply: &Reply<'_>) -> Reply<'v> {
    let Reply { rcode, authoritative, compact, .. } = *reply;
    Reply { rcode, authoritative, compact, truncate: true, ..Reply::empty() }
}

/// Whether the reply leads to the name servers of another zone, or proves that there is no DS for it.
fn refers(reply: &Reply<'_>) -> bool {
    matches!(reply.denial, Some(Denial { standing: Standing::Cut(_), .. }))
}

/// Whether the zone is authoritative for the records, and does not merely repeat what the delegated zone says.
fn is_signed(records: &Records<'_>, refers: bool) -> bool {
    !(refers && records.rtype == NS)
}
