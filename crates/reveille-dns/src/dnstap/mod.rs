//! dnstap: what other servers are asked, taken in as demand, and what this one is asked, told to others (O2).
//!
//! ```text
//!   in    sender ──► frames ──► message ──► intake ──► counts per second and source, sketches     collector
//!   out   threads that answer ──► tap ──► mask ──► message ──► frames ──► collector, file         emitter
//! ```
//!
//! [`frames`] is Frame Streams, [`message`] the events in it; neither knows a socket. [`Collector`] and [`Emitter`] each
//! have a thread of their own.
//!
//! **What counts as demand.** A question passes several servers, and each may tell of it, twice even, as query and as
//! response. Counted is by default what comes to a server from outside: CLIENT_QUERY (resolvers) and AUTH_QUERY
//! (secondaries, CDN edges). What a resolver asks on itself (RESOLVER_QUERY, FORWARDER_QUERY) comes to an authoritative
//! server, mostly to this one, and is counted there. Whoever has senders of another kind names the types; one question
//! under two types is refused by the settings. Counts stay apart by sender, so that whoever uses them may leave one out.
//!
//! **Invariant:** nothing that answers waits for a collector, a file or a sender.
//! **Invariant:** whatever a sender says, what is remembered has a fixed size; what is over is counted.
//! **Invariant:** no client's address outlives the look at which its message is taken in, but as part of a network. Full
//! ones leave this host only where the settings say so.

mod collector;
mod config;
mod emitter;
pub mod file;
pub mod frames;
mod intake;
mod mask;
pub mod message;
mod protobuf;
mod seconds;
mod sources;
mod tap;
mod thread;

pub use collector::{
    Collector, CollectorError, CollectorStatus, TCP_SENDERS_MAX, UNIX_SENDERS_MAX, UnixSocketError,
};
pub use config::{Addresses, Destination, DnstapIn, DnstapOut};
pub use emitter::{BACKOFF_MS, Emitter, EmitterStatus, EmitterWatch, WRITE_MS_MAX};
pub use intake::{CLOCK_OFF_MS_MAX, question_in};
pub use protobuf::DecodeError;
pub use seconds::{COUNTS_MAX, SecondCount};
pub use sources::{SOURCES_MAX, SourceId, SourceStatus};
pub(crate) use tap::{SharedTap, TapReader, TapWriter, Tapped, tap, with_shared};
