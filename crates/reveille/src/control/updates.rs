//! Dynamic updates on their way through the control loop: judged here, where nothing changes meanwhile; durable
//! before anybody sees them; answered when everybody does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use reveille_core::answer::{Zone, rdata};
use reveille_core::model::DomainName;
use reveille_dns::update::{
    SetChange, StaticBook, UPDATE_GROUP_MAX, UpdateAsk, UpdateDesk, ZoneRows, lay_over, taken_by,
};
use reveille_store::{Change, StoredStaticSet, WriteError};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::Message;
use super::run::{Control, REWRITE_PAUSE};
use crate::config;

impl Control {
    /// Takes an update, and those that wait behind it.
    pub(super) fn take_updates(&mut self, first: UpdateAsk, waiting: &mut mpsc::Receiver<UpdateAsk>) {
        let mut group = vec![first];
        while group.len() < UPDATE_GROUP_MAX
            && let Ok(next) = waiting.try_recv()
        {
            group.push(next);
        }
        let rows = self.updates.judge(&self.publisher.view(), group);
        if !rows.is_empty() {
            self.write_updates(rows, false);
        }
    }

    /// The rows of a group are durable, or not.
    pub(super) fn updates_written(&mut self, result: Result<(), WriteError>) {
        match result {
            Ok(()) => {
                let edits = self.updates.durable();
                self.publisher.edit_zones(edits);
            }
            Err(error) => {
                tracing::error!(%error, "updates are not made; trying again in a second what they have changed");
                let rows = self.updates.failed(&self.publisher.view());
                if !rows.is_empty() {
                    self.write_updates(rows, true);
                }
            }
        }
    }

    fn write_updates(&self, rows: Vec<ZoneRows>, after_a_pause: bool) {
        let (store, inbox) = (Arc::clone(&self.store), self.executor.tools().inbox.clone());
        let changes = rows.into_iter().flat_map(changes_of).collect();
        if !after_a_pause {
            let ack = store.write(changes);
            tokio::spawn(async move { inbox.send(Message::UpdatesWritten(ack.await)).await });
            return;
        }
        tokio::spawn(async move {
            sleep(REWRITE_PAUSE).await;
            inbox.send(Message::UpdatesWritten(store.write(changes).await)).await
        });
    }
}

/// What is written for the rows of one zone.
fn changes_of((zone, rows): ZoneRows) -> impl Iterator<Item = Change> {
    rows.into_iter().map(move |((owner, rtype), row)| match row {
        None => Change::DropStaticSet { zone: zone.clone(), owner, rtype },
        Some(SetChange { owner, rtype, ttl, added, removed }) => {
            let zone = zone.clone();
            Change::PutStaticSet(Box::new(StoredStaticSet { zone, owner, rtype, ttl, added, removed }))
        }
    })
}

/// Zones with what updates have changed.
pub struct TakenUp {
    /// Where further updates are made.
    pub desk: UpdateDesk,
    /// The zones, in the order of the files.
    pub zones: Vec<Zone>,
    /// What is not in them.
    pub aside: SetAside,
}

/// What updates have changed and is not served. The rows are kept.
#[derive(Debug, Default)]
pub struct SetAside {
    /// A sentence for each change that does not fit the files and services any more.
    pub unfit: Vec<String>,
    /// Zones that are not served, and how many RRsets of them were changed.
    unserved: Vec<(DomainName, usize)>,
}

impl SetAside {
    /// Logs all of it.
    pub fn tell(&self) {
        self.unfit.iter().for_each(|unfit| tracing::warn!("{unfit}"));
        self.tell_of_unserved();
    }

    /// Notes zones that may be missed.
    pub fn tell_of_unserved(&self) {
        for (zone, sets) in &self.unserved {
            tracing::info!(%zone, sets, "updates have changed a zone that is not served any more; they are kept");
        }
    }
}

/// Lays what updates have changed over the zones as their files have them, each with its part of the config.
pub fn take_up(
    files: Vec<Zone>,
    configs: &[config::Zone],
    stored: Vec<StoredStaticSet>,
    services: &BTreeSet<DomainName>,
) -> TakenUp {
    let mut set_aside = SetAside::default();
    let (mut book, mut zones) = (StaticBook::default(), Vec::with_capacity(files.len()));
    let mut by_zone: BTreeMap<DomainName, Vec<SetChange>> = BTreeMap::new();
    for StoredStaticSet { zone, owner, rtype, ttl, added, removed } in stored {
        by_zone.entry(zone).or_default().push(SetChange { owner, rtype, ttl, added, removed });
    }
    for (file, config) in files.into_iter().zip(configs) {
        let rows = by_zone.remove(file.apex()).unwrap_or_default();
        let file = Arc::new(file);
        book.open_page(
            Arc::clone(&file),
            config::grants(config),
            rows.iter().map(|row| (row.owner.clone(), row.rtype)),
        );
        let (zone, aside) = lay_over(file, rows, taken_by(services));
        book.set_aside(zone.apex(), aside.iter().map(|aside| aside.change.clone()));
        for aside in aside {
            let (owner, rtype) = (&aside.change.owner, rdata::type_word(aside.change.rtype));
            let (zone, why) = (zone.apex(), aside.why);
            set_aside.unfit.push(format!(
                "zone \"{zone}\": what updates changed of {owner} {rtype} does not fit any more ({why}) and is set \
                 aside until the next start or reload"
            ));
        }
        zones.push(Arc::unwrap_or_clone(zone));
    }
    set_aside.unserved = by_zone.into_iter().map(|(zone, rows)| (zone, rows.len())).collect();
    TakenUp { desk: UpdateDesk::new(book), zones, aside: set_aside }
}

#[cfg(test)]
mod tests {
    use reveille_core::answer::ZoneDefaults;

    use super::*;

    /// Since a client updated `www`, a service of that name came, and one zone went.
    #[test]
    fn what_updates_changed_and_does_not_fit_is_told_to_whoever_reloads() {
        let apex: DomainName = "vm.test".parse().unwrap();
        let ns = (apex.prepend("ns1").unwrap(), Vec::new());
        let hostmaster = apex.clone();
        let file =
            ZoneDefaults { apex, name_servers: vec![ns], hostmaster, serial: 1, ttl: 60, negative_ttl: 60 };
        let config: config::Zone = toml::from_str("name = \"vm.test\"").unwrap();
        let set = |zone: &str, owner: &str| StoredStaticSet {
            zone: zone.parse().unwrap(),
            owner: owner.parse().unwrap(),
            rtype: rdata::A,
            ttl: 60,
            added: vec![vec![192, 0, 2, 1]],
            removed: Vec::new(),
        };
        let stored = vec![
            set("vm.test", "www.vm.test"),
            set("vm.test", "mail.vm.test"),
            set("gone.test", "a.gone.test"),
        ];
        let services = BTreeSet::from(["www.vm.test".parse().unwrap()]);
        let TakenUp { zones, aside, .. } = take_up(vec![file.zone().unwrap()], &[config], stored, &services);
        assert_eq!(
            aside.unfit,
            [
                "zone \"vm.test\": what updates changed of www.vm.test A does not fit any more (the name is a service \
              by now) and is set aside until the next start or reload"
            ]
        );
        assert_eq!(aside.unserved, [("gone.test".parse().unwrap(), 1)]);
        assert!(zones[0].node(&"mail.vm.test".parse().unwrap()).is_some());
    }
}
