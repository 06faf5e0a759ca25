//! Changing a zone: what is looked at and checked is what was touched, and names that were not touched are shared
//! with the zone before.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::content::{Difference, History};
use super::super::key::NameKey;
use super::super::rdata::{self, NS, SOA};
use super::{Node, Record, RecordSet, Zone, ZoneFault, ZoneFaultKind, record_fault, unreachable_servers};
use crate::model::DomainName;

/// A zone with some names changed, not a zone of its own yet. Every state that it passes through could be served.
#[derive(Debug, Clone)]
pub struct ZoneDraft {
    base: Arc<Zone>,
    /// Names that differ from the base; `None`: without records.
    names: BTreeMap<NameKey, (DomainName, Option<Arc<Node>>)>,
}

impl ZoneDraft {
    /// The zone, unchanged so far.
    pub fn of(base: Arc<Zone>) -> Self {
        Self { base, names: BTreeMap::new() }
    }

    /// The zone's name.
    pub fn apex(&self) -> &DomainName {
        self.base.apex()
    }

    /// The zone before the changes.
    pub fn base(&self) -> &Arc<Zone> {
        &self.base
    }

    /// The records of that name, as they are by now.
    pub fn node(&self, name: &DomainName) -> Option<&Node> {
        let key = NameKey::from(name);
        match self.names.get(&key) {
            Some((_, node)) => node.as_deref(),
            None => self.base.node_at(key.as_ref()),
        }
    }

    /// Every name that was changed, with its records as they are by now.
    pub fn changed(&self) -> impl Iterator<Item = (&DomainName, Option<&Node>)> {
        self.names.values().map(|(name, node)| (name, node.as_deref()))
    }

    /// Gives names exactly these RRsets; those without any have no records any more.
    ///
    /// # Errors
    /// What could not be served, as of [`Zone::new`], without an index; the draft is as it was before.
    pub fn change(
        &mut self,
        names: impl IntoIterator<Item = (DomainName, BTreeMap<u16, RecordSet>)>,
    ) -> Result<(), Vec<ZoneFaultKind>> {
        let mut next = self.clone();
        let mut faults = Vec::new();
        let mut touched = Vec::new();
        for (name, sets) in names {
            match node(self.apex(), &name, sets) {
                Ok(node) => {
                    next.names.insert(NameKey::from(&name), (name.clone(), node));
                    touched.push(name);
                }
                Err(more) => faults.extend(more),
            }
        }
        faults.extend(touched.iter().flat_map(|name| next.faults_at(name)));
        if faults.is_empty() {
            *self = next;
            Ok(())
        } else {
            Err(faults)
        }
    }

    /// The changed zone, at the serial of the zone before unless the SOA was changed. Costs the map of all names.
    pub fn finish(&self) -> Zone {
        let mut zone = (*self.base).clone();
        let nodes = Arc::make_mut(&mut zone.nodes);
        for (key, (name, node)) in &self.names {
            let before = match node {
                Some(node) => nodes.insert(key.clone(), Arc::clone(node)),
                None => nodes.remove(key),
            };
            if *name == zone.apex {
                continue;
            }
            let is_cut = |node: &Option<Arc<Node>>| node.as_ref().is_some_and(|node| node.set(NS).is_some());
            zone.cut_count = zone.cut_count - usize::from(is_cut(&before)) + usize::from(is_cut(node));
        }
        if let Some(apex) = self.node(&self.base.apex) {
            zone.apex_node = apex.clone();
        }
        // A draft whose apex has no SOA that can be read was refused.
        let soa = zone.apex_node.set(SOA).cloned();
        if let Some(soa) = soa
            && let Some((serial, minimum)) = soa.data.first().and_then(|data| rdata::soa_numbers(data))
        {
            zone.serial = serial;
            zone.negative_ttl = soa.ttl.min(minimum);
            zone.soa = soa;
        }
        zone
    }

    /// What the changed name alone can have broken: the apex, its own delegation, the delegations above it whose
    /// name server it is.
    fn faults_at(&self, name: &DomainName) -> Vec<ZoneFaultKind> {
        let node = self.node(name);
        if name == self.apex() {
            let has = |rtype| node.is_some_and(|node| node.set(rtype).is_some());
            let no_soa = (!has(SOA)).then(|| ZoneFaultKind::NoSoa(name.clone()));
            let no_ns = (!has(NS)).then(|| ZoneFaultKind::NoNs(name.clone()));
            return no_soa.into_iter().chain(no_ns).collect();
        }
        let look = |server: &DomainName| self.node(server);
        let mut faults: Vec<ZoneFaultKind> =
            node.into_iter().flat_map(|node| unreachable_servers(node, look)).collect();
        let above = std::iter::successors(name.parent(), DomainName::parent);
        for cut in above.take_while(|above| above != self.apex()).filter_map(|above| self.node(&above)) {
            let broken = unreachable_servers(cut, look);
            faults.extend(
                broken
                    .filter(|fault| matches!(fault, ZoneFaultKind::NoGlue { server, .. } if server == name)),
            );
        }
        faults
    }
}

impl Zone {
    /// These static records, with their own signer and those who may transfer them, at the serial and with the history
    /// of the zone in whose place they come.
    pub(in crate::answer) fn in_place_of(&self, before: &Self) -> Self {
        let mut next = self.clone();
        // With a step that nobody could have seen it would have a gap.
        next.history = if self.transfer.is_nobody() { History::default() } else { before.history.clone() };
        next.set_serial(before.serial);
        next
    }

    /// Whether the SOA is the same but for its serial.
    pub(in crate::answer) fn has_soa_of(&self, other: &Self) -> bool {
        let mut soa = self.soa.clone();
        for data in &mut soa.data {
            rdata::set_soa_serial(data, other.serial);
        }
        soa == other.soa
    }

    /// The zone at that serial, to which that difference to another zone led, in whose place it came.
    pub(in crate::answer) fn advanced_from(
        &self,
        before: &Self,
        serial: u32,
        removed: Vec<Record>,
        added: Vec<Record>,
    ) -> Self {
        let mut next = self.clone();
        next.set_serial(serial);
        if !self.transfer.is_nobody() {
            let (from, to) = ((before.serial, before.soa.clone()), (serial, next.soa.clone()));
            next.history = self.history.with(Difference { from, to, removed, added });
        }
        next
    }

    /// Whether nothing but the serial and what led to it differs, given that all names have the same records.
    pub(in crate::answer) fn is_in_place(&self, before: &Self) -> bool {
        self.transfer == before.transfer && self.signer == before.signer && self.has_soa_of(before)
    }

    /// The names that have other records here than there, the SOA's serial not counted.
    pub(in crate::answer) fn names_that_differ(&self, other: &Self) -> BTreeSet<DomainName> {
        if Arc::ptr_eq(&self.nodes, &other.nodes) {
            return BTreeSet::new();
        }
        let mut names: BTreeSet<DomainName> =
            self.names_apart(other).into_iter().flatten().cloned().collect();
        let both = self.nodes.iter().filter_map(|(key, node)| Some((node, other.nodes.get(key)?)));
        let differ = both.filter(|(own, theirs)| !Arc::ptr_eq(own, theirs) && own != theirs);
        names.extend(differ.map(|(node, _)| node.owner().clone()));
        names
    }

    /// The names that only this zone has, and those that only the other has.
    fn names_apart<'z>(&'z self, other: &'z Self) -> [Vec<&'z DomainName>; 2] {
        let mut apart = [Vec::new(), Vec::new()];
        let (mut mine, mut theirs) = (self.nodes.iter().peekable(), other.nodes.iter().peekable());
        loop {
            let order = match (mine.peek(), theirs.peek()) {
                (Some((own, _)), Some((other, _))) => own.cmp(other),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return apart,
            };
            let (own, other) = match order {
                Ordering::Less => (mine.next(), None),
                Ordering::Greater => (None, theirs.next()),
                Ordering::Equal => {
                    mine.next();
                    theirs.next();
                    continue;
                }
            };
            apart[0].extend(own.map(|(_, node)| node.owner()));
            apart[1].extend(other.map(|(_, node)| node.owner()));
        }
    }
}

/// A name with these RRsets, checked; `None` without any.
fn node(
    apex: &DomainName,
    owner: &DomainName,
    sets: BTreeMap<u16, RecordSet>,
) -> Result<Option<Arc<Node>>, Vec<ZoneFaultKind>> {
    let mut node = Node { owner: owner.clone(), sets: BTreeMap::new() };
    let mut faults = Vec::new();
    for (rtype, RecordSet { ttl, data }) in sets {
        for data in data {
            let record = Record { owner: owner.clone(), rtype, ttl, data: data.into_vec() };
            let fault = record_fault(apex, &record).or_else(|| node.take(&record, apex));
            faults.extend(fault.filter(|fault| faults.last() != Some(fault)));
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    Ok((!node.sets.is_empty()).then(|| Arc::new(node)))
}

impl From<ZoneFault> for ZoneFaultKind {
    fn from(fault: ZoneFault) -> Self {
        fault.kind
    }
}
