//! From a question to a reply: RFC 1034 §4.3.2 with the services laid over the static records.
//!
//! Which questions wake: A, and AAAA of a service that has an IPv6 address. Clients ask for A and AAAA together,
//! so a AAAA question that ends in NODATA adds nothing but noise; HTTPS and SVCB questions come beside them too.
//! ANY and everything else is asked by monitors and the curious. A question that reaches a service through a
//! CNAME wakes it, one that leaves the zone does not: the resolver comes back with the target's name.

use std::collections::BTreeSet;

use super::acl::Asker;
use super::key::QuestionName;
use super::rdata::{
    self, A, AAAA, ANY, AXFR, CLASS_IN, CNAME, DS, HINFO, IXFR, MX, NS, NSEC, RRSIG, SOA, SRV, TXT,
};
use super::reply::{Data, Ede, Owner, Rcode, Records, Reply};
use super::signing::{Denial, Standing};
use super::view::{ServiceView, View};
use super::vmstate::{self, VMSTATE_LABEL};
use super::zone::{Node, RecordSet, Zone};
use crate::model::{AnswerPolicy, Phase, Timestamp};

/// Most aliases that are followed for one question. A longer chain is answered as far as it goes, a loop once round;
/// the resolver goes on from there.
pub const CNAME_CHAIN_MAX: usize = 8;

/// How long the stand-in for ANY may be kept, in seconds: short, as nothing should come to rest on it.
const ANY_TTL_S: u32 = 60;
/// CPU `RFC8482`, empty OS (RFC 8482 §4.2).
const ANY_HINFO: &[u8] = b"\x07RFC8482\x00";

/// A question.
#[derive(Debug, Clone)]
pub struct Question {
    /// Name, as it was written.
    pub name: QuestionName,
    /// Type.
    pub qtype: u16,
    /// Class.
    pub qclass: u16,
}

/// Answers a question from the view. Pure; nothing is woken or held here, only asked for in the reply.
pub fn answer<'v>(view: &'v View, question: &Question, asker: Asker<'_>, now: Timestamp) -> Reply<'v> {
    if question.qclass != CLASS_IN {
        return Reply::error(Rcode::Refused, Ede::NOT_SUPPORTED, "only class IN is served");
    }
    let Some(zone) = view.zones().for_question(&question.name, question.qtype) else {
        return Reply::error(Rcode::Refused, Ede::NOT_AUTHORITATIVE, "this zone is not served here");
    };
    if matches!(question.qtype, AXFR | IXFR) {
        return Reply::error(Rcode::Refused, Ede::PROHIBITED, "zone transfers are not offered");
    }
    let Question { name: asked, qtype, .. } = question;
    let reply = Reply { zone: Some(zone), ..Reply::empty() };
    let mut lookup = Lookup { view, zone, asker, now, asked, qtype: *qtype, reply };
    let Some(mut target) = lookup.resolve(&question.name, Owner::Question) else { return lookup.reply };
    for _ in 1..CNAME_CHAIN_MAX {
        if lookup.has_answered_for(target) {
            // A loop. Each alias is there once (RFC 2181 §5).
            break;
        }
        // A malformed target cannot be in a checked zone.
        let Ok(name) = QuestionName::from_wire(target) else { break };
        if !view.zones().for_question(&name, *qtype).is_some_and(|other| std::ptr::eq(other, zone)) {
            break;
        }
        match lookup.resolve(&name, Owner::Name(target)) {
            Some(next) => target = next,
            None => break,
        }
    }
    lookup.reply
}

/// One question on its way through one zone.
struct Lookup<'v, 'k> {
    view: &'v View,
    zone: &'v Zone,
    asker: Asker<'k>,
    now: Timestamp,
    asked: &'k QuestionName,
    qtype: u16,
    reply: Reply<'v>,
}

impl<'v> Lookup<'v, '_> {
    /// Whether the answer has records of that name already.
    fn has_answered_for(&self, name: &[u8]) -> bool {
        // Length octets are below the letters, so names in wire format are compared as they are.
        self.reply.answer.iter().any(|records| match records.owner {
            Owner::Question => self.asked.as_wire().eq_ignore_ascii_case(name),
            Owner::Name(owner) => owner.eq_ignore_ascii_case(name),
        })
    }

    /// Adds what the zone has for one name of the chain; the target if that is an alias to be followed.
    fn resolve(&mut self, name: &QuestionName, owner: Owner<'v>) -> Option<&'v [u8]> {
        let (view, zone) = (self.view, self.zone);
        if let Some(cut) = zone.cut(name) {
            if self.qtype != DS || cut.owner().label_count() != name.label_count() {
                self.refer(cut);
                return None;
            }
            // The parent's side of the cut is authoritative for DS alone (RFC 4035 §3.1.4.1).
            match cut.set(DS) {
                Some(set) => self.give(owner, DS, set),
                None => self.no_data(owner, Standing::Cut(Some(cut))),
            }
            return None;
        }
        if let Some(service) = view.service_at(name.as_wire()) {
            self.at_service(service, zone.node_at(name.key()), owner);
            return None;
        }
        if let Some(service) = self.vmstate_of(name, name.label_count()) {
            self.at_vmstate(service, owner);
            return None;
        }
        if let Some(node) = zone.node_at(name.key()) {
            return self.at_node(node, owner);
        }
        if self.exists(name, name.label_count()) {
            let empty = Standing::Name { node: None, service: None };
            let is_apex = self.is_apex_of_other(name);
            self.no_data(owner, if is_apex { Standing::Cut(None) } else { empty });
            return None;
        }
        self.at_wildcard(name, owner)
    }

    /// A name that does not exist: a wildcard may stand for it.
    fn at_wildcard(&mut self, name: &QuestionName, owner: Owner<'v>) -> Option<&'v [u8]> {
        self.reply.of_endless_names = true;
        if let Some(wildcard) = self.wildcard(name) {
            let node = self.zone.node_at(wildcard.key());
            if let Some(service) = self.view.service_at(wildcard.as_wire()) {
                self.at_service(service, node, owner);
                return None;
            }
            if let Some(node) = node {
                return self.at_node(node, owner);
            }
            self.no_data(owner, Standing::Name { node: None, service: None });
        } else {
            self.reply.rcode = Rcode::NxDomain;
            self.no_data(owner, Standing::Nothing);
        }
        None
    }

    /// The wildcard below the closest encloser of a name that does not exist, if there is one (RFC 4592 §3.3.1).
    fn wildcard(&self, name: &QuestionName) -> Option<QuestionName> {
        let apex_labels = self.zone.apex_labels();
        let encloser = (apex_labels..name.label_count()).rev().find(|&labels| self.exists(name, labels));
        let wildcard = name.wildcard_below(encloser.unwrap_or(apex_labels))?;
        self.view.has_name(wildcard.as_wire()).then_some(wildcard)
    }

    fn at_node(&mut self, node: &'v Node, owner: Owner<'v>) -> Option<&'v [u8]> {
        // In a signed zone these two stand beside an alias (RFC 4035 §2.5).
        let beside_alias = self.zone.signer().is_some() && matches!(self.qtype, NSEC | RRSIG);
        if let Some(alias) = node.set(CNAME).filter(|_| !beside_alias) {
            self.give(owner, CNAME, alias);
            let follow = self.qtype != CNAME && self.qtype != ANY;
            return alias.data.first().filter(|_| follow).map(|data| &**data);
        }
        match node.set(self.qtype) {
            Some(set) => {
                self.give(owner, self.qtype, set);
                self.add_addresses_of_targets(owner, set);
            }
            None if self.qtype == ANY => self.give_stand_in(owner),
            None => self.no_data(owner, Standing::Name { node: Some(node), service: None }),
        }
        None
    }

    /// A service answers for its addresses; other types may stand beside it in the zone file.
    fn at_service(&mut self, service: &'v ServiceView, beside: Option<&'v Node>, owner: Owner<'v>) {
        self.reply.service = Some(service);
        let address = match self.qtype {
            A => Some(Data::Address(service.address.octets())),
            AAAA => service.address6.map(|address| Data::Address6(address.octets())),
            ANY => return self.give_stand_in(owner),
            rdata::VMSTATE => return self.at_vmstate(service, owner),
            CNAME => None,
            qtype => match beside.and_then(|node| node.set(qtype)) {
                Some(set) => {
                    self.give(owner, qtype, set);
                    return self.add_addresses_of_targets(owner, set);
                }
                None => None,
            },
        };
        let Some(data) = address else {
            return self.no_data(owner, Standing::Name { node: beside, service: Some(service) });
        };
        if service.phase != Phase::Active {
            if let Some(refused) = service.refused.as_ref().filter(|refused| refused.holds(self.now)) {
                // Not NXDOMAIN: that would be cached for a name that exists. SERVFAIL is kept for seconds.
                let error = Reply::error(Rcode::ServFail, Ede::NOT_READY, refused.text.as_str());
                self.reply = Reply { service: Some(service), ..error };
                return;
            }
            self.reply.wake = Some(service);
            self.reply.hold_ms_max = match service.answer {
                AnswerPolicy::Immediate => None,
                AnswerPolicy::Hold => Some(service.hold_ms_max.into()),
            };
        }
        self.reply.answer.push(Records { owner, rtype: self.qtype, ttl: service.ttl_s_at(self.now), data });
    }

    /// The state of a service. Those who may not ask are told so: REFUSED is true and leaves nothing behind, while
    /// NXDOMAIN would be a statement about the zone that is false for others, and a shared resolver would keep it
    /// for them too. That the service exists is no secret: its addresses are answered to anybody.
    fn at_vmstate(&mut self, service: &'v ServiceView, owner: Owner<'v>) {
        if !self.view.is_monitor(self.asker) {
            self.reply = Reply::error(
                Rcode::Refused,
                Ede::PROHIBITED,
                "the state of services is told to the networks and keys under `dns.status_allow` only",
            );
        } else if matches!(self.qtype, TXT | rdata::VMSTATE) {
            self.reply.answer.push(vmstate::records(service, self.qtype, owner, self.now));
        } else if self.qtype == ANY {
            self.give_stand_in(owner);
        } else {
            self.no_data(owner, Standing::VmState);
        }
    }

    /// The service whose state the ancestor with `labels` labels stands for.
    fn vmstate_of(&self, name: &QuestionName, labels: usize) -> Option<&'v ServiceView> {
        let parent = labels.checked_sub(1)?;
        let label = name.ancestor_key(labels).get(name.ancestor_key(parent).len() + 1..)?;
        if label != VMSTATE_LABEL {
            return None;
        }
        self.view.service_at(name.ancestor_wire(parent))
    }

    /// Whether the ancestor with `labels` labels exists: it, or a name below it, has records, is a service, or is
    /// the apex of another zone here (which the zone above should delegate, but may not).
    fn exists(&self, name: &QuestionName, labels: usize) -> bool {
        self.view.has_name(name.ancestor_wire(labels)) || self.vmstate_of(name, labels).is_some()
    }

    /// Whether another zone that is served here begins at the name. Only its DS is asked of the zone above.
    fn is_apex_of_other(&self, name: &QuestionName) -> bool {
        let other = self.view.zones().of(name);
        other
            .is_some_and(|other| !std::ptr::eq(other, self.zone) && other.apex_labels() == name.label_count())
    }

    fn give(&mut self, owner: Owner<'v>, rtype: u16, set: &'v RecordSet) {
        self.reply.answer.push(Records { owner, rtype, ttl: set.ttl, data: Data::Zone(&set.data) });
    }

    /// ANY is answered with a record that says nothing (RFC 8482): it amplifies nothing and wakes nobody.
    fn give_stand_in(&mut self, owner: Owner<'v>) {
        let data = Data::Made(ANY_HINFO.to_vec());
        self.reply.answer.push(Records { owner, rtype: HINFO, ttl: ANY_TTL_S, data });
    }

    fn no_data(&mut self, owner: Owner<'v>, standing: Standing<'v>) {
        self.reply.denial = Some(Denial { owner, standing });
        self.add_soa();
    }

    /// The SOA of a negative answer carries the time for which the answer may be kept (RFC 2308 §3).
    fn add_soa(&mut self) {
        self.reply.authority.push(Records {
            owner: Owner::Name(self.zone.apex().as_wire()),
            rtype: SOA,
            ttl: self.zone.negative_ttl(),
            data: Data::Zone(&self.zone.soa().data),
        });
    }

    /// The name lies in a zone that others serve.
    fn refer(&mut self, cut: &'v Node) {
        // With aliases in front the answer itself is authoritative still (AA speaks of the first owner, RFC 1035 §4.1.1).
        self.reply.authoritative = !self.reply.answer.is_empty();
        self.reply.glue = true;
        let owner = Owner::Name(cut.owner().as_wire());
        self.reply.denial = Some(Denial { owner, standing: Standing::Cut(Some(cut)) });
        if let Some(set) = cut.set(NS) {
            self.reply.authority.push(Records {
                owner,
                rtype: NS,
                ttl: set.ttl,
                data: Data::Zone(&set.data),
            });
            self.add_addresses(NS, owner, set);
        }
    }

    fn add_addresses_of_targets(&mut self, owner: Owner<'v>, set: &'v RecordSet) {
        // RFC 1035 §3.3.9 and §3.3.11, RFC 2782, RFC 9460 §4.1.
        if matches!(self.qtype, NS | MX | SRV | rdata::SVCB | rdata::HTTPS) {
            self.add_addresses(self.qtype, owner, set);
        }
    }

    /// The static addresses of the names that an RRset points to, as far as they are in this zone, each once. Those
    /// of services are left for the question that will be asked for them: it wakes.
    fn add_addresses(&mut self, rtype: u16, owner: Owner<'v>, set: &'v RecordSet) {
        let mut seen = BTreeSet::new();
        for data in &set.data {
            let Some(mut target) = rdata::target(rtype, data).map(Owner::Name) else { continue };
            if rdata::points_to_owner(rtype, data) {
                target = owner;
            }
            let parsed = match target {
                Owner::Question => Ok(self.asked.clone()),
                Owner::Name(wire) => QuestionName::from_wire(wire),
            };
            let Ok(name) = parsed else { continue };
            if set.data.len() > 1 && !seen.insert(name.key().to_vec()) {
                continue;
            }
            let Some(node) = self.addresses_of(&name) else { continue };
            for rtype in [A, AAAA] {
                let Some(set) = node.set(rtype) else { continue };
                let data = Data::Zone(&set.data);
                self.reply.additional.push(Records { owner: target, rtype, ttl: set.ttl, data });
            }
        }
    }

    /// Where the static addresses of a name in this zone stand: at it, also as glue, or at a wildcard.
    fn addresses_of(&self, name: &QuestionName) -> Option<&'v Node> {
        if self.view.service_at(name.as_wire()).is_some() {
            return None;
        }
        if let Some(node) = self.zone.node_at(name.key()) {
            return Some(node);
        }
        let is_here = self.view.zones().of(name).is_some_and(|zone| std::ptr::eq(zone, self.zone))
            && self.zone.cut(name).is_none()
            && !self.exists(name, name.label_count());
        let wildcard = is_here.then(|| self.wildcard(name)).flatten()?;
        let is_service = self.view.service_at(wildcard.as_wire()).is_some();
        self.zone.node_at(wildcard.key()).filter(|_| !is_service)
    }
}
