//! The static records of all zones as updates have made them: judges a group of updates one after another and
//! tells what to write before anybody sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use reveille_core::answer::{Node, Rcode, View, Zone, ZoneDraft, ZoneEdit, rdata};
use reveille_core::model::DomainName;

use super::CHANGED_SETS_MAX;
use super::aside::{Aside, Key};
use super::edits::Sets;
use super::grant::Grant;
use super::judge::{Refusal, Request, judge};
use super::overlay::SetChange;

/// Who may update which zone, and how far each zone is from its file.
#[derive(Debug, Clone, Default)]
pub struct StaticBook {
    zones: BTreeMap<DomainName, Page>,
}

#[derive(Debug, Clone)]
struct Page {
    /// As the file has it.
    file: Arc<Zone>,
    grants: Vec<Grant>,
    /// RRsets that have a row.
    rows: BTreeSet<Key>,
    /// What of the rows was set aside.
    aside: BTreeMap<Key, SetChange>,
}

/// What came of a group of updates.
#[derive(Debug, Clone, Default)]
pub struct Verdicts {
    /// For each update in its order: made, or why not.
    pub answers: Vec<Result<(), Refusal>>,
    /// Every zone that is to change, or what is set aside of it. The answers hold only once its rows are durable.
    pub changed: Vec<ChangedZone>,
}

/// A zone that a group of updates has changed.
#[derive(Debug, Clone)]
pub struct ChangedZone {
    /// The zone as it is to be served, and the names whose records differ: for [`View::advanced`], which gives it
    /// its serial. Without names only what is set aside differs, and there is nothing to publish.
    pub edit: ZoneEdit,
    /// Rows to write.
    pub rows: Vec<Row>,
    /// What is set aside from then on, where that differs.
    aside: BTreeMap<Key, Option<SetChange>>,
}

impl StaticBook {
    /// Opens a page for a zone: the zone as its file has it, who may update it, and the rows that there are,
    /// those that were set aside included.
    pub fn open_page(
        &mut self,
        file: Arc<Zone>,
        grants: Vec<Grant>,
        rows: impl IntoIterator<Item = (DomainName, u16)>,
    ) {
        let (apex, rows) = (file.apex().clone(), rows.into_iter().collect());
        self.zones.insert(apex, Page { file, grants, rows, aside: BTreeMap::new() });
    }

    /// Tells which rows of a zone's page were set aside by [`super::lay_over`]: updates of their names change them.
    pub fn set_aside(&mut self, apex: &DomainName, changes: impl IntoIterator<Item = SetChange>) {
        let Some(page) = self.zones.get_mut(apex) else { return };
        page.aside =
            changes.into_iter().map(|change| ((change.owner.clone(), change.rtype), change)).collect();
    }

    /// Judges updates one after another, each against the zone as the ones before leave it. Nothing is taken over
    /// yet: that is [`StaticBook::commit`], once the rows are durable and the zones are in the view.
    pub fn judge<'r>(&self, view: &View, requests: impl IntoIterator<Item = Request<'r>>) -> Verdicts {
        let mut drafts: BTreeMap<DomainName, Draft<'_>> = BTreeMap::new();
        let answers =
            requests.into_iter().map(|request| self.judge_one(view, &mut drafts, request)).collect();
        let changed = drafts.into_values().filter_map(Draft::finish).collect();
        Verdicts { answers, changed }
    }

    /// Takes over what became durable.
    pub fn commit(&mut self, changed: &[ChangedZone]) {
        for ChangedZone { edit, rows, aside } in changed {
            let Some(page) = self.zones.get_mut(edit.zone.apex()) else { continue };
            for (key, row) in rows {
                match row {
                    Some(_) => page.rows.insert(key.clone()),
                    None => page.rows.remove(key),
                };
            }
            for (key, change) in aside {
                match change {
                    Some(change) => page.aside.insert(key.clone(), change.clone()),
                    None => page.aside.remove(key),
                };
            }
        }
    }

    /// The rows of these RRsets as they should be by the zones of the view: to write again after a write whose
    /// outcome nobody knows.
    pub fn rows_of(&self, view: &View, changed: &[ChangedZone]) -> Vec<(DomainName, Vec<Row>)> {
        let rows = changed.iter().filter_map(|ChangedZone { edit: ZoneEdit { zone, .. }, rows, .. }| {
            let (page, seen) = (self.zones.get(zone.apex())?, view.zones().with_apex(zone.apex())?);
            let set = |zone: &Arc<Zone>, owner: &DomainName, rtype| zone.node(owner)?.set(rtype).cloned();
            let aside = Aside::of(&page.aside);
            let rows = rows.iter().map(|(key, _)| {
                let (owner, rtype) = key;
                let (file, now) = (set(&page.file, owner, *rtype), set(seen, owner, *rtype));
                (key.clone(), aside.row(key, file.as_ref(), now.as_ref()))
            });
            Some((zone.apex().clone(), rows.collect()))
        });
        rows.collect()
    }

    fn judge_one<'b>(
        &'b self,
        view: &View,
        drafts: &mut BTreeMap<DomainName, Draft<'b>>,
        request: Request<'_>,
    ) -> Result<(), Refusal> {
        let question = &request.message.query.question;
        if question.qtype != rdata::SOA {
            return Err(Refusal::new(Rcode::FormErr, "the zone section must ask for a SOA"));
        }
        let not_here = || Refusal::new(Rcode::NotAuth, "this zone is not served here");
        let apex = DomainName::from_wire(question.name.as_wire()).map_err(|_| not_here())?;
        let page =
            self.zones.get(&apex).filter(|_| question.qclass == rdata::CLASS_IN).ok_or_else(not_here)?;
        let draft = match drafts.remove(&apex) {
            Some(draft) => draft,
            None => {
                let zone = ZoneDraft::of(Arc::clone(view.zones().with_apex(&apex).ok_or_else(not_here)?));
                Draft { page, zone, rows: BTreeMap::new(), aside: Aside::of(&page.aside) }
            }
        };
        let draft = drafts.entry(apex).or_insert(draft);
        let mut aside = draft.aside.clone();
        let names = judge(view, &draft.zone, &page.grants, &mut aside, request)?;
        let mut zone = draft.zone.clone();
        // Judged to be servable, so this cannot fail.
        if zone.change(names.iter().cloned()).is_err() {
            return Ok(());
        }
        aside.make_room(&page.file, &zone, &names);
        let mut rows = draft.rows.clone();
        rows.extend(draft.rows_for(&names, &zone, &aside));
        if page.count_with(&rows) > CHANGED_SETS_MAX {
            let why = format!(
                "updates have changed {CHANGED_SETS_MAX} RRsets of the zone already; move some into its file"
            );
            return Err(Refusal::new(Rcode::Refused, why));
        }
        (draft.zone, draft.rows, draft.aside) = (zone, rows, aside);
        Ok(())
    }
}

/// The row of an RRset, to be written; `None`: the RRset is as in the file, and has none.
pub type Row = (Key, Option<SetChange>);

impl Page {
    /// How many rows there would be with these.
    fn count_with(&self, rows: &BTreeMap<Key, Option<SetChange>>) -> usize {
        let new = rows.iter().filter(|(key, row)| row.is_some() && !self.rows.contains(key)).count();
        let gone = rows.iter().filter(|(key, row)| row.is_none() && self.rows.contains(key)).count();
        self.rows.len() + new - gone
    }
}

/// A zone on its way through a group of updates.
struct Draft<'b> {
    page: &'b Page,
    zone: ZoneDraft,
    rows: BTreeMap<Key, Option<SetChange>>,
    aside: Aside<'b>,
}

impl Draft<'_> {
    /// The rows of every RRset of these names that differs between the draft and the zone as it is to be, and of
    /// every one of which something else is set aside.
    fn rows_for(&self, names: &[(DomainName, Sets)], zone: &ZoneDraft, aside: &Aside<'_>) -> Vec<Row> {
        let mut keys: BTreeSet<Key> = aside.changed().cloned().collect();
        for (owner, sets) in names {
            let before = self.zone.node(owner);
            let was = |rtype| before.and_then(|node| node.set(rtype));
            let types = before.into_iter().flat_map(|node| node.sets().map(|(rtype, _)| rtype));
            let types = types.chain(sets.keys().copied());
            keys.extend(
                types.filter(|rtype| was(*rtype) != sets.get(rtype)).map(|rtype| (owner.clone(), rtype)),
            );
        }
        let rows = keys.into_iter().map(|key| {
            let (owner, rtype) = &key;
            let file = self.page.file.node(owner).and_then(|node| node.set(*rtype));
            let now = zone.node(owner).and_then(|node| node.set(*rtype));
            let row = aside.row(&key, file, now);
            (key, row)
        });
        rows.collect()
    }

    /// `None` if nothing is to change in the end.
    fn finish(self) -> Option<ChangedZone> {
        let base = self.zone.base();
        let set = |node: Option<&Node>, rtype| node.and_then(|node| node.set(rtype)).cloned();
        let differs =
            |(owner, rtype): &&Key| set(base.node(owner), *rtype) != set(self.zone.node(owner), *rtype);
        let names: BTreeSet<DomainName> =
            self.rows.keys().filter(differs).map(|(owner, _)| owner.clone()).collect();
        let aside = self.aside.into_changed();
        if names.is_empty() && aside.is_empty() {
            return None;
        }
        let edit = ZoneEdit { zone: Arc::new(self.zone.finish()), names: names.into_iter().collect() };
        Some(ChangedZone { edit, rows: self.rows.into_iter().collect(), aside })
    }
}
