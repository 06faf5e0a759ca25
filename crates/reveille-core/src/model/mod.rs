//! The words of the system as types: names, phases, services, instances, and the fleet that holds them.

mod event;
mod fleet;
mod instance;
pub mod load;
mod measured;
mod name;
mod phase;
mod reconcile;
mod report;
mod room;
mod service;
mod time;
mod wake;

pub use event::{Applied, Demand, Event, HostLimits, Ownership, Report, RequestError, Service};
pub use fleet::{Fleet, Gate};
pub use instance::{
    Cause, Failure, Former, Instance, InstanceId, Remains, RollBack, SleepAsked, SnapshotVersion,
};
pub use measured::{Measured, RecentDurations, RungMeasured};
pub use name::{DomainName, NameError};
pub use phase::{Kind, Move, Outcome, Phase, Refusal, Role, Rung, VmState, transition};
pub use reconcile::{Found, Reconciled, reconcile};
pub use room::{ARMED_MIB, Held};
pub use service::{
    AfterCrash, AnswerPolicy, DnsLease, Egress, ForecastMode, INSTANCES_MAX, Policy, PortSpec, Protocol,
    ReadyCheck, Resources, ServiceSpec, SpecFault,
};
pub use time::Timestamp;
pub use wake::{Stage, Trigger, WakeOutcome, WakeRecord};
