//! The TCP connections of a guest, known from their first and last segments alone. Pure.
//!
//! A connection counts from the guest's SYN-ACK until both sides have sent a FIN, or one of them an RST. The segments in
//! between are not seen: the table cannot tell a silent connection from one whose client is gone, and takes it for
//! silent, for [`FLOW_MS_MAX`] at most. A connection that the guest has closed and the client has not counts for
//! [`HALF_CLOSED_MS_MAX`], as in relay mode.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::frame::{ACK, FIN, RST, SYN, Segment};

/// Most connections of one service that are known; beyond it the ones that were heard of longest ago are forgotten.
pub(super) const FLOWS_MAX: usize = 4_096;
/// Longest time for which a connection counts of which nothing more was seen than its beginning.
pub(super) const FLOW_MS_MAX: u64 = 24 * 3_600_000;
/// Longest time for which a connection counts that the guest has closed and its client has not.
pub(super) const HALF_CLOSED_MS_MAX: u64 = 300_000;
/// Longest time between a client's SYN and the guest's SYN-ACK.
const OPENING_MS_MAX: u64 = 60_000;

/// A client and the port of the guest that it speaks with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FlowKey {
    pub(super) client: SocketAddr,
    pub(super) port: u16,
}

/// Who sent a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    Client,
    Guest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Opening,
    Open,
    ClosedByClient,
    ClosedByGuest,
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    stage: Stage,
    /// When it came into this stage, in milliseconds.
    since: u64,
}

impl Flow {
    fn is_over(self, now: u64) -> bool {
        let limit = match self.stage {
            Stage::Opening => OPENING_MS_MAX,
            Stage::Open | Stage::ClosedByClient => FLOW_MS_MAX,
            Stage::ClosedByGuest => HALF_CLOSED_MS_MAX,
        };
        now.saturating_sub(self.since) > limit
    }
}

/// The connections of one service.
#[derive(Debug, Default)]
pub(super) struct Flows {
    known: BTreeMap<FlowKey, Flow>,
}

/// What a segment changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Opened,
    Closed,
}

impl Flows {
    /// Takes note of a segment with SYN, FIN or RST.
    pub(super) fn note(&mut self, key: FlowKey, sender: Sender, segment: Segment, now: u64) -> Change {
        let before = self.known.get(&key).copied();
        if segment.has(RST) {
            return self.forget(&key);
        }
        let stage = match (sender, before.map(|flow| flow.stage)) {
            (Sender::Client, _) if segment.has(SYN) && !segment.has(ACK) => Some(Stage::Opening),
            (Sender::Guest, None | Some(Stage::Opening)) if segment.has(SYN) && segment.has(ACK) => {
                Some(Stage::Open)
            }
            (Sender::Client, Some(Stage::Open)) if segment.has(FIN) => Some(Stage::ClosedByClient),
            (Sender::Guest, Some(Stage::Open)) if segment.has(FIN) => Some(Stage::ClosedByGuest),
            (Sender::Client, Some(Stage::ClosedByGuest)) | (Sender::Guest, Some(Stage::ClosedByClient))
                if segment.has(FIN) =>
            {
                return self.forget(&key);
            }
            // A client that sends after the guest's FIN uses what is left of the connection.
            (Sender::Client | Sender::Guest, _) => None,
        };
        let Some(stage) = stage else { return Change::None };
        self.make_room(now);
        self.known.insert(key, Flow { stage, since: now });
        if stage == Stage::Open { Change::Opened } else { Change::None }
    }

    /// Whether the guest has the connection, as far as is known.
    pub(super) fn has(&self, key: &FlowKey) -> bool {
        self.known.contains_key(key)
    }

    /// How many connections are open.
    pub(super) fn open(&mut self, now: u64) -> u32 {
        self.known.retain(|_, flow| !flow.is_over(now));
        let open = self.known.values().filter(|flow| flow.stage != Stage::Opening).count();
        u32::try_from(open).unwrap_or(u32::MAX)
    }

    /// The guest is lost, and its connections with it.
    pub(super) fn clear(&mut self) {
        self.known.clear();
    }

    fn forget(&mut self, key: &FlowKey) -> Change {
        match self.known.remove(key).map(|flow| flow.stage) {
            Some(Stage::Open | Stage::ClosedByClient | Stage::ClosedByGuest) => Change::Closed,
            Some(Stage::Opening) | None => Change::None,
        }
    }

    fn make_room(&mut self, now: u64) {
        if self.known.len() < FLOWS_MAX {
            return;
        }
        self.known.retain(|_, flow| !flow.is_over(now));
        if self.known.len() >= FLOWS_MAX
            && let Some(oldest) = self
                .known
                .iter()
                // Those that never came to be open first: a flood of SYNs makes no other forgotten.
                .min_by_key(|(_, flow)| (flow.stage != Stage::Opening, flow.since))
                .map(|(key, _)| *key)
        {
            self.known.remove(&oldest);
        }
    }
}
