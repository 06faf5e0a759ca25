//! Whether the guest is there yet, and the SYNs that came too early for it.

use smoltcp::time::Instant;

use super::super::frame::{self, ARP_BYTES, ETHERTYPE_ARP, ETHERTYPE_IPV4};
use super::super::{PROBE_AFTER, PROBE_EVERY};
use super::{ConnectionId, Stack};

/// A silent guest is not probed while more than this waits for it anyway.
const PROBE_BACKLOG_BYTES_MAX: usize = 4 << 10;

impl Stack {
    /// Has a silent guest be looked for, if it was never heard.
    pub(in crate::guest) fn probe_soon(&mut self, now: Instant) {
        if !self.heard && self.probe_at.is_none() {
            self.probe_at = Some(now + PROBE_AFTER.into());
        }
    }

    /// Looks for the guest at once.
    pub(in crate::guest) fn probe(&mut self, now: Instant) {
        let wanted = self.seekers > 0 || self.connections.values().any(|one| one.opening.is_some());
        self.probe_at = None;
        if self.heard || !wanted || self.closed {
            return;
        }
        self.probe_at = Some(now + PROBE_EVERY.into());
        if self.outbox.len() <= PROBE_BACKLOG_BYTES_MAX {
            self.probed_at = Some(now);
            self.outbox.push_to_all(&mut self.counters, ETHERTYPE_ARP, ARP_BYTES, frame::write_who_has);
        }
    }

    /// The guest is heard for the first time, or has another MAC than the SYNs were sent to. One that was sent before the
    /// last probe may have come too early.
    pub(super) fn guest_is_up(&mut self, moved: bool, now: Instant) {
        self.heard = true;
        self.probe_at = None;
        let probed_at = self.probed_at;
        for (id, connection) in &mut self.connections {
            let Some(opening) = &mut connection.opening else { continue };
            let Some(sent_at) = opening.sent_at else { continue };
            let again_at = if moved || probed_at.is_some_and(|at| sent_at <= at) {
                now
            } else {
                sent_at + PROBE_AFTER.into()
            };
            opening.again_at = Some(again_at);
            if let Some(old) = connection.timer.replace(again_at) {
                self.timers.remove(&(old, *id));
            }
            self.timers.insert((again_at, *id));
        }
        self.tick();
    }

    /// Sends the connection's SYN again, unchanged, if that is due.
    pub(super) fn send_syn_again(&mut self, id: ConnectionId, now: Instant) {
        if let Some(connection) = self.connections.get_mut(&id)
            && let Some(opening) = &mut connection.opening
            && opening.again_at.is_some_and(|at| at <= now)
        {
            opening.again_at = None;
            opening.sent_at = Some(now);
            let syn = &opening.syn;
            self.outbox.push(&mut self.counters, ETHERTYPE_IPV4, syn.len(), |packet| {
                packet.copy_from_slice(syn);
            });
        }
    }
}
