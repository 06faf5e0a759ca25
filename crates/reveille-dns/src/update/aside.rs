//! What becomes of changes that were set aside when newer updates come: they are updated too.

use std::collections::BTreeMap;

use reveille_core::answer::rdata::{self, A, AAAA, CNAME, NS};
use reveille_core::answer::{Record, RecordSet, Zone, ZoneDraft};
use reveille_core::model::DomainName;

use super::edits::Sets;
use super::message::{Edit, canonical};
use super::overlay::SetChange;

/// Which RRset: owner and type.
pub type Key = (DomainName, u16);

/// The changes of a zone that were set aside, as updates that are not durable yet leave them. What is served does
/// not have them; an update of their names changes them nevertheless, so that they can undo nothing newer when
/// they fit again:
///
/// - what it removes is removed here;
/// - what it adds takes away what cannot stand beside it: an alias everything else of the name, everything else
///   the alias, a delegation the removal of its name server's address, and that removal the delegation.
#[derive(Debug, Clone)]
pub(super) struct Aside<'b> {
    before: &'b BTreeMap<Key, SetChange>,
    changed: BTreeMap<Key, Option<SetChange>>,
}

impl<'b> Aside<'b> {
    pub fn of(before: &'b BTreeMap<Key, SetChange>) -> Self {
        Self { before, changed: BTreeMap::new() }
    }

    /// The change of that RRset that is set aside.
    pub fn get(&self, key: &Key) -> Option<&SetChange> {
        self.changed.get(key).map_or_else(|| self.before.get(key), Option::as_ref)
    }

    /// Those that updates have changed; `None`: nothing is set aside any more.
    pub fn into_changed(self) -> BTreeMap<Key, Option<SetChange>> {
        self.changed
    }

    /// The RRsets that updates have changed here.
    pub fn changed(&self) -> impl Iterator<Item = &Key> {
        self.changed.keys()
    }

    /// The types of which the name has something set aside.
    pub fn types(&self, owner: &DomainName) -> Vec<u16> {
        let all = (owner.clone(), 0)..=(owner.clone(), u16::MAX);
        // What was changed was there before.
        let keys = self.before.range(all).map(|(key, _)| key);
        keys.filter(|key| self.get(key).is_some()).map(|(_, rtype)| *rtype).collect()
    }

    /// Makes an edit here that was made in the zone.
    pub fn apply(&mut self, apex: &DomainName, edit: &Edit) {
        if self.before.is_empty() {
            return;
        }
        match edit {
            Edit::Add(record) => self.add(record),
            Edit::DropSet(owner, rtype) => {
                self.drop_set(owner, *rtype);
                self.undelegate(owner, *rtype);
            }
            Edit::DropName(owner) => {
                for rtype in self.types(owner) {
                    // These stay whoever asks (RFC 2136 §3.4.2.3).
                    if owner != apex || !matches!(rtype, rdata::SOA | NS) {
                        self.drop_set(owner, rtype);
                    }
                }
                self.undelegate(owner, A);
            }
            Edit::DropRecord { owner, rtype, data } => {
                let gone = canonical(*rtype, data);
                self.retain_added(owner, *rtype, |data| canonical(*rtype, data) != gone);
                self.undelegate(owner, *rtype);
            }
        }
    }

    /// Gives up a change: what is newer cannot stand beside it.
    pub fn give_up(&mut self, key: Key) {
        if self.get(&key).is_some() {
            self.changed.insert(key, None);
        }
    }

    fn add(&mut self, record: &Record) {
        let Record { owner, rtype, data, .. } = record;
        let own = canonical(*rtype, data);
        self.change(owner, *rtype, |change| {
            change.removed.retain(|data| canonical(*rtype, data) != own);
        });
        for other in self.types(owner) {
            if (*rtype == CNAME) != (other == CNAME) {
                self.drop_set(owner, other);
            }
        }
        if *rtype == CNAME {
            self.drop_set(owner, CNAME);
            self.undelegate(owner, A);
        }
        if *rtype == NS
            && let Ok(server) = DomainName::from_wire(data)
            && server.is_at_or_below(owner)
        {
            for rtype in [A, AAAA] {
                self.change(&server, rtype, |change| change.removed.clear());
            }
        }
    }

    /// Nothing that was added to the RRset is to come back, its TTL neither.
    fn drop_set(&mut self, owner: &DomainName, rtype: u16) {
        self.retain_added(owner, rtype, |_| false);
        let key = (owner.clone(), rtype);
        if self.get(&key).is_some_and(|change| change.removed.is_empty()) {
            self.give_up(key);
        }
    }

    /// The address of a name server was removed: delegations to it that need it are not to come back.
    fn undelegate(&mut self, server: &DomainName, rtype: u16) {
        if !matches!(rtype, A | AAAA) {
            return;
        }
        let above = std::iter::successors(Some(server.clone()), DomainName::parent);
        for cut in above {
            self.retain_added(&cut, NS, |data| DomainName::from_wire(data).ok().as_ref() != Some(server));
        }
    }

    fn retain_added(&mut self, owner: &DomainName, rtype: u16, keep: impl Fn(&[u8]) -> bool) {
        self.change(owner, rtype, |change| change.added.retain(|data| keep(data)));
    }

    fn change(&mut self, owner: &DomainName, rtype: u16, with: impl FnOnce(&mut SetChange)) {
        let key = (owner.clone(), rtype);
        let Some(before) = self.get(&key) else { return };
        let mut change = before.clone();
        with(&mut change);
        if change != *before {
            let left = !(change.added.is_empty() && change.removed.is_empty());
            self.changed.insert(key, left.then_some(change));
        }
    }

    /// Gives up what was set aside of these names' RRsets if a row with it and with what is newer could not be laid
    /// over the file: then the newer alone is kept.
    pub fn make_room(&mut self, file: &Zone, zone: &ZoneDraft, names: &[(DomainName, Sets)]) {
        for (owner, now) in names {
            let in_file = |rtype| file.node(owner).and_then(|node| node.set(rtype));
            let (mut sets, mut joined) = (now.clone(), Vec::new());
            for rtype in self.types(owner) {
                let key = (owner.clone(), rtype);
                let new = SetChange::between(owner, rtype, in_file(rtype), now.get(&rtype));
                let Some(row) = new.filter(|_| self.get(&key).is_some()) else { continue };
                match row.beside(self.get(&key)).over(in_file(rtype)) {
                    Some(set) => sets.insert(rtype, set),
                    None => sets.remove(&rtype),
                };
                joined.push(key);
            }
            if !joined.is_empty() && zone.clone().change([(owner.clone(), sets)]).is_err() {
                joined.into_iter().for_each(|key| self.give_up(key));
            }
        }
    }

    /// The row of an RRset: how it differs from the file's, and what is set aside of it.
    pub fn row(&self, key: &Key, file: Option<&RecordSet>, now: Option<&RecordSet>) -> Option<SetChange> {
        let (owner, rtype) = key;
        match SetChange::between(owner, *rtype, file, now) {
            Some(new) => Some(new.beside(self.get(key))),
            None => self.get(key).cloned(),
        }
    }
}
