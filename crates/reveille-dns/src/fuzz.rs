//! What fuzz targets need of the inside; no part of the interface.

use std::net::SocketAddr;

use reveille_core::answer::View;
use reveille_core::model::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::connections::Speech;
use crate::connections::alone::Alone;
use crate::dnstap::Addresses;
use crate::fast::{Head, look, write};
use crate::respond::{Origin, Setting, Transport, respond};
use crate::tcp::Connection;
use crate::transfer;

/// Serves streams that targets bring, as if they were connections.
#[allow(missing_debug_implementations, reason = "nobody looks at it")]
pub struct Streams(Alone);

impl Streams {
    /// Answers from a view that does not change, at a time that stands. To be called inside a tokio runtime.
    pub fn new(view: View, now: Timestamp) -> Self {
        Self(Alone::at(view, Speech::Dns, now))
    }

    /// Serves one connection to its end.
    pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S, peer: SocketAddr) {
        Connection::new(stream, peer, Transport::Tcp, &self.0.shared).run().await;
    }
}

/// Hides all but the networks of clients in a DNS message; false if it is not to be shown at all.
pub fn mask_message(message: &mut [u8]) -> bool {
    Addresses::Network.mask_message(message)
}

/// The answer of the fast way over UDP; `None` where it leaves the question to the general one.
pub fn fast(view: &View, packet: &[u8], now: Timestamp) -> Option<Vec<u8>> {
    let head = Head::read(packet, view)?;
    let slot = view.names().place(head.hash()).find(head.name(packet));
    let found = look(view, packet, &head, slot)?;
    let now_s = u32::try_from(now.as_ms() / 1_000).ok()?;
    let mut out = vec![0; usize::from(crate::wire::UDP_PAYLOAD_MAX)];
    let length = write(view, packet, &head, &found, now_s, None, &mut out)?;
    out.truncate(length);
    Some(out)
}

/// The messages with which a question over TCP is answered: many if it asks for a transfer, none for silence.
pub fn answers(view: &View, packet: &[u8], peer: SocketAddr, now: Timestamp) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let at = Setting { view, now, judge: None, keys: None };
    let outcome = respond(&at, packet, &Origin::new(peer, Transport::Tcp), &mut out);
    let mut messages = Vec::new();
    match (outcome.transfer, outcome.written) {
        (Some(wanted), _) => {
            let take = |message| {
                messages.push(message);
                true
            };
            // It ends early only if nobody takes the messages.
            let _ = transfer::write(view, *wanted, take);
        }
        (None, Some(_)) => messages.push(out),
        (None, None) => {}
    }
    messages
}
