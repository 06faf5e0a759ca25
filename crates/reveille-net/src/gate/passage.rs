//! An open TCP connection's way through the gate, to one of the instances.

use std::io;
use std::sync::{Arc, OnceLock};

use reveille_core::model::Gate;

use super::{Cut, ServiceGate};
use crate::counters::ReplyCounters;
use crate::upstream::Upstream;

/// An open TCP connection's way through the gate; it counts as open until this is dropped.
pub(crate) struct Passage {
    pub(super) gate: Arc<ServiceGate>,
    pub(super) id: u64,
    pub(super) cut: Arc<OnceLock<Cut>>,
}

/// A connection to a backend that was begun.
pub(crate) struct Begun {
    pub(crate) upstream: Arc<Upstream>,
    /// Where its answers are counted.
    pub(crate) replies: Arc<ReplyCounters>,
}

/// Why a connect to the backend was not even begun.
pub(crate) enum NotBegun {
    /// The gate does not let through, or the passage is cut.
    Closed,
    /// The backend cannot be reached.
    Io(io::Error),
}

impl Passage {
    /// Begins to connect to a port of the backend; [`Upstream::connected`] tells the outcome. Who tries again is led to
    /// another instance than those that it was led to in vain, as long as there is one.
    pub(crate) fn connect(&self, port: u16) -> Result<Begun, NotBegun> {
        let mut guard = self.gate.lock();
        let state = &mut *guard;
        let open = state.shown.gate == Gate::Open;
        let Some(entry) = state.open.get_mut(&self.id).filter(|_| open) else {
            return Err(NotBegun::Closed);
        };
        // Who tries again is a new client.
        let earlier = entry.member.take();
        let last = entry.last.take();
        let mut failed = std::mem::take(&mut entry.failed);
        failed.extend(last);
        state.left(earlier);
        if state.members.iter().filter(|(_, member)| member.takes).all(|(id, _)| failed.contains(id)) {
            // All once more, but the last one last.
            failed = last.into_iter().collect();
        }
        let (id, member) = state.least_used(&failed).map_err(NotBegun::Io)?;
        let begun = member.backend.begin_connect(port).map(Arc::new);
        member.in_use += u32::from(begun.is_ok());
        let replies = Arc::clone(&member.replies);
        if let Some(entry) = state.open.get_mut(&self.id) {
            (entry.last, entry.failed) = (Some(id), failed);
            if let Ok(upstream) = &begun {
                (entry.member, entry.backend) = (Some(id), Some(Arc::clone(upstream)));
            }
        }
        Ok(Begun { upstream: begun.map_err(NotBegun::Io)?, replies })
    }

    /// Why the passage is cut, if it is.
    pub(crate) fn cut_why(&self) -> Option<Cut> {
        self.cut.get().copied()
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        if let Some(entry) = state.open.remove(&self.id) {
            state.left(entry.member);
            self.gate.note_packet();
            if state.open.is_empty() {
                self.gate.events.idle();
            }
        }
    }
}
