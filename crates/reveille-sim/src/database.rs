//! The state database of a simulated host: writes are durable in order and some time later, fail with or without effect,
//! and what was not durable is gone with the daemon.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use reveille_core::model::{DomainName, InstanceId};
use reveille_store::{
    Ack, Acknowledge, Change, Loaded, ReadError, StateDatabase, StoredService, StoredStaticSet, WriteError,
};
use tokio::sync::mpsc;

use crate::world::{Inside, Life};

/// Most writes that share a commit.
const GROUP_MAX: usize = 64;

/// How often a commit takes long …
const BUSY_PER_MILLE: u64 = 250;
/// … and how long, at most.
const BUSY_MS_MAX: u64 = 500;

/// The state database of one life of a daemon.
pub struct Rows {
    queue: mpsc::UnboundedSender<(Vec<Change>, Acknowledge)>,
    life: Life,
    next_instance: AtomicU64,
}

impl Rows {
    /// Reads what is durable, and begins to write.
    pub async fn open(life: &Life) -> (Arc<Self>, Loaded) {
        let (loaded, next) = life.now(|inside, host| inside.load(host)).await;
        let (queue, mut writes) = mpsc::unbounded_channel::<(Vec<Change>, Acknowledge)>();
        let (own, life) = (life.clone(), life.clone());
        tokio::spawn(async move {
            let mut group = Vec::new();
            while writes.recv_many(&mut group, GROUP_MAX).await > 0 {
                // Now and then the disk is busy with something else.
                let busy = life.now(|inside, _| inside.dice.chance(BUSY_PER_MILLE)).await;
                life.step("before rows are written", 0, if busy { BUSY_MS_MAX } else { 2 }).await;
                let fails = life.now(|inside, host| {
                    let fails = inside.dice.chance(inside.rates.database);
                    if (!fails || inside.dice.chance(500))
                        && let Some(state) = inside.hosts.get_mut(host)
                    {
                        group
                            .iter()
                            .flat_map(|(changes, _)| changes)
                            .for_each(|change| state.database.apply(change));
                    }
                    fails
                });
                let fails = fails.await;
                life.step("after rows were written", 0, 2).await;
                for (_, done) in group.drain(..) {
                    let _ =
                        done.send(if fails { Err(WriteError::Closed("simulated".into())) } else { Ok(()) });
                }
            }
        });
        (Arc::new(Self { queue, life: own, next_instance: AtomicU64::new(next) }), loaded)
    }
}

impl StateDatabase for Rows {
    fn write(&self, changes: Vec<Change>) -> Ack {
        let (done, ack) = Ack::pending();
        for change in &changes {
            if let Change::AddDecision(row) = change {
                let decision = &row.decision;
                self.life.at_once(|inside, host| {
                    inside.tell(|| {
                        format!("h{host} {}: {:?}, as {}", decision.service, decision.action, decision.reason)
                    });
                });
            }
        }
        let _ = self.queue.send((changes, done));
        ack
    }

    fn reserve_instance_id(&self) -> InstanceId {
        InstanceId(self.next_instance.fetch_add(1, Ordering::Relaxed))
    }

    fn service(&self, _: &DomainName) -> Result<Option<StoredService>, ReadError> {
        Ok(None)
    }

    fn static_sets(&self) -> Result<Vec<StoredStaticSet>, ReadError> {
        Ok(Vec::new())
    }
}

impl Inside {
    fn load(&self, host: usize) -> (Loaded, u64) {
        let Some(state) = self.hosts.get(host) else { return (Loaded::default(), 1) };
        // As it is written: what is not stored is gone.
        let stored = |row| serde_json::to_vec(row).and_then(|row| serde_json::from_slice(&row));
        let loaded = Loaded {
            services: state.database.services.values().cloned().collect(),
            instances: state.database.instances.values().filter_map(|row| stored(row).ok()).collect(),
            ..Loaded::default()
        };
        (loaded, state.database.next_instance.max(1))
    }
}
