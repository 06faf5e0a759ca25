//! Making the changes of an update on a copy of the names that it touches (RFC 2136 §3.4.2).

use std::collections::BTreeMap;

use reveille_core::answer::rdata::{CNAME, NS, SOA};
use reveille_core::answer::{Record, RecordSet, ZoneDraft};
use reveille_core::model::DomainName;

use super::message::{Edit, canonical};

/// The RRsets of a name, by type.
pub(super) type Sets = BTreeMap<u16, RecordSet>;

/// The names that an update has touched so far.
pub(super) struct Workbench<'z> {
    zone: &'z ZoneDraft,
    names: BTreeMap<DomainName, Sets>,
}

impl<'z> Workbench<'z> {
    pub fn new(zone: &'z ZoneDraft) -> Self {
        Self { zone, names: BTreeMap::new() }
    }

    /// The types that a name has by now.
    pub fn types(&self, owner: &DomainName) -> Vec<u16> {
        match self.names.get(owner) {
            Some(sets) => sets.keys().copied().collect(),
            None => sets_of(self.zone, owner).into_keys().collect(),
        }
    }

    /// Makes one change. What RFC 2136 has a server ignore without a word is ignored: a CNAME beside other
    /// records, other records beside a CNAME, the removal of the SOA or of the last name server. Gives whether it
    /// was not ignored.
    pub fn apply(&mut self, edit: &Edit) -> bool {
        let at_apex = edit.owner() == self.zone.apex();
        let zone = self.zone;
        let sets = self.names.entry(edit.owner().clone()).or_insert_with(|| sets_of(zone, edit.owner()));
        match edit {
            Edit::Add(record) => return add(sets, record),
            Edit::DropSet(_, rtype) => {
                if at_apex && matches!(*rtype, NS | SOA) {
                    return false;
                }
                sets.remove(rtype);
            }
            Edit::DropName(_) => sets.retain(|rtype, _| at_apex && matches!(*rtype, NS | SOA)),
            Edit::DropRecord { rtype, data, .. } => {
                let Some(set) = sets.get_mut(rtype) else { return true };
                let gone = canonical(*rtype, data);
                if *rtype == SOA || (at_apex && *rtype == NS && set.data.len() == 1) {
                    return *rtype == NS && !set.data.iter().any(|data| canonical(*rtype, data) == gone);
                }
                set.data.retain(|data| canonical(*rtype, data) != gone);
                if set.data.is_empty() {
                    sets.remove(rtype);
                }
            }
        }
        true
    }

    /// The names that are not as they were, with their RRsets.
    pub fn finish(self) -> Vec<(DomainName, Sets)> {
        let mut changed = Vec::new();
        for (owner, mut sets) in self.names {
            let before = sets_of(self.zone, &owner);
            for (rtype, set) in &mut sets {
                // Taken away and put back is as it was, whatever the order.
                if let Some(was) = before.get(rtype).filter(|was| same(was, set)) {
                    set.clone_from(was);
                }
            }
            if sets != before {
                changed.push((owner, sets));
            }
        }
        changed
    }
}

pub(super) fn sets_of(zone: &ZoneDraft, owner: &DomainName) -> Sets {
    let sets = zone.node(owner).into_iter().flat_map(|node| node.sets());
    sets.map(|(rtype, set)| (rtype, set.clone())).collect()
}

fn same(one: &RecordSet, other: &RecordSet) -> bool {
    let sorted = |set: &RecordSet| {
        let mut data = set.data.clone();
        data.sort_unstable();
        data
    };
    one.ttl == other.ttl && one.data.len() == other.data.len() && sorted(one) == sorted(other)
}

/// RFC 2136 §3.4.2.2. The RRset takes the TTL of the last record that was added (RFC 2181 §5.2). Gives
/// whether the record was not ignored.
fn add(sets: &mut Sets, record: &Record) -> bool {
    let Record { rtype, ttl, data, .. } = record;
    if *rtype == CNAME {
        let alone = sets.keys().all(|&rtype| rtype == CNAME);
        if alone {
            sets.insert(CNAME, RecordSet { ttl: *ttl, data: vec![data.clone().into_boxed_slice()] });
        }
        return alone;
    }
    if sets.contains_key(&CNAME) {
        return false;
    }
    let set = sets.entry(*rtype).or_insert_with(|| RecordSet { ttl: *ttl, data: Vec::new() });
    set.ttl = *ttl;
    let own = canonical(*rtype, data);
    if !set.data.iter().any(|data| canonical(*rtype, data) == own) {
        set.data.push(data.clone().into_boxed_slice());
    }
    true
}
