//! The static records of all zones as updates have made them: judges a group of updates one after another and
//! tells what to write before anybody sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use reveille_core::answer::{Node, Rcode, RecordSet, View, Zone, ZoneDraft, ZoneEdit, rdata};
use reveille_core::model::DomainName;

use super::CHANGED_SETS_MAX;
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
    rows: BTreeSet<(DomainName, u16)>,
}

/// What came of a group of updates.
#[derive(Debug, Clone, Default)]
pub struct Verdicts {
    /// For each update in its order: made, or why not.
    pub answers: Vec<Result<(), Refusal>>,
    /// Every zone that is to change. The answers hold only once its rows are durable.
    pub changed: Vec<ChangedZone>,
}

/// A zone that a group of updates has changed.
#[derive(Debug, Clone)]
pub struct ChangedZone {
    /// The zone as it is to be served, and the names whose records differ: for [`View::advanced`], which gives it
    /// its serial.
    pub edit: ZoneEdit,
    /// Rows to write.
    pub rows: Vec<Row>,
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
        let page = Page { grants, rows: rows.into_iter().collect(), file: Arc::clone(&file) };
        self.zones.insert(file.apex().clone(), page);
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
        for ChangedZone { edit, rows } in changed {
            let Some(page) = self.zones.get_mut(edit.zone.apex()) else { continue };
            for (key, row) in rows {
                match row {
                    Some(_) => page.rows.insert(key.clone()),
                    None => page.rows.remove(key),
                };
            }
        }
    }

    /// The rows of these RRsets as they should be by the zones of the view: to write again after a write whose
    /// outcome nobody knows.
    pub fn rows_of(&self, view: &View, changed: &[ChangedZone]) -> Vec<(DomainName, Vec<Row>)> {
        let rows = changed.iter().filter_map(|ChangedZone { edit: ZoneEdit { zone, .. }, rows }| {
            let (page, seen) = (self.zones.get(zone.apex())?, view.zones().with_apex(zone.apex())?);
            let set = |zone: &Arc<Zone>, owner: &DomainName, rtype| zone.node(owner)?.set(rtype).cloned();
            let rows = rows.iter().map(|((owner, rtype), _)| {
                let (file, now) = (set(&page.file, owner, *rtype), set(seen, owner, *rtype));
                let row = SetChange::between(owner, *rtype, file.as_ref(), now.as_ref());
                ((owner.clone(), *rtype), row)
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
                Draft { page, zone, rows: BTreeMap::new() }
            }
        };
        let draft = drafts.entry(apex).or_insert(draft);
        let names = judge(view, &draft.zone, &page.grants, request)?;
        let rows = draft.rows_for(&names);
        let mut after = draft.rows.clone();
        after.extend(rows);
        if page.count_with(&after) > CHANGED_SETS_MAX {
            let why = format!(
                "updates have changed {CHANGED_SETS_MAX} RRsets of the zone already; move some into its file"
            );
            return Err(Refusal::new(Rcode::Refused, why));
        }
        // Judged to be servable, so this cannot fail.
        if draft.zone.change(names).is_ok() {
            draft.rows = after;
        }
        Ok(())
    }
}

/// The row of an RRset, to be written; `None`: the RRset is as in the file, and has none.
pub type Row = ((DomainName, u16), Option<SetChange>);

impl Page {
    /// How many rows there would be with these.
    fn count_with(&self, rows: &BTreeMap<(DomainName, u16), Option<SetChange>>) -> usize {
        let new = rows.iter().filter(|(key, row)| row.is_some() && !self.rows.contains(key)).count();
        let gone = rows.iter().filter(|(key, row)| row.is_none() && self.rows.contains(key)).count();
        self.rows.len() + new - gone
    }
}

/// A zone on its way through a group of updates.
struct Draft<'b> {
    page: &'b Page,
    zone: ZoneDraft,
    rows: BTreeMap<(DomainName, u16), Option<SetChange>>,
}

impl Draft<'_> {
    /// The rows of every RRset that differs between these names and the draft.
    fn rows_for(&self, names: &[(DomainName, BTreeMap<u16, RecordSet>)]) -> Vec<Row> {
        let mut rows = Vec::new();
        for (owner, sets) in names {
            let (file, before) = (self.page.file.node(owner), self.zone.node(owner));
            let types: BTreeSet<u16> = before
                .into_iter()
                .flat_map(|node| node.sets().map(|(rtype, _)| rtype))
                .chain(sets.keys().copied())
                .collect();
            for rtype in types {
                let (was, now) = (before.and_then(|node| node.set(rtype)), sets.get(&rtype));
                if was != now {
                    let file = file.and_then(|node| node.set(rtype));
                    rows.push(((owner.clone(), rtype), SetChange::between(owner, rtype, file, now)));
                }
            }
        }
        rows
    }

    /// `None` if nothing is to change in the end.
    fn finish(self) -> Option<ChangedZone> {
        let base = self.zone.base();
        let set = |node: Option<&Node>, rtype| node.and_then(|node| node.set(rtype)).cloned();
        let differs = |(owner, rtype): &&(DomainName, u16)| {
            set(base.node(owner), *rtype) != set(self.zone.node(owner), *rtype)
        };
        let names: BTreeSet<DomainName> =
            self.rows.keys().filter(differs).map(|(owner, _)| owner.clone()).collect();
        if names.is_empty() {
            return None;
        }
        let edit = ZoneEdit { zone: Arc::new(self.zone.finish()), names: names.into_iter().collect() };
        Some(ChangedZone { edit, rows: self.rows.into_iter().collect() })
    }
}
