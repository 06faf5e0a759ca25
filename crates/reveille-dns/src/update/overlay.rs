//! What updates have changed, as differences to the zone file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use reveille_core::answer::{RecordSet, VMSTATE_LABEL, Zone, ZoneDraft, rdata};
use reveille_core::model::DomainName;

use super::edits::{Sets, sets_of};
use super::message::canonical;

/// How one RRset differs from the zone file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetChange {
    /// Whose.
    pub owner: DomainName,
    /// Type.
    pub rtype: u16,
    /// TTL of the RRset since the last update of it, in seconds.
    pub ttl: u32,
    /// Data that the file does not have, uncompressed.
    pub added: Vec<Vec<u8>>,
    /// Data that only the file has, uncompressed.
    pub removed: Vec<Vec<u8>>,
}

/// A change that does not fit the zone file any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// The change.
    pub change: SetChange,
    /// What it does not fit.
    pub why: String,
}

impl SetChange {
    /// How the RRset differs from the file's; `None` if it does not.
    pub fn between(
        owner: &DomainName,
        rtype: u16,
        file: Option<&RecordSet>,
        now: Option<&RecordSet>,
    ) -> Option<Self> {
        let data = |set: Option<&RecordSet>| set.map_or_else(Vec::new, |set| set.data.clone());
        let (in_file, is_now) = (data(file), data(now));
        let ttl = now.or(file)?.ttl;
        let change = Self {
            owner: owner.clone(),
            rtype,
            ttl,
            added: missing_from(&in_file, &is_now, rtype),
            removed: missing_from(&is_now, &in_file, rtype),
        };
        let same_ttl = now.is_none() || file.is_some_and(|file| file.ttl == ttl);
        (!(change.added.is_empty() && change.removed.is_empty() && same_ttl)).then_some(change)
    }

    /// This change and an older one of the same RRset that is set aside, in one.
    pub(super) fn beside(mut self, aside: Option<&Self>) -> Self {
        let Some(aside) = aside else { return self };
        for (own, older) in [(&mut self.added, &aside.added), (&mut self.removed, &aside.removed)] {
            let known: BTreeSet<Vec<u8>> = own.iter().map(|data| canonical(aside.rtype, data)).collect();
            own.extend(older.iter().filter(|data| !known.contains(&canonical(aside.rtype, data))).cloned());
        }
        self
    }

    /// The RRset that this change makes of the file's; `None` if nothing is left.
    pub(super) fn over(&self, file: Option<&RecordSet>) -> Option<RecordSet> {
        let mut data = file.map_or_else(Vec::new, |set| set.data.clone());
        let removed: BTreeSet<Vec<u8>> =
            self.removed.iter().map(|data| canonical(self.rtype, data)).collect();
        data.retain(|data| !removed.contains(&canonical(self.rtype, data)));
        if self.rtype == rdata::CNAME && !self.added.is_empty() {
            // Of a CNAME there is one: the update's, whatever the file has by now.
            data.clear();
        }
        let own: Vec<Box<[u8]>> = self.added.iter().map(|data| data.clone().into_boxed_slice()).collect();
        let new = missing_from(&data, &own, self.rtype);
        data.extend(new.into_iter().map(Vec::into_boxed_slice));
        (!data.is_empty()).then_some(RecordSet { ttl: self.ttl, data })
    }
}

/// What of `these` is not in `those`.
fn missing_from(those: &[Box<[u8]>], these: &[Box<[u8]>], rtype: u16) -> Vec<Vec<u8>> {
    let known: BTreeSet<Vec<u8>> = those.iter().map(|data| canonical(rtype, data)).collect();
    let new = these.iter().filter(|data| !known.contains(&canonical(rtype, data)));
    new.map(|data| data.to_vec()).collect()
}

/// Tells which changes are not to be served because one of these services has the name by now: for [`lay_over`].
pub fn taken_by(services: &BTreeSet<DomainName>) -> impl Fn(&SetChange) -> Option<String> + '_ {
    |change| {
        let SetChange { owner, rtype, added, .. } = change;
        let own = matches!(*rtype, rdata::A | rdata::AAAA | rdata::CNAME | rdata::VMSTATE);
        let has_addresses = own && services.contains(owner);
        // Names below a name follow it.
        let delegated = services.range(owner..).next().filter(|service| service.is_at_or_below(owner));
        let state_of = owner.parent().filter(|_| owner.labels().next() == Some(VMSTATE_LABEL));
        let why = if has_addresses {
            "the name is a service by now".to_owned()
        } else if let Some(service) = delegated.filter(|_| *rtype == rdata::NS) {
            format!("the service {service} would be delegated away")
        } else if let Some(service) = state_of.filter(|parent| services.contains(parent)) {
            format!("the state of the service {service} is asked for there")
        } else {
            return None;
        };
        (!added.is_empty()).then_some(why)
    }
}

/// The zone of the file with the changes laid over it, and those that do not fit it. `taken` tells why a change
/// is not to be served although the zone would allow it: the name belongs to somebody else by now.
pub fn lay_over(
    file: Arc<Zone>,
    changes: Vec<SetChange>,
    taken: impl Fn(&SetChange) -> Option<String>,
) -> (Arc<Zone>, Vec<SetAside>) {
    let mut aside = Vec::new();
    let mut by_name: BTreeMap<DomainName, Vec<SetChange>> = BTreeMap::new();
    for change in changes {
        match taken(&change) {
            Some(why) => aside.push(SetAside { change, why }),
            None => by_name.entry(change.owner.clone()).or_default().push(change),
        }
    }
    let mut draft = ZoneDraft::of(Arc::clone(&file));
    let laid = by_name.iter().map(|(owner, changes)| (owner.clone(), sets_over(&file, owner, changes)));
    if draft.change(laid).is_err() {
        // Some do not fit. Names as a whole first, then change by change: what fits is not to go with what does not.
        lay_what_fits(&file, &mut draft, &mut by_name);
        aside.extend(lay_single(&file, &mut draft, by_name));
    }
    let zone = if draft.changed().next().is_none() { file } else { Arc::new(draft.finish()) };
    (zone, aside)
}

/// Lays names as long as one helps another (an address, and then the delegation that needs it); the others are left.
fn lay_what_fits(file: &Zone, draft: &mut ZoneDraft, by_name: &mut BTreeMap<DomainName, Vec<SetChange>>) {
    let mut before = usize::MAX;
    while by_name.len() < before {
        before = by_name.len();
        by_name.retain(|owner, changes| {
            draft.change([(owner.clone(), sets_over(file, owner, changes))]).is_err()
        });
    }
}

/// Lays single changes as long as one helps another; gives those that do not fit, with the reason.
fn lay_single(
    file: &Zone,
    draft: &mut ZoneDraft,
    by_name: BTreeMap<DomainName, Vec<SetChange>>,
) -> Vec<SetAside> {
    let mut lay_one = |change: &SetChange| {
        let mut sets = sets_of(draft, &change.owner);
        lay(file, change, &mut sets);
        draft.change([(change.owner.clone(), sets)])
    };
    let mut left: Vec<SetChange> = by_name.into_values().flatten().collect();
    let mut before = usize::MAX;
    while left.len() < before {
        before = left.len();
        left.retain(|change| lay_one(change).is_err());
    }
    let reasoned = left.into_iter().map(|change| {
        let faults = lay_one(&change).err().unwrap_or_default();
        let why = faults.first().map_or_else(String::new, ToString::to_string);
        SetAside { change, why }
    });
    reasoned.collect()
}

fn sets_over(file: &Zone, owner: &DomainName, changes: &[SetChange]) -> Sets {
    let node = file.node(owner);
    let sets = node.into_iter().flat_map(|node| node.sets());
    let mut sets: Sets = sets.map(|(rtype, set)| (rtype, set.clone())).collect();
    changes.iter().for_each(|change| lay(file, change, &mut sets));
    sets
}

/// Puts the RRset that a change makes of the file's among those of its name.
fn lay(file: &Zone, change: &SetChange, sets: &mut Sets) {
    let SetChange { owner, rtype, .. } = change;
    if *rtype == rdata::SOA {
        return;
    }
    match change.over(file.node(owner).and_then(|node| node.set(*rtype))) {
        Some(set) => sets.insert(*rtype, set),
        None => sets.remove(rtype),
    };
}
