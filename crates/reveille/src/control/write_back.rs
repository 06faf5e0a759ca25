//! Rows whose write failed: they may be there all the same, and the next start would go by them. What was there before
//! is written in their place, again and again until it is durable; until then no service is added and nothing is
//! reloaded.

use reveille_core::model::{DomainName, Fleet, InstanceId};
use reveille_store::{Change, StoredService};
use tokio::time::sleep;

use super::Message;
use super::run::{Control, REWRITE_PAUSE};
use super::serials::Serials;

/// Rows that may be there although nobody goes by them.
#[derive(Debug, Default)]
pub struct Doubtful {
    /// Services, with the row that each had before.
    services: Vec<(DomainName, Option<Box<StoredService>>)>,
    instances: Vec<InstanceId>,
    /// Zones with their ceilings of serials.
    zones: Vec<DomainName>,
}

impl Doubtful {
    /// What these changes would have made so. `former` are the rows of services that there were before.
    pub fn of(changes: &[Change], former: &[StoredService]) -> Self {
        let mut doubtful = Self::default();
        for change in changes {
            if let Change::PutService(row) = change {
                let name = &row.spec.name;
                let before = former.iter().find(|before| before.spec.name == *name);
                doubtful.services.push((name.clone(), before.cloned().map(Box::new)));
            } else if let Change::PutInstance(row) = change {
                doubtful.instances.push(row.id);
            } else if let Change::PutSerialCeiling { apex, .. } = change {
                doubtful.zones.push(apex.clone());
            }
        }
        doubtful
    }

    /// The rows as everybody goes by them now; and zones whose next ceiling is on its way, which are looked at again
    /// when it has come, since an older one must not be written after it.
    fn rows(&self, fleet: &Fleet, serials: &Serials) -> (Vec<Change>, Vec<DomainName>) {
        let services = self.services.iter().filter_map(|(name, before)| match fleet.service(name) {
            Some(_) => before.clone().map(Change::PutService),
            // Never there, or ended since.
            None => Some(Change::DropService(name.clone())),
        });
        let instances = self.instances.iter().map(|id| match fleet.instance(*id) {
            Some(row) => Change::PutInstance(Box::new(row.clone())),
            None => Change::DropInstance(*id),
        });
        let (ceilings, rising) = serials.durable_ceilings(&self.zones);
        (services.chain(instances).chain(ceilings).collect(), rising)
    }
}

impl Control {
    /// Writes what is so in place of these rows, until it is durable.
    pub(super) fn write_back(&mut self, doubtful: Doubtful) {
        self.writing_back = true;
        let (rows, rising) = doubtful.rows(&self.fleet, self.publisher.serials());
        let (ack, inbox) = (self.store.write(rows), self.executor.tools().inbox.clone());
        tokio::spawn(async move {
            let left = match ack.await {
                Ok(()) if rising.is_empty() => None,
                Ok(()) => Some(Doubtful { zones: rising, ..Doubtful::default() }),
                Err(error) => {
                    tracing::error!(%error, "what was not made may be saved all the same; trying again in a second to take it back");
                    Some(doubtful)
                }
            };
            if left.is_some() {
                sleep(REWRITE_PAUSE).await;
            }
            let _ = inbox.send(Message::WrittenBack(left)).await;
        });
    }

    /// Rows were written back; what is left of them is written again.
    pub(super) fn written_back(&mut self, left: Option<Doubtful>) {
        self.writing_back = false;
        if let Some(left) = left {
            self.write_back(left);
        }
    }

    /// Why nothing that has rows of its own can be added now.
    pub(super) fn may_add_rows(&self) -> Result<(), String> {
        if !self.writing_back {
            return Ok(());
        }
        Err("an earlier change could not be saved, and is being taken back from the disk; look at the disk, and try \
             again when the log has no more errors of it"
            .to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use reveille_core::answer::{Zone, ZoneDefaults};
    use reveille_core::model::{Event, HostLimits, Instance, Service, ServiceSpec, Timestamp};
    use reveille_store::{Origin, Store};

    use super::*;

    fn spec(name: &str, image: &str) -> ServiceSpec {
        serde_json::from_str(&format!(r#"{{"name":"{name}","image":"{image}","ports":["tcp/80"]}}"#)).unwrap()
    }

    fn zone(serial: u32) -> Zone {
        let apex: DomainName = "vm.test".parse().unwrap();
        let ns = (apex.prepend("ns1").unwrap(), Vec::new());
        let hostmaster = apex.clone();
        ZoneDefaults { apex, name_servers: vec![ns], hostmaster, serial, ttl: 60, negative_ttl: 60 }
            .zone()
            .unwrap()
    }

    /// A reload adds a service, changes another and brings a zone file far ahead; its write is reported as failed,
    /// and is on the disk all the same.
    #[tokio::test]
    async fn what_a_refused_reload_wrote_is_not_there_after_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let (store, loaded) = Store::open(dir.path()).unwrap();
        let store = Arc::new(store);
        let now = Timestamp::from_ms(1);
        let (serials, _) =
            Serials::begin(Arc::clone(&store), &loaded.serial_ceilings, vec![zone(1)]).await.unwrap();
        let row = |name: &str, image: &str| StoredService {
            spec: spec(name, image),
            address: Ipv4Addr::new(127, 64, 0, 1),
            created_at: now,
            origin: Origin::Api,
        };
        let instance = |name: &str| Instance::new(store.reserve_instance_id(), name.parse().unwrap(), now);
        let (kept, new) = (instance("kept.vm.test"), instance("new.vm.test"));
        let mut fleet = Fleet::new(HostLimits::default());
        let service = Service::new(spec("kept.vm.test", "old"), Ipv4Addr::new(127, 64, 0, 1), now, kept.id);
        let event = Event::Added { service: Box::new(service), instance: Box::new(kept.clone()) };
        fleet.apply(event, now).unwrap();
        let before = vec![row("kept.vm.test", "old")];
        store
            .write(vec![Change::PutService(Box::new(before[0].clone())), Change::PutInstance(Box::new(kept))])
            .await
            .unwrap();
        assert_eq!(store.service(&"kept.vm.test".parse().unwrap()).unwrap().as_ref(), before.first());
        assert_eq!(store.service(&"new.vm.test".parse().unwrap()).unwrap(), None);

        let written = vec![
            Change::PutService(Box::new(row("new.vm.test", "x"))),
            Change::PutInstance(Box::new(new)),
            Change::PutService(Box::new(row("kept.vm.test", "other"))),
            Change::PutSerialCeiling { apex: zone(1).apex().clone(), ceiling: 3_000_000_000 },
        ];
        store.write(written.clone()).await.unwrap();
        let (back, rising) = Doubtful::of(&written, &before).rows(&fleet, &serials);
        assert!(rising.is_empty());
        store.write(back).await.unwrap();

        drop(serials);
        drop(Arc::into_inner(store).unwrap());
        let (_, loaded) = Store::open(dir.path()).unwrap();
        assert_eq!(loaded.services, before);
        let names: Vec<_> = loaded.instances.iter().map(|row| row.service.to_string()).collect();
        assert_eq!(names, ["kept.vm.test"]);
        assert_eq!(loaded.serial_ceilings, BTreeMap::from([(zone(1).apex().clone(), 1_001)]));
    }
}
