//! The control loop: the one task that owns the fleet.
//!
//! ```text
//!   DNS asks ───┐
//!   relay ──────┤                                   ┌─► relay: gates
//!   reports ────┼─► apply ─► decide ─► begin ───────┼─► executor: boot, restore, capture, kill …
//!   commands ───┘   (pure)   (pure)   (row written) └─► view: DNS answers from the next query on
//! ```
//!
//! Everything that changes a service or an instance comes through here, one message after another, so each
//! instance has one writer. What takes time is done by tasks of the [`executor`], which report back.

pub mod cable;
mod catalogue;
mod clones;
mod commands;
mod damping;
mod demand;
mod exchange;
pub mod executor;
pub mod forecasts;
mod guest;
mod health;
pub mod images;
mod inputs;
pub mod keeping;
pub mod outbound;
mod probe;
mod publish;
pub mod ready;
mod reload;
mod remote;
mod replicas;
mod risk;
mod run;
mod serials;
pub mod shelf;
pub mod startup;
pub mod stock;
mod stop;
mod tasks;
#[cfg(test)]
mod tests;
mod traffic;
mod updates;
pub mod versions;
mod vitals;
mod wakes;
mod warm_up;
mod watch;
pub mod wiring;
mod write_back;

use std::time::Instant;

use reveille_core::decide::Foresight;
use reveille_core::health::Judged;
use reveille_core::model::{
    Cause, DomainName, InstanceId, Ownership, Report, Rung, SnapshotVersion, Stage, Timestamp,
};
use reveille_store::WriteError;

pub use commands::Command;
pub use inputs::Inputs;
pub use publish::Publisher;
pub use remote::Remote;
pub use run::{Control, Parts};
pub use serials::Serials;
pub use stop::stop;
pub use updates::{TakenUp, take_up as take_up_updates};

/// Reports and commands that may wait for the control loop. Whoever sends more waits.
pub const INBOX_MAX: usize = 4_096;

/// Computes something that takes long, as a walk over all zones does, where other tasks of this thread go on without
/// it.
fn at_length<T>(compute: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(compute),
        // With one thread there is nobody to go on.
        Ok(_) | Err(_) => compute(),
    }
}

/// What tasks and the API tell the control loop.
#[derive(Debug)]
pub enum Message {
    /// An action came to something.
    Reported {
        /// The instance.
        instance: InstanceId,
        /// The start that it belongs to.
        start: u64,
        /// What it came to.
        report: Report,
        /// When.
        at: Instant,
    },
    /// A stage of a start is over.
    Stage {
        /// The instance.
        instance: InstanceId,
        /// The start that it belongs to.
        start: u64,
        /// The stage.
        stage: Stage,
        /// When.
        at: Instant,
    },
    /// Sending a version to the object store has ended.
    Published {
        /// The instance.
        instance: InstanceId,
        /// The version.
        number: u64,
        /// What the store has now, or why it has not.
        result: Result<SnapshotVersion, Cause>,
    },
    /// A checkpoint of a running guest has ended.
    Checkpointed {
        /// The instance.
        instance: InstanceId,
        /// Its version.
        number: u64,
        /// What the store has now, or why it has not.
        result: Result<SnapshotVersion, Cause>,
    },
    /// What a process held of the host's memory.
    Measured {
        /// The instance.
        instance: InstanceId,
        /// The rung that it was on.
        rung: Rung,
        /// In KiB.
        held_kib: u64,
    },
    /// Probes have changed the verdict on a running instance.
    Judged {
        /// The instance.
        instance: InstanceId,
        /// The start that was probed.
        start: u64,
        /// The verdict.
        judged: Judged,
    },
    /// A guest that goes to sleep wants to be woken.
    WakeAt {
        /// The instance.
        instance: InstanceId,
        /// When.
        at: Timestamp,
    },
    /// What is foreseen for services: the hazard of the gap that each is in.
    Foreseen(Vec<(DomainName, Foresight)>),
    /// What is foreseen to be in use of a replicable service.
    Expected {
        /// The service.
        service: DomainName,
        /// In the coming steps.
        foreseen: Vec<reveille_core::model::load::Foreseen>,
    },
    /// The object store has said whose a service is.
    Owned {
        /// The service.
        service: DomainName,
        /// Whose.
        ownership: Ownership,
    },
    /// Rows of these instances could not be written.
    Unsaved(Vec<InstanceId>),
    /// What updates have changed is durable, or why not.
    UpdatesWritten(Result<(), WriteError>),
    /// Rows were written in place of some that nobody goes by; these may still be wrong.
    WrittenBack(Option<write_back::Doubtful>),
    /// The API asks for something.
    Command(Command),
}
