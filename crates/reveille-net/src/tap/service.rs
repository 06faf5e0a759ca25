//! One service in tap mode: its gate, the frames that wait at it, and what is known of its connections.
//!
//! Everything is under one lock, also the messages to the kernel that flip the route, of some ten microseconds each. So
//! the gate, the way of the packets and the queue always agree.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reveille_core::model::{Gate, InstanceId, PortSpec, Timestamp};
use tokio::sync::Notify;

use super::device::{Devices, TapAddresses, Way};
use super::ear::{Ear, Listening};
use super::flows::{FlowKey, Flows};
use super::frame::{Content, FRAME_BYTES_MAX, Packet, RST, SYN, Unreachable};
use super::held::{Held, HeldLimits, NotHeld};
use super::netlink::Netlink;
use super::{Echo, TapBinding};
use crate::counters::{Counters, Traffic};
use crate::events::ServiceEvents;
use crate::relay::{Busy, Now};

mod hear;

/// Frames that are handed over at once: a guest's program reads datagrams one by one, and its kernel drops what does
/// not fit into the receive buffer.
const RELEASE_BATCH: usize = 16;
/// Longest time for which newcomers are led behind those that wait; then all go at once.
const RELEASE_TIME_MAX: Duration = Duration::from_millis(200);
/// Frames that are read from the holder before anything else is done.
const READ_BATCH: usize = 64;
/// How long a guest that was woken by a packet may take to answer before it counts as unused.
const FIRST_ANSWER_MS_MAX: u64 = 5_000;
/// Packets after which the first answer of a woken guest is no longer looked for.
const FIRST_ANSWER_PACKETS_MAX: u32 = 256;

/// Shared by the tasks of one service.
pub(super) struct Service {
    pub(super) addresses: TapAddresses,
    pub(super) devices: Devices,
    ports: BTreeSet<PortSpec>,
    echo: Echo,
    held_max: Duration,
    netlink: Arc<Netlink>,
    now: Now,
    events: ServiceEvents,
    counters: Counters,
    /// Told when there is something else to wait for.
    pub(super) changed: Notify,
    ended: AtomicBool,
    state: Mutex<State>,
}

struct State {
    gate: Gate,
    way: Way,
    held: Held,
    /// Since when newcomers are led behind those that wait.
    releasing: Option<Instant>,
    flows: Flows,
    /// A guest runs, or sleeps, whose connections were not seen from their beginnings.
    flows_unknown: bool,
    ear: Option<Arc<Ear>>,
    listening: Listening,
    /// Milliseconds; until when nothing is listened to.
    deaf_until: u64,
    /// Milliseconds; 0 is never.
    last_packet: u64,
    /// How many packets may still pass before the first answer is given up.
    first_answer_due: u32,
    /// Until when an answer is waited for, in milliseconds; 0 if nobody waited when the gate opened.
    answer_until: u64,
    frame: Box<[u8]>,
}

/// What a service's tasks wait for beside frames.
#[derive(Debug, Clone, Copy)]
pub(super) struct Due {
    /// The oldest frame has waited for too long.
    pub(super) expire: Option<Instant>,
    /// The next frames are to be handed over.
    pub(super) release: bool,
    /// The ear may listen again, in this many milliseconds.
    pub(super) listen_ms: Option<u64>,
}

impl Service {
    pub(super) fn new(
        binding: &TapBinding,
        devices: Devices,
        limits: HeldLimits,
        netlink: Arc<Netlink>,
        events: ServiceEvents,
        now: Now,
    ) -> Self {
        let state = State {
            gate: Gate::Hold,
            way: Way::Holder,
            held: Held::new(limits),
            releasing: None,
            flows: Flows::default(),
            flows_unknown: true,
            ear: None,
            listening: Listening::Deaf,
            deaf_until: 0,
            last_packet: 0,
            first_answer_due: 0,
            answer_until: 0,
            frame: vec![0; FRAME_BYTES_MAX].into_boxed_slice(),
        };
        Self {
            addresses: binding.addresses,
            devices,
            ports: binding.ports.iter().copied().collect(),
            echo: binding.echo,
            held_max: Duration::from_millis(binding.held_ms_max),
            netlink,
            now,
            events,
            counters: Counters::default(),
            changed: Notify::new(),
            ended: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }

    // --- Control -----------------------------------------------------------------------------------------------

    pub(super) fn set(&self, gate: Gate) -> io::Result<()> {
        let mut state = self.lock();
        if self.is_ended() || state.gate == gate {
            return Ok(());
        }
        match gate {
            Gate::Open => self.open(&mut state)?,
            Gate::Hold | Gate::Refuse => {
                self.lead(&mut state, Way::Holder)?;
                state.releasing = None;
            }
        }
        state.gate = gate;
        match gate {
            Gate::Open => {}
            Gate::Hold => self.tell_wanted(&state),
            Gate::Refuse => self.turn_away_all(&mut state),
        }
        self.changed.notify_waiters();
        Ok(())
    }

    /// See [`crate::Relay::close_if_idle`].
    pub(super) fn close_if_idle(&self, idle_ms: u64, force: bool) -> Result<(), Busy> {
        let mut state = self.lock();
        let was_open = state.gate == Gate::Open;
        self.hear(&mut state);
        if !force {
            self.check_idle(&mut state, idle_ms)?;
        }
        if !was_open {
            return Ok(());
        }
        // Listening first, so that nothing passes between the look and the flip unheard.
        let strays = Listening::To(self.addresses.v4);
        let closed = self.listen(&mut state, strays).and_then(|()| self.lead(&mut state, Way::Holder));
        let stray = self.strays(&mut state).is_some();
        if (closed.is_err() || stray) && !force {
            if let Err(error) = closed {
                tracing::error!(device = %self.devices.guest_name(), %error, "the route stays with the guest");
            }
            state.last_packet = self.now_ms();
            if let Err(error) = self.open(&mut state) {
                tracing::error!(device = %self.devices.guest_name(), %error, "the route stays with the holder");
            }
            self.changed.notify_waiters();
            return Err(self.busy(&mut state));
        }
        state.gate = Gate::Hold;
        state.releasing = None;
        self.tell_wanted(&state);
        self.changed.notify_waiters();
        Ok(())
    }

    /// The instance is lost, with all its connections: their clients are told when they send the next segment.
    pub(super) fn cut(&self) {
        let mut state = self.lock();
        state.flows.clear();
        state.flows_unknown = false;
        self.tell_wanted(&state);
    }

    /// The guest's device for a process of the instance that is about to be started.
    pub(super) fn for_process(&self, instance: InstanceId) -> io::Result<OwnedFd> {
        let mut state = self.lock();
        let fd = self.devices.for_process(&self.netlink, instance)?;
        let index = self.devices.guest_index();
        if state.ear.as_ref().is_none_or(|ear| ear.index != index) {
            state.ear = None;
        }
        Ok(fd)
    }

    pub(super) fn end(&self) {
        let mut state = self.lock();
        self.ended.store(true, Ordering::SeqCst);
        state.gate = Gate::Refuse;
        state.ear = None;
        self.turn_away_all(&mut state);
        self.changed.notify_waiters();
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    pub(super) fn traffic(&self) -> Traffic {
        let mut state = self.lock();
        self.hear(&mut state);
        let now = self.now_ms();
        Traffic {
            open_connections: state.flows.open(now),
            held_clients: state.held.clients(),
            held_datagrams: state.held.datagrams(),
            udp_sessions: 0,
            last_packet: self.last_packet(&state),
            ..self.counters.picture()
        }
    }

    /// Open connections and recent packets; behind a closed gate nothing can pass.
    fn check_idle(&self, state: &mut State, idle_ms: u64) -> Result<(), Busy> {
        let open = state.flows.open(self.now_ms()) > 0;
        let recent = self.last_packet(state).is_some_and(|last| (self.now)().ms_since(last) < idle_ms.max(1));
        let awaited = self.now_ms() < state.answer_until || !state.held.is_empty();
        let used = state.gate == Gate::Open && (recent || awaited);
        match self.busy(state) {
            // Used until it answers: who asks again at once is not told another thing.
            busy if used && awaited => Err(Busy { last_packet: (self.now)(), ..busy }),
            busy if open || used => Err(busy),
            _ => Ok(()),
        }
    }

    fn busy(&self, state: &mut State) -> Busy {
        let last_packet = self.last_packet(state).unwrap_or_else(|| (self.now)());
        Busy { open_connections: state.flows.open(self.now_ms()), last_packet }
    }

    // --- The way of the packets --------------------------------------------------------------------------------

    /// Hands over what waits and leads newcomers to the guest. What waits first goes first; more than a batch goes in
    /// steps, with the route flipped after the last.
    fn open(&self, state: &mut State) -> io::Result<()> {
        let ear = self.ear(state)?;
        state.first_answer_due = FIRST_ANSWER_PACKETS_MAX;
        self.listen(state, Listening::All)?;
        self.read_holder(state, |state, frame| self.keep(state, frame));
        let waited = !state.held.is_empty();
        state.answer_until = if waited { self.now_ms().saturating_add(FIRST_ANSWER_MS_MAX) } else { 0 };
        self.hand_over(state, &ear, RELEASE_BATCH);
        if state.held.is_empty() {
            self.flip_to_guest(state, &ear)
        } else {
            state.releasing = Some(Instant::now());
            Ok(())
        }
    }

    fn flip_to_guest(&self, state: &mut State, ear: &Ear) -> io::Result<()> {
        self.lead(state, Way::Guest)?;
        state.releasing = None;
        self.read_holder(state, |state, frame| self.keep(state, frame));
        self.hand_over(state, ear, usize::MAX);
        Ok(())
    }

    /// The next step of handing over.
    pub(super) fn release(&self) {
        let mut state = self.lock();
        let Some(since) = state.releasing else { return };
        let Some(ear) = state.ear.clone() else { return };
        self.read_holder(&mut state, |state, frame| self.keep(state, frame));
        self.hand_over(&mut state, &ear, RELEASE_BATCH);
        if (state.held.is_empty() || since.elapsed() > RELEASE_TIME_MAX)
            && let Err(error) = self.flip_to_guest(&mut state, &ear)
        {
            tracing::error!(device = %self.devices.guest_name(), %error, "the route stays with the holder");
        }
    }

    fn hand_over(&self, state: &mut State, ear: &Ear, limit: usize) {
        for _ in 0..limit {
            let Some(frame) = state.held.front() else { return };
            match ear.send(&frame.bytes) {
                Ok(()) => {}
                // The device's queue is full: the next step goes on.
                Err(error) if is_full(&error) => return,
                Err(_) => self.counters.datagrams_failed.one(),
            }
            state.held.pop();
        }
    }

    fn lead(&self, state: &mut State, way: Way) -> io::Result<()> {
        self.devices.lead(&self.netlink, way)?;
        state.way = way;
        Ok(())
    }

    // --- Frames at the holder ----------------------------------------------------------------------------------

    /// Takes what has come to the holder.
    pub(super) fn take_arrivals(&self) {
        let mut state = self.lock();
        self.read_holder(&mut state, |state, frame| self.arrived(state, frame));
    }

    fn read_holder(&self, state: &mut State, mut each: impl FnMut(&mut State, &[u8])) {
        let mut frame = std::mem::take(&mut state.frame);
        for _ in 0..READ_BATCH {
            let Ok(length) = rustix::io::read(self.devices.holder(), &mut frame[..]) else { break };
            if let Some(frame) = frame.get(..length) {
                each(state, frame);
            }
        }
        state.frame = frame;
    }

    fn arrived(&self, state: &mut State, frame: &[u8]) {
        match (state.gate, state.way) {
            // On its way when the route was flipped.
            (Gate::Open, Way::Guest) if state.held.is_empty() => {
                let sent = state.ear.as_ref().is_some_and(|ear| ear.send(frame).is_ok());
                if !sent {
                    self.keep(state, frame);
                }
            }
            (Gate::Open, Way::Guest | Way::Holder) => self.keep(state, frame),
            (Gate::Hold, Way::Guest | Way::Holder) => self.judge(state, frame),
            (Gate::Refuse, Way::Guest | Way::Holder) => {
                if let Some(packet) = self.packet(frame) {
                    self.turn_away(&packet, Unreachable::Prohibited);
                }
            }
        }
    }

    /// A packet to the service; everything else that a host says on a link (ARP, neighbour and router discovery,
    /// group membership) is none.
    fn packet<'a>(&self, frame: &'a [u8]) -> Option<Packet<'a>> {
        Packet::parse(frame)
            .filter(|packet| self.addresses.stable().any(|stable| stable == packet.destination))
    }

    /// Decides what a frame is to a guest that sleeps: a reason to wake, something to keep, or nothing.
    fn judge(&self, state: &mut State, frame: &[u8]) {
        let Some(packet) = self.packet(frame) else { return };
        let declared = packet.port().filter(|port| self.ports.contains(port));
        match packet.content {
            Content::Tcp(segment) if segment.opens() => match declared {
                Some(port) => self.wake_by(state, frame, &packet, port),
                None => self.turn_away(&packet, Unreachable::Port),
            },
            Content::Tcp(segment) => {
                let key = FlowKey { client: packet.client(), port: segment.to };
                if segment.has(RST) || (segment.has(SYN) && !segment.has(RST)) {
                    // Of a connection that is gone, or the guest's own, which it will ask for again.
                } else if state.flows.has(&key) || state.flows_unknown {
                    // A connection that was put to sleep with its guest: what is said on it wakes, a keep-alive not.
                    match declared {
                        Some(port) if segment.payload_bytes > 0 => self.wake_by(state, frame, &packet, port),
                        Some(_) | None => {}
                    }
                } else {
                    self.turn_away(&packet, Unreachable::Port);
                }
            }
            Content::Udp { .. } => match declared {
                Some(port) => self.wake_by(state, frame, &packet, port),
                None => self.turn_away(&packet, Unreachable::Port),
            },
            Content::Echo(_) => match self.echo {
                Echo::Answer => self.answer(packet.echo_reply()),
                Echo::Drop => {}
            },
            // The rest of a datagram whose beginning waits.
            Content::Fragment if state.held.has_from(packet.source) => self.keep(state, frame),
            Content::Fragment | Content::Other => {}
        }
    }

    fn wake_by(&self, state: &mut State, frame: &[u8], packet: &Packet<'_>, port: PortSpec) {
        match state.held.push(frame, packet, Instant::now()) {
            Ok(()) | Err(NotHeld::Again) => {
                self.events.wanted(packet.client(), port);
                self.changed.notify_waiters();
            }
            Err(NotHeld::Full) => {
                match packet.content {
                    Content::Udp { .. } => self.counters.datagrams_over_limit.one(),
                    Content::Tcp(_) | Content::Echo(_) | Content::Fragment | Content::Other => {
                        self.counters.over_held_limit.one();
                    }
                }
                self.answer(refusal(packet, Unreachable::Prohibited));
            }
        }
    }

    /// Keeps a frame for a guest that is awake or waking anyway.
    fn keep(&self, state: &mut State, frame: &[u8]) {
        if let Some(packet) = self.packet(frame)
            && state.held.push(frame, &packet, Instant::now()) == Err(NotHeld::Full)
        {
            self.counters.datagrams_over_limit.one();
        }
    }

    fn turn_away(&self, packet: &Packet<'_>, why: Unreachable) {
        match packet.content {
            Content::Udp { .. } => self.counters.datagrams_refused.one(),
            Content::Tcp(_) => self.counters.refused.one(),
            Content::Echo(_) | Content::Fragment | Content::Other => return,
        }
        self.answer(refusal(packet, why));
    }

    fn turn_away_all(&self, state: &mut State) {
        while let Some(frame) = state.held.pop() {
            if let Some(packet) = self.packet(&frame.bytes) {
                self.turn_away(&packet, Unreachable::Prohibited);
            }
        }
    }

    /// Turns away what has waited for too long.
    pub(super) fn expire(&self) {
        let mut state = self.lock();
        while state.held.front().is_some_and(|frame| frame.since.elapsed() >= self.held_max)
            && let Some(frame) = state.held.pop()
        {
            let Some(packet) = self.packet(&frame.bytes) else { continue };
            match packet.content {
                Content::Udp { .. } => self.counters.datagrams_expired.one(),
                Content::Tcp(_) | Content::Echo(_) | Content::Fragment | Content::Other => {
                    self.counters.expired.one();
                }
            }
            self.answer(refusal(&packet, Unreachable::Prohibited));
        }
    }

    /// Has the host receive a frame as if the guest had sent it.
    fn answer(&self, frame: Option<Vec<u8>>) {
        if let Some(frame) = frame
            && rustix::io::write(self.devices.holder(), &frame).is_err()
        {
            self.counters.datagrams_failed.one();
        }
    }

    fn tell_wanted(&self, state: &State) {
        let first = state.held.front().and_then(|frame| {
            let packet = self.packet(&frame.bytes)?;
            Some((packet.client(), packet.port()?))
        });
        if let Some((client, port)) = first {
            self.events.wanted(client, port);
        }
    }

    // --- Time --------------------------------------------------------------------------------------------------

    /// What comes next by itself.
    pub(super) fn due(&self) -> Due {
        let state = self.lock();
        let waits = state.gate == Gate::Hold;
        let deaf = state.listening == Listening::Deaf && state.gate == Gate::Open && state.ear.is_some();
        Due {
            expire: state.held.front().filter(|_| waits).map(|frame| frame.since + self.held_max),
            release: state.releasing.is_some(),
            listen_ms: deaf.then(|| state.deaf_until.saturating_sub(self.now_ms())),
        }
    }

    fn last_packet(&self, state: &State) -> Option<Timestamp> {
        // What passes while nothing is listened to is not known, so it is taken to pass.
        let deaf = state.listening == Listening::Deaf && state.gate == Gate::Open && state.last_packet > 0;
        let last = if deaf { self.now_ms() } else { state.last_packet };
        (last > 0).then(|| Timestamp::from_ms(last))
    }

    fn now_ms(&self) -> u64 {
        (self.now)().as_ms()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

fn refusal(packet: &Packet<'_>, why: Unreachable) -> Option<Vec<u8>> {
    match packet.content {
        Content::Tcp(_) => packet.reset(),
        Content::Udp { .. } => Some(packet.unreachable(why)),
        Content::Echo(_) | Content::Fragment | Content::Other => None,
    }
}
