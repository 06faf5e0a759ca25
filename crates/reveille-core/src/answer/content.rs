//! What a zone is to others: its static records and its services' addresses, and how it came to be so.
//!
//! ```text
//!   View::advanced ─► content of the touched names before and after ─► Difference ─► serial + 1, History
//! ```
//!
//! A service's address is for life and its published TTL is constant, so waking and sleeping leave the content as
//! it is. `_vmstate` is not content. The serial and the history stand in the zone, and the zone in the view: a
//! transfer reads one view and is whole.

mod rezone;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::key::QuestionName;
use super::rdata::{A, AAAA, CNAME, SOA};
use super::reply::{Data, Owner, Records};
use super::table::Kinds;
use super::view::{ServiceView, View};
use super::vmstate::VMSTATE_LABEL;
use super::zone::{Node, Record, RecordSet, Zone};
use crate::model::DomainName;

/// Most differences that are kept of a zone. A secondary that is further behind transfers it in full.
pub const HISTORY_DIFFERENCES_MAX: usize = 1_024;
/// Most bytes that the differences of a zone take.
pub const HISTORY_BYTES_MAX: usize = 4 << 20;
/// Bytes of a record beside its name and data.
const RECORD_BYTES: usize = size_of::<Record>();

/// What one step of the serial changed (RFC 1995 §4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The serial before, and the SOA with it.
    pub from: (u32, RecordSet),
    /// The serial after, and the SOA with it.
    pub to: (u32, RecordSet),
    /// What is no longer there.
    pub removed: Vec<Record>,
    /// What came.
    pub added: Vec<Record>,
}

impl Difference {
    /// Bytes that it takes in memory, and no less than on the wire.
    pub fn bytes(&self) -> usize {
        let records = self.removed.iter().chain(&self.added);
        let records = records.map(|record| RECORD_BYTES + record.owner.as_wire().len() + record.data.len());
        let soas = [&self.from.1, &self.to.1].into_iter().flat_map(|set| &set.data);
        size_of::<Self>() + records.sum::<usize>() + soas.map(|data| data.len()).sum::<usize>()
    }
}

/// What several steps of the serial changed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condensed<'h> {
    /// The SOA before the first.
    pub from: &'h RecordSet,
    /// What is no longer there.
    pub removed: Vec<&'h Record>,
    /// What came.
    pub added: Vec<&'h Record>,
}

/// The last differences of a zone, each from the serial to which the one before led. Cloning shares them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History {
    differences: Arc<[Arc<Difference>]>,
    bytes: usize,
}

impl History {
    /// The differences that lead from that serial to the newest; `None` if they are not all kept.
    pub fn since(&self, serial: u32) -> Option<&[Arc<Difference>]> {
        let from = self.differences.iter().rposition(|difference| difference.from.0 == serial)?;
        self.differences.get(from..)
    }

    /// The differences from that serial to the newest as one (RFC 1995 §5): what came and went again in between is
    /// in neither half. `None` if they are not all kept.
    pub fn condensed_since(&self, serial: u32) -> Option<Condensed<'_>> {
        let differences = self.since(serial)?;
        let (mut removed, mut added) = (BTreeSet::new(), BTreeSet::new());
        for difference in differences {
            // A record is there or not, so it goes and comes in turns.
            for record in &difference.removed {
                if !added.remove(record) {
                    removed.insert(record);
                }
            }
            for record in &difference.added {
                if !removed.remove(record) {
                    added.insert(record);
                }
            }
        }
        let from = &differences.first()?.from.1;
        Some(Condensed { from, removed: Vec::from_iter(removed), added: Vec::from_iter(added) })
    }

    /// With one more, without the oldest beyond the limits.
    pub(super) fn with(&self, difference: Difference) -> Self {
        let mut bytes = self.bytes + difference.bytes();
        let mut drop_first = (self.differences.len() + 1).saturating_sub(HISTORY_DIFFERENCES_MAX);
        bytes -= self.differences.iter().take(drop_first).map(|old| old.bytes()).sum::<usize>();
        while bytes > HISTORY_BYTES_MAX {
            // One that is too large by itself leaves nothing to begin from.
            let Some(old) = self.differences.get(drop_first) else { return Self::default() };
            bytes -= old.bytes();
            drop_first += 1;
        }
        let kept = self.differences.iter().skip(drop_first).cloned();
        Self { differences: kept.chain([Arc::new(difference)]).collect(), bytes }
    }
}

/// A zone with other static records, and the names whose records differ.
#[derive(Debug, Clone)]
pub struct ZoneEdit {
    /// The zone as it is to be; its serial and history are those of the view that it goes into.
    pub zone: Arc<Zone>,
    /// Every name whose records differ from those in the view.
    pub names: Vec<DomainName>,
}

impl ServiceView {
    /// Whether the service is the same to a secondary.
    pub fn is_same_content(&self, other: &Self) -> bool {
        let content = |service: &Self| (service.address, service.address6, service.ttl_published_s);
        self.name == other.name && content(self) == content(other)
    }
}

impl View {
    /// Every RRset of the zone with that index except its SOA, in no useful order.
    pub fn content(&self, index: u16) -> impl Iterator<Item = Records<'_>> {
        let zone = self.zones().at(index);
        let nodes = zone.into_iter().flat_map(|zone| zone.nodes());
        let fixed = nodes.flat_map(move |node| self.of_node(node));
        let slots = self.names().iter().filter(move |slot| slot.zone() == index);
        let slots = slots.filter(|slot| !slot.kinds().any_of(Kinds::BELOW_CUT));
        fixed.chain(slots.filter_map(|slot| slot.service()).flat_map(|service| of_service(service)))
    }

    /// This view with some services changed (as of [`View::with`]) and some zones. Every zone whose content differs
    /// by it has its next serial, and the difference in its history.
    #[must_use]
    pub fn advanced(
        &self,
        generation: u64,
        services: impl IntoIterator<Item = (DomainName, Option<Arc<ServiceView>>)>,
        edits: impl IntoIterator<Item = ZoneEdit>,
    ) -> Self {
        let services: Vec<_> = services.into_iter().collect();
        let mut touched = Touched::default();
        for (name, service) in &services {
            self.touch_service(name, service.as_deref(), &mut touched);
        }
        let mut next = self.with(generation, services);
        for ZoneEdit { zone, names } in edits {
            let Some(index) = self.zones().find(zone.apex()) else { continue };
            let Some(before) = self.zones().at(index) else { continue };
            let names_of_zone = touched.entry(index).or_default();
            let names: BTreeSet<DomainName> = names.into_iter().collect();
            // A delegation hides the services below it.
            let moved: Vec<_> =
                names.iter().filter(|name| zone.is_cut(name) != before.is_cut(name)).collect();
            let below = self.services().map(|service| &service.name).filter(|_| !moved.is_empty());
            names_of_zone
                .extend(below.filter(|name| moved.iter().any(|cut| name.is_at_or_below(cut))).cloned());
            next = next.with_zone_at(index, Arc::new(zone.continuing(before)), &names);
            names_of_zone.extend(names);
        }
        for (index, names) in touched {
            let (removed, added) = self.differences(index, &next, index, &names);
            if let Some(zone) = next.zones().at(index)
                && !(removed.is_empty() && added.is_empty())
            {
                let zone = Arc::new(zone.advanced(removed, added));
                next.replace_zone(index, zone);
            }
        }
        next
    }

    /// Notes the names at which the change of a service may change the content of its zone.
    fn touch_service(&self, name: &DomainName, after: Option<&ServiceView>, touched: &mut Touched) {
        let same = match (self.service(name), after) {
            (Some(before), Some(after)) => before.is_same_content(after),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        let Some(index) = self.zones().find_of(name).filter(|_| !same) else { return };
        let names = touched.entry(index).or_default();
        // What stands where the service's state is asked for is hidden by the service.
        let state_name = name.prepend(&String::from_utf8_lossy(VMSTATE_LABEL)).ok();
        let has_node =
            |name: &DomainName| self.zones().at(index).is_some_and(|zone| zone.node(name).is_some());
        names.extend(state_name.filter(has_node));
        names.insert(name.clone());
    }

    /// The content of the zone with that index at one name, without the SOA.
    fn content_at(&self, index: u16, name: &DomainName) -> Vec<Record> {
        let Some(zone) = self.zones().at(index) else { return Vec::new() };
        let mut records = Vec::new();
        let question = QuestionName::from(name);
        let mut add = |set: Records<'_>| {
            let (rtype, ttl) = (set.rtype, set.ttl);
            let one = |data: &[u8]| Record { owner: name.clone(), rtype, ttl, data: data.to_vec() };
            records.extend(set.iter().map(one));
        };
        zone.node_at(question.key()).into_iter().flat_map(|node| self.of_node(node)).for_each(&mut add);
        let is_own = self.zones().find_of(name) == Some(index) && zone.cut(&question).is_none();
        let service = self.service(name).filter(|_| is_own);
        service.into_iter().flat_map(|service| of_service(service)).for_each(&mut add);
        records
    }

    /// What of a static name's records is content: not what a service answers in their place.
    fn of_node<'v>(&'v self, node: &'v Node) -> impl Iterator<Item = Records<'v>> {
        let wire = node.owner().as_wire();
        let has_service = self.service_at(wire).is_some();
        let is_state = is_vmstate(node.owner(), |parent| self.service(parent).is_some());
        let hidden = move |rtype| match rtype {
            SOA => true,
            A | AAAA | CNAME => has_service,
            _ => false,
        };
        let sets = node.sets().filter(move |(rtype, _)| !is_state && !hidden(*rtype));
        sets.map(move |(rtype, set)| Records {
            owner: Owner::Name(wire),
            rtype,
            ttl: set.ttl,
            data: Data::Zone(&set.data),
        })
    }
}

/// Names whose content may have changed, by the index of their zone.
type Touched = BTreeMap<u16, BTreeSet<DomainName>>;

/// What a service adds to its zone.
fn of_service(service: &ServiceView) -> impl Iterator<Item = Records<'_>> {
    let of = |rtype, data| Records {
        owner: Owner::Name(service.name.as_wire()),
        rtype,
        ttl: service.ttl_published_s,
        data,
    };
    let four = of(A, Data::Address(service.address.octets()));
    let six = service.address6.map(|address| of(AAAA, Data::Address6(address.octets())));
    [Some(four), six].into_iter().flatten()
}

fn is_vmstate(name: &DomainName, is_service: impl Fn(&DomainName) -> bool) -> bool {
    name.labels().next() == Some(VMSTATE_LABEL) && name.parent().is_some_and(|parent| is_service(&parent))
}
