//! What a service makes of what its ear hears: connections, packets, answers, and what strays past a closed gate.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use reveille_core::model::{Gate, PortSpec};

use super::{Service, State};
use crate::tap::ear::{DEAF_MS, Ear, Listening};
use crate::tap::flows::{Change, FlowKey, Sender};
use crate::tap::frame::{Content, FIN, Packet};

impl Service {
    /// The ear at the guest's device; new if the device is.
    pub(super) fn ear(&self, state: &mut State) -> io::Result<Arc<Ear>> {
        let index = self.devices.guest_index();
        if let Some(ear) = state.ear.as_ref().filter(|ear| ear.index == index) {
            return Ok(Arc::clone(ear));
        }
        let ear = Arc::new(Ear::at(index)?);
        state.ear = Some(Arc::clone(&ear));
        state.listening = Listening::Deaf;
        self.changed.notify_waiters();
        Ok(ear)
    }

    /// The ear, for the task that waits at it.
    pub(in crate::tap) fn current_ear(&self) -> Option<Arc<Ear>> {
        self.lock().ear.clone()
    }

    pub(super) fn listen(&self, state: &mut State, to: Listening) -> io::Result<()> {
        let ear = self.ear(state)?;
        if state.listening != to {
            ear.listen(to)?;
            state.listening = to;
        }
        Ok(())
    }

    /// Takes what was heard; for the task that waits at the ear.
    pub(in crate::tap) fn take_heard(&self) {
        let mut state = self.lock();
        self.hear(&mut state);
        if state.gate != Gate::Open
            && let Some((client, port)) = self.strays(&mut state)
        {
            // It reached the guest after the last look: whoever puts it to sleep is to think again.
            self.events.wanted(client, port);
        }
    }

    /// Listens again, if it is time.
    pub(in crate::tap) fn listen_again(&self) {
        let mut state = self.lock();
        if state.listening == Listening::Deaf && state.gate == Gate::Open && self.now_ms() >= state.deaf_until
        {
            if let Err(error) = self.listen(&mut state, Listening::All) {
                tracing::warn!(device = %self.devices.guest_name(), %error, "packets are not heard");
            }
            // What passed until now was not heard.
            state.last_packet = self.now_ms();
        }
    }

    pub(super) fn hear(&self, state: &mut State) {
        let Some(ear) = state.ear.clone() else { return };
        let now = self.now_ms();
        ear.take_ends(|frame| self.hear_end(state, frame, now));
        if state.listening != Listening::All {
            return;
        }
        let (mut heard, mut first_answer) = (false, false);
        ear.take_packets(|frame| {
            heard = true;
            state.first_answer_due = state.first_answer_due.saturating_sub(1);
            first_answer |= self.is_answer(frame);
        });
        if !heard {
            return;
        }
        state.last_packet = now;
        if first_answer && state.first_answer_due > 0 {
            state.first_answer_due = 0;
            state.answer_until = 0;
            self.events.first_byte();
        }
        if state.first_answer_due == 0 && self.listen(state, Listening::Deaf).is_ok() {
            state.deaf_until = now.saturating_add(DEAF_MS);
            ear.take_packets(|_| ());
            self.changed.notify_waiters();
        }
    }

    /// A TCP segment with SYN, FIN or RST.
    fn hear_end(&self, state: &mut State, frame: &[u8], now: u64) {
        let Some(packet) = Packet::parse(frame) else { return };
        let Content::Tcp(segment) = packet.content else { return };
        let (key, sender) = if self.addresses.stable().any(|stable| stable == packet.source) {
            let client = SocketAddr::new(packet.destination, segment.to);
            (FlowKey { client, port: segment.from }, Sender::Guest)
        } else {
            (FlowKey { client: packet.client(), port: segment.to }, Sender::Client)
        };
        match state.flows.note(key, sender, segment, now) {
            Change::None => {}
            Change::Opened => self.counters.opened.one(),
            Change::Closed => {
                if segment.has(FIN) {
                    self.counters.completed.one();
                }
                state.last_packet = state.last_packet.max(now);
                if state.flows.open(now) == 0 {
                    self.events.idle();
                }
            }
        }
    }

    /// Something that a guest says to a client beyond the handshake.
    fn is_answer(&self, frame: &[u8]) -> bool {
        let from_guest = |packet: &Packet<'_>| self.addresses.stable().any(|stable| stable == packet.source);
        Packet::parse(frame).filter(from_guest).is_some_and(|packet| match packet.content {
            Content::Tcp(segment) => segment.payload_bytes > 0,
            Content::Udp { .. } | Content::Echo(_) | Content::Fragment => true,
            Content::Other => false,
        })
    }

    /// The last client whose packet reached the guest's device although the way to it is closed.
    pub(super) fn strays(&self, state: &mut State) -> Option<(SocketAddr, PortSpec)> {
        let ear = state.ear.clone()?;
        if !matches!(state.listening, Listening::To(_)) {
            return None;
        }
        let mut stray = None;
        ear.take_packets(|frame| {
            if let Some(packet) = self.packet(frame)
                && let Some(port) = packet.port()
            {
                stray = Some((packet.client(), port));
            }
        });
        stray
    }
}
