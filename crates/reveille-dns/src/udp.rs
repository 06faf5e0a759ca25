//! UDP: dedicated threads, each with a socket of its own on the same address (SO_REUSEPORT), so that queries do
//! not wait for tokio's workers. Nothing here allocates, locks or logs for an ordinary query.

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Acquire};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arc_swap::ArcSwap;
use reveille_core::answer::View;

use crate::hold::HoldRoom;
use crate::respond::{Transport, respond};
use crate::server::Clock;
use crate::tally::{Tally, bump};
use crate::wake::WakeAsker;

/// Largest datagram that is read whole; nothing larger exists.
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// How long a thread sleeps at most before it looks whether to stop, should the wake-up have been missed.
pub(crate) const LOOK_MS: u64 = 1_000;
/// Pause after an error of the socket, so that a lasting one does not take a whole core.
const ERROR_PAUSE_MS: u64 = 5;

/// One thread's tools.
pub(crate) struct Worker {
    pub socket: Arc<UdpSocket>,
    pub shared: Arc<ArcSwap<View>>,
    pub clock: Clock,
    pub asker: WakeAsker,
    pub hold: HoldRoom,
    pub tally: Arc<Tally>,
    pub stop: Arc<AtomicBool>,
}

impl Worker {
    /// Starts the thread.
    pub fn start(self, name: String) -> io::Result<JoinHandle<()>> {
        thread::Builder::new().name(name).spawn(move || self.run())
    }

    fn run(mut self) {
        let mut packet = vec![0; DATAGRAM_BYTES_MAX];
        let mut out = Vec::with_capacity(usize::from(crate::wire::UDP_PAYLOAD_MAX));
        while !self.stop.load(Acquire) {
            let (length, peer) = match self.socket.recv_from(&mut packet) {
                Ok(received) => received,
                Err(error) => {
                    self.rest_after(&error);
                    continue;
                }
            };
            let packet = &packet[..length];
            let view = self.shared.load();
            let outcome = respond(&view, packet, peer, Transport::Udp, (self.clock)(), &mut out);
            self.tally.query(&outcome);
            if let Some(wish) = outcome.wake {
                self.asker.ask(wish, view.generation, peer.ip());
            }
            if let Some(ms_max) = outcome.hold_ms_max
                && let Some(held) = self.hold.take(packet, peer, Transport::Udp, ms_max)
            {
                self.hold.answer_later(held, Arc::clone(&self.socket));
                continue;
            }
            if outcome.written.is_some() && self.socket.send_to(&out, peer).is_err() {
                bump(&self.tally.socket_errors);
            }
        }
    }

    fn rest_after(&self, error: &io::Error) {
        let only_time_passed = matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
        );
        if !only_time_passed {
            bump(&self.tally.socket_errors);
            thread::sleep(Duration::from_millis(ERROR_PAUSE_MS));
        }
    }
}
