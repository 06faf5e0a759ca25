//! A graceful stop: awake instances are hibernated, left running or ended, as `daemon.on_stop` says.

use reveille_core::model::{Event, InstanceId, Phase, Remains, Rung, SleepAsked};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::Message;
use super::inputs::Inputs;
use super::run::Control;
use crate::config::OnStop;

impl Control {
    /// Nothing is woken any more; what is awake is told to sleep or to end.
    pub(super) fn begin_stop(&mut self) {
        self.stopping = true;
        self.fleet.start_nothing_more();
        self.order_sleep();
    }

    /// Tells whatever is awake, or on its way up, to sleep or to end; again after a capture that was abandoned.
    fn order_sleep(&mut self) {
        let how = match self.on_stop.0 {
            OnStop::Hibernate => SleepAsked::Force,
            OnStop::Terminate => SleepAsked::Terminate,
            OnStop::Leave => return,
        };
        let now = self.clock.now();
        let names: Vec<_> = self.fleet.services().map(|service| service.spec.name.clone()).collect();
        for service in names {
            let Some(row) = self.fleet.primary(&service) else { continue };
            if self.is_settled(row.id) || self.cannot_sleep(row.id) || row.sleep_asked.is_some() {
                continue;
            }
            // A boot that is under way is not waited for: nobody is answered by it any more, and nothing is lost.
            let how = if row.phase == Phase::Booting { SleepAsked::Terminate } else { how };
            if let Err(error) = self.fleet.apply(Event::SleepAsked { service: service.clone(), how }, now) {
                tracing::warn!(%service, %error, "cannot be put to sleep");
            }
        }
    }

    /// Waits, up to `daemon.stop_ms_max`, until nothing is under way, then ends the processes of those that sleep.
    pub(super) async fn finish_stop(mut self, mut inputs: Inputs, done: oneshot::Sender<()>) {
        let deadline = Instant::now() + self.on_stop.1;
        if self.on_stop.0 != OnStop::Leave {
            while !self.all_settled() {
                match timeout_at(deadline, inputs.inbox.recv()).await {
                    Ok(Some(message)) => self.take(message).await,
                    Ok(None) | Err(_) => break,
                }
                self.order_sleep();
                self.turn();
            }
            self.end_what_is_left().await;
        }
        // An empty write is a barrier: every row that was written before is durable.
        if let Err(error) = self.store.write(Vec::new()).await {
            tracing::error!(%error, "the last rows are not saved");
        }
        let _ = done.send(());
    }

    fn is_settled(&self, id: InstanceId) -> bool {
        self.fleet.instance(id).is_none_or(|row| {
            matches!(row.phase, Phase::Off | Phase::Hibernated | Phase::Failed)
                && !row.unfenced
                && !row.in_flight
        })
    }

    /// Whether it was told to sleep and could not: it runs on, and ending it would lose what it has in memory.
    fn cannot_sleep(&self, id: InstanceId) -> bool {
        self.fleet.instance(id).is_some_and(|row| {
            row.phase == Phase::Active && row.sleep_asked.is_none() && row.sleep_retry.is_some()
        })
    }

    fn all_settled(&self) -> bool {
        self.fleet.instances().all(|row| self.is_settled(row.id) || self.cannot_sleep(row.id))
    }

    /// Armed and paused processes hold nothing that is not in their version, and are ended. A guest that did not settle in time may hold what is nowhere
    /// else: it runs on, unless all are to be ended.
    async fn end_what_is_left(&mut self) {
        let left: Vec<InstanceId> = self
            .fleet
            .instances()
            .filter(|row| matches!(row.rung, Rung::Armed | Rung::Paused) || !self.is_settled(row.id))
            .map(|row| row.id)
            .collect();
        for id in left {
            if !self.is_settled(id) && self.on_stop.0 != OnStop::Terminate {
                tracing::warn!(instance = %id, "does not sleep; it runs on, and the next daemon takes it over");
                continue;
            }
            if let Err(error) = self.executor.tools().driver.kill(id, Remains::All).await {
                tracing::error!(instance = %id, %error, "cannot be ended");
            }
        }
    }
}

/// The message that asks for a stop, and its answer.
pub fn stop() -> (Message, oneshot::Receiver<()>) {
    let (done, answer) = oneshot::channel();
    (Message::Command(super::Command::Stop(done)), answer)
}
