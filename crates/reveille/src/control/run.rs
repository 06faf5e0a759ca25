//! The loop itself.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::discriminant;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reveille_api::Event as News;
use reveille_api::types::{DecisionReport, Wake};
use reveille_core::decide::{Action, Decision, Reason, decide};
use reveille_core::model::{
    Applied, Cause, DomainName, Event, Fleet, InstanceId, Ownership, Phase, Report, RequestError, Role, Rung,
    SnapshotVersion, Stage, Timestamp, Trigger, WakeRecord,
};
use reveille_dns::update::UpdateDesk;
use reveille_dns::{AskKind, WakeAsk};
use reveille_failpoint::failpoint;
use reveille_net::RelayEvent;
use reveille_store::{Ack, Change, StateDatabase, StoredDecision};
use reveille_vm::driver::Mapping;
use tokio::sync::broadcast;
use tokio::time::sleep;

use super::Message;
use super::commands::Command;
use super::executor::{Executor, Order, Since};
use super::forecasts::Forecasts;
use super::health::Ailing;
use super::inputs::{Inputs, Next, Turns};
use super::publish::Publisher;
use super::reload::ReloadAsk;
use super::startup::Services;
use super::wakes::Wakes;
use super::wiring::Wiring;
use crate::clock::Clock;
use crate::config::OnStop;

/// Rounds of decide and begin in one turn; each round's steps make the next one's view. A turn that needs more
/// goes on with the next message.
const ROUNDS_MAX: usize = 16;

/// Pause before rows that could not be written are written again.
pub(super) const REWRITE_PAUSE: Duration = Duration::from_secs(1);

/// What the loop works with.
pub struct Parts {
    /// Every service, reconciled with the host.
    pub fleet: Fleet,
    /// The time.
    pub clock: Clock,
    /// Where rows go.
    pub store: Arc<dyn StateDatabase>,
    /// Where clients wait.
    pub wiring: Arc<dyn Wiring>,
    /// Who carries actions out.
    pub executor: Executor,
    /// Who makes changes visible.
    pub publisher: Publisher,
    /// Who listens.
    pub news: broadcast::Sender<News>,
    /// Who has which address.
    pub services: Services,
    /// The zones that are served.
    pub zones: Vec<DomainName>,
    /// Where dynamic updates are judged.
    pub updates: UpdateDesk,
    /// What becomes of awake instances at a stop, and how long that may take.
    pub on_stop: (OnStop, Duration),
    /// Where arrivals are told; without it nothing is foreseen.
    pub forecasts: Option<Forecasts>,
}

/// The task that owns the fleet.
pub struct Control {
    pub(super) fleet: Fleet,
    pub(super) clock: Clock,
    pub(super) store: Arc<dyn StateDatabase>,
    pub(super) wiring: Arc<dyn Wiring>,
    pub(super) executor: Executor,
    pub(super) publisher: Publisher,
    pub(super) wakes: Wakes,
    pub(super) news: broadcast::Sender<News>,
    pub(super) services: Services,
    pub(super) zones: Vec<DomainName>,
    pub(super) updates: UpdateDesk,
    pub(super) on_stop: (OnStop, Duration),
    pub(super) forecasts: Option<Forecasts>,
    /// Instances of which something else is foreseen than the view knows.
    pub(super) foreseen: BTreeSet<InstanceId>,
    pub(super) ailing: Ailing,
    /// The last thing that each instance waits for, so that waiting is recorded once.
    pub(super) waiting: BTreeMap<InstanceId, Decision>,
    next_look: Option<Timestamp>,
    /// When it is looked next what services of several instances are used by.
    pub(super) next_load: Option<Timestamp>,
    /// A reload that waits until no update is under way, and until when.
    pub(super) reloading: Option<(ReloadAsk, Timestamp)>,
    /// Rows may be there that nobody goes by; they are being taken back.
    pub(super) writing_back: bool,
    pub(super) stopping: bool,
}

impl Control {
    /// A loop over what was set up.
    pub fn new(parts: Parts) -> Self {
        let Parts {
            fleet,
            clock,
            store,
            wiring,
            executor,
            publisher,
            news,
            services,
            zones,
            updates,
            on_stop,
            forecasts,
        } = parts;
        Self {
            fleet,
            clock,
            store,
            wiring,
            executor,
            publisher,
            wakes: Wakes::default(),
            news,
            services,
            zones,
            updates,
            on_stop,
            forecasts,
            foreseen: BTreeSet::new(),
            ailing: Ailing::new(),
            waiting: BTreeMap::new(),
            next_look: None,
            next_load: None,
            reloading: None,
            writing_back: false,
            stopping: false,
        }
    }

    /// Runs until the inbox is closed or a stop is complete.
    pub async fn run(mut self, mut inputs: Inputs) {
        let mut turns = Turns::default();
        self.turn();
        loop {
            self.reload_if_due().await;
            let patience = self.reloading.as_ref().map(|(_, until)| *until);
            let look = [self.next_look, self.publisher.next_due(), self.wakes.next_due(), patience];
            let look = look.into_iter().flatten().min();
            let due = look.into_iter().chain(self.next_sense()).chain(self.next_load).min();
            let due = due.map(|due| self.clock.instant_of(due));
            match inputs.next(&mut turns, self.updates.is_free(), due).await {
                Next::Ask(ask) => self.asked_by_query(ask),
                Next::Relay(event) => self.relayed(event),
                Next::Update(update) => self.take_updates(*update, &mut inputs.updates),
                Next::Message(Some(Message::Command(Command::Stop(done)))) => {
                    self.begin_stop();
                    self.turn();
                    return self.finish_stop(inputs, done).await;
                }
                Next::Message(Some(message)) => self.take(message).await,
                Next::Message(None) => return,
                Next::Due if look.is_some_and(|look| look <= self.clock.now()) => self.look_at_traffic(),
                // Only arrivals are looked for, below.
                Next::Due => {}
            }
            // Before the turn, so that it decides by what is in use now.
            self.sense_load(self.clock.now());
            self.turn();
            self.sense_arrivals(self.clock.now());
        }
    }

    /// Takes in a message of the inbox.
    pub(super) async fn take(&mut self, message: Message) {
        match message {
            Message::Reported { instance, start, report, at } => self.reported(instance, start, report, at),
            Message::Stage { instance, start, stage, at } => {
                let current = self.fleet.instance(instance);
                let current = current.filter(|row| row.start == start && row.role == Role::Primary);
                if let Some(service) = current.map(|row| row.service.clone()) {
                    let record = self.wakes.reached(&service, stage, at);
                    self.keep_wakes(record);
                }
            }
            Message::Published { instance, number, result } => {
                self.stored(instance, number, &result);
                self.take_event(Event::Published { instance, number, result });
            }
            Message::Checkpointed { instance, number, result } => {
                self.stored(instance, number, &result);
                self.take_event(Event::Checkpointed { instance, number, result });
            }
            Message::Measured { instance, rung, held_kib } => {
                self.take_event(Event::Measured { instance, rung, held_kib });
            }
            Message::Judged { instance, start, judged } => self.judged(instance, start, judged),
            Message::WakeAt { instance, at } => {
                if let Some(service) = self.fleet.instance(instance).map(|row| row.service.clone()) {
                    self.take_event(Event::WakeAt { service, at: Some(at) });
                }
            }
            Message::Foreseen(foreseen) => {
                foreseen.into_iter().for_each(|(service, foresight)| self.foreseen(service, foresight));
            }
            Message::Expected { service, foreseen } => self.expected(service, foreseen),
            Message::Owned { service, ownership } => {
                if let Ownership::Foreign(host) = &ownership {
                    tracing::warn!(%service, host, "is served by another host; it does not run here any more");
                    if let Some(primary) = self.fleet.primary(&service) {
                        self.wiring.cut(primary.id, &service);
                    }
                }
                self.take_event(Event::Owned { service, ownership });
            }
            Message::Unsaved(instances) => self.fleet.mark_changed(instances),
            Message::UpdatesWritten(result) => self.updates_written(result),
            Message::WrittenBack(left) => self.written_back(left),
            Message::Command(command) => self.command(command).await,
        }
    }

    // --- Requests --------------------------------------------------------------------------------------------

    fn asked_by_query(&mut self, ask: WakeAsk) {
        let trigger = Trigger::Query { client: ask.client, qtype: ask.qtype, subnet: ask.subnet };
        let service = ask.service.clone();
        let event = match ask.kind {
            AskKind::Wake => Event::WakeAsked { service, trigger: trigger.clone() },
            AskKind::Wait => Event::Awaited { service },
        };
        if let Err(refusal) = self.wanted(event, &ask.service, &trigger, ask.at) {
            tracing::debug!(service = %ask.service, %refusal, "not woken for a query");
        }
    }

    /// Takes in what the relay tells.
    pub(super) fn relayed(&mut self, event: RelayEvent) {
        match event {
            RelayEvent::Wanted { service, client, port, at } => {
                if let Err(refusal) = self.wake(&service, Trigger::Packet { client, port }, at) {
                    tracing::debug!(%service, %refusal, "not woken for a client");
                }
            }
            RelayEvent::FirstByte { service, at } => {
                let record = self.wakes.reached(&service, Stage::FirstByte, at);
                self.note_first_answer(record.as_ref().or_else(|| self.wakes.open_of(&service)).cloned());
                self.keep_wakes(record);
                // It was ready when it was kept: who has been answered says that it is again.
                let restored = self.fleet.primary(&service).filter(|row| row.is_restored());
                if let Some((id, start)) = restored.map(|row| (row.id, row.start)) {
                    self.reported(id, start, Report::Ready, at);
                }
            }
            RelayEvent::Idle { service } => {
                if let Some(id) = self.fleet.primary(&service).map(|instance| instance.id) {
                    self.note_traffic(id, &service);
                }
            }
        }
    }

    /// Somebody wants the service.
    pub(super) fn wake(
        &mut self,
        name: &DomainName,
        trigger: Trigger,
        asked: Instant,
    ) -> Result<Applied, RequestError> {
        let event = Event::WakeAsked { service: name.clone(), trigger: trigger.clone() };
        self.wanted(event, name, &trigger, asked)
    }

    /// Takes in what somebody's wish for the service came to.
    fn wanted(
        &mut self,
        event: Event,
        name: &DomainName,
        trigger: &Trigger,
        asked: Instant,
    ) -> Result<Applied, RequestError> {
        let now = self.clock.now();
        if self.stopping {
            return Ok(Applied::Unchanged);
        }
        let applied = self.fleet.apply(event, now)?;
        self.note_arrival(name, trigger, self.clock.at(asked));
        if applied == Applied::Changed
            && let Some(instance) = self.fleet.primary(name)
        {
            let finished = self.wakes.asked(name, instance.id, trigger, asked, self.clock.at(asked));
            self.keep_wakes(finished);
        }
        Ok(applied)
    }

    // --- Reports ---------------------------------------------------------------------------------------------

    /// Says what became of a version that was sent to the object store.
    fn stored(&self, instance: InstanceId, version: u64, result: &Result<SnapshotVersion, Cause>) {
        let Some(service) = self.fleet.instance(instance).map(|row| &row.service) else { return };
        match result {
            Ok(_) => tracing::debug!(%service, version, "stored"),
            Err(cause) => tracing::warn!(%service, version, %cause, "not in the object store; trying again"),
        }
    }

    fn take_event(&mut self, event: Event) {
        // Of an instance that is gone there is nothing to note.
        if let Err(refusal) = self.fleet.apply(event, self.clock.now()) {
            tracing::debug!(%refusal, "a report that does not fit any more");
        }
    }

    pub(super) fn reported(&mut self, instance: InstanceId, start: u64, report: Report, at: Instant) {
        let now = self.clock.now();
        let before = self.fleet.instance(instance).map(|row| (row.service.clone(), row.role, row.phase));
        let event = Event::Reported { instance, start, report: report.clone() };
        match self.fleet.apply(event, now) {
            Ok(Applied::Changed) => {}
            Ok(Applied::Unchanged | Applied::Stale) => return,
            Err(refusal) => {
                tracing::debug!(%instance, ?report, %refusal, "a report that does not fit any more");
                return;
            }
        }
        let Some((service, role, was)) = before else { return };
        if role == Role::Replica {
            return self.replica_reported(instance, &service, was, &report);
        }
        self.forget_health_of_sleeper(instance);
        match report {
            Report::Fetched { .. } => {
                let record = self.wakes.reached(&service, Stage::Fetched, at);
                self.keep_wakes(record);
            }
            Report::Running => {
                let record = self.wakes.reached(&service, Stage::Running, at);
                self.keep_wakes(record);
            }
            Report::Ready => {
                self.wiring.lead_to(instance, &service, true);
                self.publisher.open_gate(instance, &service);
                failpoint!("control.gate.open");
                if self.wakes.open_of(&service).is_none() {
                    tracing::info!(%service, "awake ahead of demand");
                }
                let record = self.wakes.ready(&service, at, now);
                self.announce_ready(&service);
                self.keep_wakes(record);
            }
            Report::Captured { version } => {
                // Who came too late to turn it back asks anew.
                self.wiring.cut(instance, &service);
                let paused_ms = version.paused_us / 1_000;
                tracing::info!(%service, version = version.number, paused_ms, "asleep");
            }
            Report::CaptureAbandoned => {
                self.wakes.dropped(&service);
                tracing::info!(%service, "stays awake: somebody came while it went to sleep");
            }
            Report::RollBackFailed { cause } => tracing::warn!(%service, %cause, "not rolled back"),
            Report::CaptureFailed { cause } => tracing::warn!(%service, %cause, "cannot sleep, runs on"),
            Report::Lost { cause } => self.lost(instance, &service, was, &cause),
            Report::GateClosed
            | Report::GateBusy { .. }
            | Report::WarmedUp { .. }
            | Report::Armed
            | Report::Paused
            | Report::Evicted
            | Report::RolledBack { .. }
            | Report::Disarmed
            | Report::Fenced { .. } => {}
            Report::RestFailed { cause } => {
                // Whoever waits for what the object store does not give is told so.
                if self.fleet.instance(instance).is_some_and(|row| row.is_given_up(now)) {
                    self.lost(instance, &service, was, &cause);
                }
            }
        }
    }

    /// What a client whose packet woke a service has waited for its first byte.
    fn note_first_answer(&mut self, record: Option<WakeRecord>) {
        let Some(record) = record.filter(|record| matches!(record.trigger, Trigger::Packet { .. })) else {
            return;
        };
        if let Some(us) = record.stage_us(Stage::FirstByte) {
            let waited_ms = us.div_ceil(1_000);
            self.take_event(Event::FirstAnswer { instance: record.instance, waited_ms });
        }
    }

    fn lost(&mut self, instance: InstanceId, service: &DomainName, was: Phase, cause: &Cause) {
        tracing::warn!(%service, phase = %was, %cause, "lost");
        self.wiring.cut(instance, service);
        self.lost_health(instance, was);
        let record = self.wakes.failed(service, cause);
        self.keep_wakes(record);
    }

    fn announce_ready(&self, service: &DomainName) {
        let Some(record) = self.wakes.open_of(service) else { return };
        let ms = record.stage_us(Stage::Ready).unwrap_or_default() / 1_000;
        tracing::info!(%service, from = %record.from, ms, asks = record.asks, by = %record.trigger, "awake");
    }

    /// Stores finished wake records and tells the listeners.
    pub(super) fn keep_wakes(&self, records: impl IntoIterator<Item = WakeRecord>) {
        for record in records {
            let _ = self.news.send(News::Wake { wake: Box::new(Wake::of(0, &record)) });
            drop(self.store.write(vec![Change::AddWake(Box::new(record))]));
        }
    }

    // --- Decide and act --------------------------------------------------------------------------------------

    /// Decides, begins what was decided, writes the rows and publishes the view.
    pub(super) fn turn(&mut self) {
        let now = self.clock.now();
        self.look_at_answers(now);
        for (service, due) in self.fleet.due(now) {
            if let Err(refusal) = self.wake(&service, Trigger::Schedule { due }, Instant::now()) {
                tracing::warn!(%service, %refusal, "not woken as scheduled");
            }
        }
        self.fleet.take_due(now);
        for _ in 0..ROUNDS_MAX {
            let plan = decide(&self.fleet, now);
            self.next_look = plan.next_look;
            // Nothing can have come between, because this task is the only writer; a plan from an older view
            // would be thrown away here.
            if plan.generation != self.fleet.generation() {
                continue;
            }
            let mut acted = false;
            for decision in plan.decisions {
                acted |= self.begin(decision, now);
            }
            if !acted {
                break;
            }
        }
        self.fleet.rest_until_due(now);
        let mut changed = self.fleet.take_changed();
        if !changed.is_empty() {
            self.write_later(&changed);
            self.announce(&changed, now);
        }
        changed.append(&mut self.foreseen);
        self.publisher.publish(&self.fleet, changed, now);
        if !self.publisher.has_edits() {
            self.updates.published();
        }
        self.release_gone();
    }

    /// Begins one decision; false if it is only waiting, or no longer fits.
    fn begin(&mut self, decision: Decision, now: Timestamp) -> bool {
        if matches!(decision.action, Action::Wait { .. }) {
            // How many go first changes with each of them: no news.
            let known =
                self.waiting.get(&decision.instance).is_some_and(|earlier| is_no_news(earlier, &decision));
            if !known {
                self.record(&decision, now);
                self.waiting.insert(decision.instance, decision);
            }
            return false;
        }
        if let Err(error) = self.fleet.begin(&decision, now) {
            tracing::warn!(service = %decision.service, %error, action = ?decision.action, "cannot be begun");
            return false;
        }
        self.waiting.remove(&decision.instance);
        // Whoever is to be woken waits for the row, and nobody for the journal.
        self.carry_out(&decision);
        self.record(&decision, now);
        true
    }

    fn record(&self, decision: &Decision, now: Timestamp) {
        tracing::debug!(service = %decision.service, action = ?decision.action, reason = %decision.reason, "decided");
        let _ = self.news.send(News::Decision { decision: Box::new(DecisionReport::of(now, decision)) });
        let stored = StoredDecision { at: now, decision: decision.clone() };
        drop(self.store.write(vec![Change::AddDecision(Box::new(stored))]));
    }

    fn carry_out(&mut self, decision: &Decision) {
        let Some(order) = self.order(decision.instance) else { return };
        if order.role == Role::Replica {
            return self.carry_out_of_replica(order, &decision.action);
        }
        match &decision.action {
            Action::Boot => {
                self.wakes.decided(&decision.service, Rung::Cold);
                let ack = self.write_now();
                self.executor.start(order, None, ack);
            }
            Action::Restore { from, keep } => {
                self.wakes.decided(&decision.service, *from);
                let ack = self.write_now();
                self.executor.start(order, Some(mapping(*keep)), ack);
            }
            Action::Arm { keep } => {
                let ack = self.write_now();
                self.executor.arm(order, mapping(*keep), ack);
            }
            Action::Pause => {
                let ack = self.write_now();
                self.executor.pause(order, ack);
            }
            Action::Fetch => {
                if let Some(stored) = self.stored_number(order.instance) {
                    self.wakes.decided(&decision.service, Rung::Remote);
                    self.executor.fetch(order, stored);
                }
            }
            Action::Evict => {
                let ack = self.write_now();
                self.executor.evict(order, ack);
            }
            Action::RollBack { from, number } => {
                let (epoch, ack) = (self.since(order.instance).epoch, self.write_now());
                self.executor.roll_back(order, (*from, *number), epoch, ack);
            }
            Action::Publish { number } => {
                let since = self.since(order.instance);
                self.executor.publish(order, *number, since);
            }
            Action::Checkpoint { number } => {
                let since = self.since(order.instance);
                drop(self.write_now());
                self.executor.checkpoint(order, *number, since);
            }
            Action::Disarm => self.executor.disarm(order),
            Action::Drain { idle_ms, force } => self.drain(&order, *idle_ms, *force),
            Action::Capture => {
                let number = self.fleet.instance(order.instance).map_or(0, |row| row.version_number_last) + 1;
                let ack = self.write_now();
                self.executor.capture(order, number, ack);
            }
            Action::AbandonCapture => self.executor.abandon(decision.instance),
            Action::Undrain => self.wakes.dropped(&decision.service),
            Action::GiveUpStart { cause } => {
                self.lost(order.instance, &decision.service, Phase::Warming, cause);
            }
            Action::Replicate { .. } => self.replicate(&decision.service, self.clock.now()),
            Action::Kill { remains } => {
                let ack = self.write_now();
                self.executor.kill(order, *remains, ack);
            }
            Action::Wait { .. } => {}
        }
    }

    /// The number of the newest version in the object store.
    fn stored_number(&self, id: InstanceId) -> Option<u64> {
        self.fleet.instance(id)?.stored.as_ref().map(|version| version.number)
    }

    fn since(&self, id: InstanceId) -> Since {
        let epoch = self.fleet.instance(id).map_or(0, |row| row.epoch);
        Since { before: self.stored_number(id), epoch }
    }

    fn order(&self, id: InstanceId) -> Option<Order> {
        let instance = self.fleet.instance(id)?;
        Some(Order::of(instance, &self.fleet.service(&instance.service)?.spec))
    }

    /// Writes every row that has changed; the answer comes when they are durable.
    pub(super) fn write_now(&mut self) -> Ack {
        let changed = self.fleet.take_changed();
        let ack = self.write(&changed);
        self.publisher.publish(&self.fleet, changed, self.clock.now());
        ack
    }

    /// Writes rows for which nobody waits; those that could not be written are written again after a pause.
    fn write_later(&self, changed: &BTreeSet<InstanceId>) {
        let (ack, instances) = (self.write(changed), changed.iter().copied().collect());
        let inbox = self.executor.tools().inbox.clone();
        tokio::spawn(async move {
            if let Err(error) = ack.await {
                tracing::error!(%error, "trying again in a second");
                sleep(REWRITE_PAUSE).await;
                let _ = inbox.send(Message::Unsaved(instances)).await;
            }
        });
    }

    fn write(&self, changed: &BTreeSet<InstanceId>) -> Ack {
        let rows = changed.iter().flat_map(|id| match self.fleet.instance(*id) {
            // Of a replica nothing has to be known again: the next start ends what is left of it.
            Some(row) if row.role == Role::Replica => Vec::new(),
            Some(row) => vec![Change::PutInstance(Box::new(row.clone()))],
            None => self.services.forgotten(*id),
        });
        self.store.write(rows.collect())
    }
}

/// Whether it is still the same that an instance waits for. The time to which a forecast reaches moves with each use.
fn is_no_news(earlier: &Decision, now: &Decision) -> bool {
    match (&earlier.reason, &now.reason) {
        (Reason::WouldKeep { rung: before, .. }, Reason::WouldKeep { rung, .. }) => before == rung,
        (before, now_because) => {
            earlier.action == now.action && discriminant(before) == discriminant(now_because)
        }
    }
}

/// How the memory is mapped by a guest whose version's files have to stay as they are, or need not.
fn mapping(keep: bool) -> Mapping {
    if keep { Mapping::Beside } else { Mapping::Consume }
}
