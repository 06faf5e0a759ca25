//! The gate of one service: the one place where clients that arrive and an instance that goes to sleep meet.
//!
//! Two things pass a gate, and [`ServiceGate::close_if_idle`] must be atomic with both:
//!
//! - A TCP connection passes once. It becomes *open* under the lock ([`ServiceGate::admit`]) and each of its
//!   connects to the backend starts under the lock too ([`Passage::connect`]). So once the gate is closed no new
//!   connection begins, and the ones that exist are in the list, where they can be counted or cut: cutting resets
//!   the connection to the backend at once, so that no write that another thread is about to make can get through.
//! - A datagram passes without the lock. One word holds the open bit and the number of datagrams that are inside
//!   the gate at this moment: entering is one addition, which also tells whether the gate was open. Whoever closes
//!   the gate clears the bit and then sees from the number whether somebody is still inside.

use std::collections::{BTreeMap, HashMap, btree_map};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use reveille_core::model::{Gate, InstanceId, PortSpec, Timestamp};
use tokio::sync::watch;

use crate::counters::{Counters, Replies, ReplyCounters, Traffic};
use crate::events::ServiceEvents;
use crate::held::{HeldBudget, HeldLimits};
use crate::relay::{Busy, Now};
use crate::upstream::{Backend, Upstream, UpstreamDatagrams};

mod passage;

pub(crate) use passage::{Begun, NotBegun, Passage};

/// Set in the word while datagrams may pass.
const OPEN: u64 = 1 << 63;

/// Limits of one service, from its binding and the relay's own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServiceLimits {
    pub(crate) held_clients_max: u32,
    pub(crate) connections_max: u32,
    pub(crate) held_max: Duration,
    pub(crate) half_closed_max: Duration,
    pub(crate) udp_idle: Duration,
    pub(crate) udp_sessions_max: u32,
    pub(crate) datagrams: HeldLimits,
}

/// What those who wait at the gate watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signal {
    pub(crate) gate: Gate,
    /// Rises with every loss of the instance.
    pub(crate) cuts: u64,
    /// The service is unbound.
    pub(crate) ended: bool,
}

/// Why an open connection was taken from its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The instance is lost: who has not carried anything yet may wait again.
    Lost,
    /// Put to sleep by force.
    Forced,
    /// The service is unbound.
    Ended,
}

/// Shared by all tasks of one service.
pub(crate) struct ServiceGate {
    pub(crate) limits: ServiceLimits,
    pub(crate) events: ServiceEvents,
    pub(crate) counters: Counters,
    pub(crate) held_datagrams: Arc<HeldBudget>,
    pub(crate) udp_sessions: AtomicU32,
    now: Now,
    word: AtomicU64,
    held_clients: AtomicU32,
    /// Milliseconds; 0 is never.
    last_packet: AtomicU64,
    first_byte_due: AtomicBool,
    signal: watch::Sender<Signal>,
    state: Mutex<State>,
}

struct State {
    members: BTreeMap<InstanceId, Member>,
    ended: bool,
    next_passage: u64,
    open: HashMap<u64, OpenEntry>,
    /// The gate as waiters see it; written to `signal` under the lock.
    shown: Signal,
}

/// One of the instances behind the service.
struct Member {
    backend: Backend,
    /// Whether new clients are led to it.
    takes: bool,
    /// TCP connections and UDP sessions that lead to it.
    in_use: u32,
    /// What it has answered, also to clients that it has no more.
    replies: Arc<ReplyCounters>,
}

struct OpenEntry {
    /// Whom it leads to, once it leads anywhere.
    member: Option<InstanceId>,
    /// Whom it was led to last, whatever came of it.
    last: Option<InstanceId>,
    /// Whom it was led to before that and in vain; at most all instances of the service.
    failed: Vec<InstanceId>,
    backend: Option<Arc<Upstream>>,
    cut: Arc<OnceLock<Cut>>,
}

impl State {
    /// The instance that takes clients and has the fewest; of those alike the oldest. One of `failed` only if there is
    /// no other.
    fn least_used(&mut self, failed: &[InstanceId]) -> io::Result<(InstanceId, &mut Member)> {
        let taking = self.members.iter_mut().filter(|(_, member)| member.takes);
        let least = taking.min_by_key(|(id, member)| (failed.contains(id), member.in_use, **id));
        least.map(|(id, member)| (*id, member)).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// A client does not lead there any more.
    fn left(&mut self, member: Option<InstanceId>) {
        if let Some(member) = member.and_then(|id| self.members.get_mut(&id)) {
            member.in_use = member.in_use.saturating_sub(1);
        }
    }
}

impl OpenEntry {
    fn unconnected(cut: Arc<OnceLock<Cut>>) -> Self {
        Self { member: None, last: None, failed: Vec::new(), backend: None, cut }
    }

    fn end(&self, why: Cut) {
        // The flag first: a task that finds its socket broken asks the flag why.
        let _ = self.cut.set(why);
        if let Some(backend) = &self.backend {
            backend.reset();
        }
    }
}

/// What becomes of a client at the gate.
pub(crate) enum Admission {
    /// It may connect.
    Open(Passage),
    /// It waits; the slot counts it until it is dropped.
    Wait(HeldSlot),
    /// The service cannot be woken.
    Refused,
    /// Too many wait.
    TooManyHeld,
    /// The service has too many, those that wait and those that are open.
    TooMany,
    /// The service is unbound.
    Ended,
}

impl ServiceGate {
    pub(crate) fn new(limits: ServiceLimits, events: ServiceEvents, now: Now) -> Self {
        let shown = Signal { gate: Gate::Hold, cuts: 0, ended: false };
        Self {
            limits,
            events,
            counters: Counters::default(),
            held_datagrams: Arc::new(HeldBudget::new(limits.datagrams)),
            udp_sessions: AtomicU32::new(0),
            now,
            word: AtomicU64::new(0),
            held_clients: AtomicU32::new(0),
            last_packet: AtomicU64::new(0),
            first_byte_due: AtomicBool::new(false),
            signal: watch::Sender::new(shown),
            state: Mutex::new(State {
                members: BTreeMap::new(),
                ended: false,
                next_passage: 0,
                open: HashMap::new(),
                shown,
            }),
        }
    }

    // --- Control -----------------------------------------------------------------------------------------------

    pub(crate) fn set(&self, gate: Gate) {
        let mut state = self.lock();
        let before = state.shown.gate;
        if state.ended || before == gate {
            return;
        }
        state.shown.gate = gate;
        match gate {
            Gate::Open => {
                self.first_byte_due.store(true, Ordering::Relaxed);
                self.word.fetch_or(OPEN, Ordering::SeqCst);
            }
            Gate::Hold | Gate::Refuse => {
                self.word.fetch_and(!OPEN, Ordering::SeqCst);
                self.wait_for_passing();
            }
        }
        self.show(&state);
    }

    /// An instance behind the service; nobody new is led to it unless it `takes` clients, and beside others nobody before
    /// [`ServiceGate::lead_to`] says so. [`Backend::None`] takes it away.
    pub(crate) fn set_member(&self, id: InstanceId, backend: Backend, takes: bool) {
        let mut state = self.lock();
        let takes = takes && state.members.keys().all(|other| *other == id);
        // What was there before may end with this, and that takes a moment: not under the lock.
        let before = match backend {
            Backend::None => state.members.remove(&id).map(|member| member.backend),
            Backend::Guest(_) | Backend::Address(_) => match state.members.entry(id) {
                btree_map::Entry::Occupied(mut found) => {
                    let member = found.get_mut();
                    member.takes = takes;
                    Some(std::mem::replace(&mut member.backend, backend))
                }
                btree_map::Entry::Vacant(vacant) => {
                    vacant.insert(Member { backend, takes, in_use: 0, replies: Arc::default() });
                    None
                }
            },
        };
        drop(state);
        drop(before);
    }

    /// Whether new clients are led to the instance from now on; those that are open stay.
    pub(crate) fn lead_to(&self, id: InstanceId, takes: bool) {
        if let Some(member) = self.lock().members.get_mut(&id) {
            member.takes = takes;
        }
    }

    /// TCP connections and UDP sessions that lead to the instance.
    pub(crate) fn in_use(&self, id: InstanceId) -> u32 {
        self.lock().members.get(&id).map_or(0, |member| member.in_use)
    }

    /// What the instance has answered since it is behind the service.
    pub(crate) fn replies(&self, id: InstanceId) -> Replies {
        self.lock().members.get(&id).map_or_else(Replies::default, |member| member.replies.picture())
    }

    /// A flow of datagrams to a port of the instance that has the fewest clients. It counts as one until
    /// [`ServiceGate::datagrams_ended`].
    pub(crate) fn datagrams(&self, port: u16) -> io::Result<(InstanceId, UpstreamDatagrams)> {
        let (id, backend) = {
            let mut state = self.lock();
            let (id, member) = state.least_used(&[])?;
            member.in_use += 1;
            (id, member.backend.clone())
        };
        match backend.datagrams(port) {
            Ok(upstream) => Ok((id, upstream)),
            Err(error) => {
                self.datagrams_ended(id);
                Err(error)
            }
        }
    }

    pub(crate) fn datagrams_ended(&self, id: InstanceId) {
        self.lock().left(Some(id));
    }

    /// See [`crate::Relay::close_if_idle`].
    pub(crate) fn close_if_idle(&self, idle_ms: u64, force: bool) -> Result<(), Busy> {
        let mut state = self.lock();
        let was_open = state.shown.gate == Gate::Open;
        if force {
            self.cut_open(&mut state, Cut::Forced);
        } else {
            self.check_idle(&state, idle_ms)?;
        }
        let before = self.word.fetch_and(!OPEN, Ordering::SeqCst);
        if force {
            self.wait_for_passing();
        } else if was_open {
            // A datagram may have passed between the check and the bit.
            let passing = before & !OPEN > 0;
            let checked = self.check_idle(&state, idle_ms);
            if passing || checked.is_err() {
                // A datagram that was turned back meanwhile is with its port's task, which tries again.
                self.word.fetch_or(OPEN, Ordering::SeqCst);
                return checked.and_then(|()| Err(self.busy(&state)));
            }
        }
        if was_open {
            state.shown.gate = Gate::Hold;
            self.show(&state);
        }
        Ok(())
    }

    pub(crate) fn cut(&self) {
        let mut state = self.lock();
        state.shown.cuts += 1;
        self.cut_open(&mut state, Cut::Lost);
        self.show(&state);
    }

    /// One of several instances is lost: what leads to it is cut, and its clients are led to the others.
    pub(crate) fn cut_member(&self, id: InstanceId) {
        let mut state = self.lock();
        if state.members.keys().all(|other| *other == id) {
            drop(state);
            return self.cut();
        }
        if let Some(member) = state.members.get_mut(&id) {
            member.takes = false;
        }
        let cut: Vec<_> = state.open.extract_if(|_, entry| entry.member == Some(id)).collect();
        for (_, entry) in cut {
            state.left(entry.member);
            entry.end(Cut::Lost);
        }
    }

    /// Closes the gate for ever; every task of the service ends.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        state.shown.gate = Gate::Refuse;
        state.shown.ended = true;
        self.word.fetch_and(!OPEN, Ordering::SeqCst);
        self.cut_open(&mut state, Cut::Ended);
        self.show(&state);
    }

    pub(crate) fn traffic(&self) -> Traffic {
        let open_connections = count(self.lock().open.len());
        Traffic {
            open_connections,
            held_clients: self.held_clients.load(Ordering::Relaxed),
            held_datagrams: self.held_datagrams.datagrams(),
            udp_sessions: self.udp_sessions.load(Ordering::Relaxed),
            last_packet: self.last_packet(),
            ..self.counters.picture()
        }
    }

    /// Busy are open connections, clients that were let in and have not yet been seen to, and recent packets.
    fn check_idle(&self, state: &State, idle_ms: u64) -> Result<(), Busy> {
        let waiting = self.held_clients.load(Ordering::SeqCst) > 0 || self.held_datagrams.datagrams() > 0;
        let recent = || self.last_packet().is_some_and(|last| (self.now)().ms_since(last) < idle_ms);
        // Behind a closed gate nothing can pass but what is open already.
        let used = state.shown.gate == Gate::Open && (waiting || recent());
        if state.open.is_empty() && !used { Ok(()) } else { Err(self.busy(state)) }
    }

    fn busy(&self, state: &State) -> Busy {
        let open_connections = count(state.open.len());
        Busy { open_connections, last_packet: self.last_packet().unwrap_or_else(|| (self.now)()) }
    }

    fn cut_open(&self, state: &mut State, why: Cut) {
        if state.open.is_empty() {
            return;
        }
        let open = std::mem::take(&mut state.open);
        for entry in open.into_values() {
            state.left(entry.member);
            entry.end(why);
        }
        self.note_packet();
    }

    /// Waits until no datagram is inside a gate that was just closed. Inside is one system call that does not
    /// block, so this is as short as the scheduler makes it.
    fn wait_for_passing(&self) {
        while self.word.load(Ordering::SeqCst) != 0 {
            std::thread::yield_now();
        }
    }

    fn show(&self, state: &State) {
        self.signal.send_replace(state.shown);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- Arrivals ----------------------------------------------------------------------------------------------

    /// What those who wait look at; take it before the question whose answer may change.
    pub(crate) fn watch(&self) -> watch::Receiver<Signal> {
        self.signal.subscribe()
    }

    /// Lets a TCP client through or has it wait; `held` is its slot if it waited already.
    pub(crate) fn admit(
        self: &Arc<Self>,
        held: Option<HeldSlot>,
        client: SocketAddr,
        port: PortSpec,
    ) -> Admission {
        let mut state = self.lock();
        if state.ended {
            return Admission::Ended;
        }
        let has_place = held.is_some() || {
            let held = self.held_clients.load(Ordering::SeqCst);
            count(state.open.len()).saturating_add(held) < self.limits.connections_max
        };
        match state.shown.gate {
            Gate::Open | Gate::Hold if !has_place => Admission::TooMany,
            Gate::Open => {
                // Under the lock, so that its place is this one's.
                drop(held);
                let id = state.next_passage;
                state.next_passage += 1;
                let cut = Arc::default();
                state.open.insert(id, OpenEntry::unconnected(Arc::clone(&cut)));
                self.note_packet();
                self.counters.opened.one();
                Admission::Open(Passage { gate: Arc::clone(self), id, cut })
            }
            Gate::Hold => {
                let slot = match held {
                    Some(slot) => slot,
                    None if self.held_clients.load(Ordering::SeqCst) >= self.limits.held_clients_max => {
                        return Admission::TooManyHeld;
                    }
                    None => {
                        self.held_clients.fetch_add(1, Ordering::SeqCst);
                        HeldSlot(Arc::clone(self))
                    }
                };
                self.events.wanted(client, port);
                Admission::Wait(slot)
            }
            Gate::Refuse => Admission::Refused,
        }
    }

    /// Takes a datagram into the gate if it is open; it is inside until the pass is dropped.
    pub(crate) fn pass(&self) -> Option<Pass<'_>> {
        let before = self.word.fetch_add(1, Ordering::SeqCst);
        let pass = Pass(self);
        (before & OPEN != 0).then_some(pass)
    }

    /// The daemon's time.
    pub(crate) fn now_ms(&self) -> u64 {
        (self.now)().as_ms()
    }

    /// A byte or datagram passed; returns when that was.
    pub(crate) fn note_packet(&self) -> u64 {
        let now = self.now_ms();
        self.last_packet.fetch_max(now, Ordering::SeqCst);
        now
    }

    /// A byte or datagram came back from the guest; returns when that was.
    pub(crate) fn note_reply(&self) -> u64 {
        if self.first_byte_due.load(Ordering::Relaxed) && self.first_byte_due.swap(false, Ordering::Relaxed) {
            self.events.first_byte();
        }
        self.note_packet()
    }

    fn last_packet(&self) -> Option<Timestamp> {
        let ms = self.last_packet.load(Ordering::SeqCst);
        (ms > 0).then(|| Timestamp::from_ms(ms))
    }
}

/// A TCP client's place among those that are held.
pub(crate) struct HeldSlot(Arc<ServiceGate>);

impl Drop for HeldSlot {
    fn drop(&mut self) {
        self.0.held_clients.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A datagram's time inside the gate.
pub(crate) struct Pass<'a>(&'a ServiceGate);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.word.fetch_sub(1, Ordering::SeqCst);
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
