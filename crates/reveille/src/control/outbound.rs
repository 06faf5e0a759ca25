//! Services published to external primaries: where their notes are kept, and the tasks that keep them in step.

use std::collections::BTreeMap;
use std::sync::Arc;

use reveille_core::answer::View;
use reveille_core::model::DomainName;
use reveille_dns::Clock;
use reveille_dns::publish::{Addresses, Ledger, LedgerWrite, Note, PublishConfig, PublishTask, Row};
use reveille_dns::tsig::Keyring;
use reveille_store::{Change, Store, StoredPublished};

/// Notes of earlier runs, by external primary.
pub struct Notes {
    /// What each has of which name.
    pub published: BTreeMap<String, Vec<(DomainName, StoredPublished)>>,
    /// The last serial that was seen there.
    pub serials: BTreeMap<String, u32>,
}

/// Begins to keep every external primary in step with the services of the view.
pub fn start(
    configs: Vec<PublishConfig>,
    keys: &Keyring,
    mut notes: Notes,
    view: &View,
    store: &Arc<Store>,
    clock: &Clock,
) -> Vec<PublishTask> {
    let mut tasks = Vec::with_capacity(configs.len());
    for config in configs {
        let target = target(&config);
        // The config was checked: every key that it names is there.
        let Some(key) = keys.key(&config.key) else { continue };
        let rows = notes.published.remove(&target).unwrap_or_default().into_iter().map(row).collect();
        let serial = notes.serials.remove(&target);
        let covered = view.services().filter(|service| config.covers(&service.name));
        let wanted = covered.map(|service| (service.name.clone(), config.addresses(service))).collect();
        let ledger = Arc::new(InStore { store: Arc::clone(store), target });
        let keys = (keys.clone(), key);
        tasks.push(PublishTask::start(config, keys, wanted, (rows, serial), ledger, Arc::clone(clock)));
    }
    for (primary, rows) in notes.published {
        let names = rows.len();
        let remedy = "configure it again to have them removed, or remove them there";
        tracing::warn!(
            primary,
            names,
            remedy,
            "names were published to a primary that is not configured any more"
        );
    }
    tasks
}

/// What an external primary is called in the state database.
fn target(config: &PublishConfig) -> String {
    format!("{} {}", config.server, config.zone)
}

fn row((name, stored): (DomainName, StoredPublished)) -> (DomainName, Row) {
    let StoredPublished { v4, v6, ttl_s, certain } = stored;
    (name, Row { addresses: Addresses { v4, v6, ttl_s }, certain })
}

/// The notes of one external primary in the state database.
struct InStore {
    store: Arc<Store>,
    target: String,
}

impl Ledger for InStore {
    fn write(&self, notes: Vec<Note>) -> LedgerWrite {
        let target = || self.target.clone();
        let changes = notes.into_iter().map(|note| match note {
            Note::Put(name, Row { addresses: Addresses { v4, v6, ttl_s }, certain }) => {
                Change::PutPublished {
                    target: target(),
                    name,
                    row: StoredPublished { v4, v6, ttl_s, certain },
                }
            }
            Note::Drop(name) => Change::DropPublished { target: target(), name },
            Note::Serial(serial) => Change::PutPublishedSerial { target: target(), serial },
        });
        let ack = self.store.write(changes.collect());
        Box::pin(async move { ack.await.map_err(|error| error.to_string()) })
    }
}
