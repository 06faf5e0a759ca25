//! Counting every query, and telling the slow loop of as many as it can take in (O1).
//!
//! ```text
//!   thread ──► NameCounts   exact: one number a name, written by this thread alone ──► summed when somebody looks
//!          └─► Ring         who asked what, when: bounded, what does not fit is dropped and counted
//!                 └─► Observer   a thread of its own: counts per service and second, sketches of names and clients
//! ```
//!
//! What resolvers keep in their caches is put back by what the sightings tell of them (`volume.rs`).
//!
//! **Invariant:** no address of a client outlives the look at which its query is taken in, but as part of a network.

mod aggregate;
mod counts;
mod crowd;
mod distinct;
mod heavy;
mod observer;
mod ring;
mod volume;

use std::net::IpAddr;

use reveille_core::answer::{Rcode, rdata};
use reveille_core::model::Timestamp;

pub use aggregate::{Aggregate, EPOCH_S, Observations, SECONDS_KEPT, SERIES_MAX, SeenName, ServiceQueries};
pub(crate) use counts::NameCounts;
pub use counts::{COUNTERS_MAX, Counters};
pub use crowd::Crowd;
pub use heavy::Heavy;
pub use observer::Observer;
pub(crate) use ring::Producer;
pub use ring::{CELLS_MAX, Consumer, ring};
pub use volume::Correction;

use crate::limit::{Client, Source};
use crate::respond::{Origin, Outcome, Transport};
use crate::wire::Subnet;

/// One query, as the slow loop sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// When its batch was read.
    pub at: Timestamp,
    /// Number of the counter of the service that answered, or else has the name; 0 if there is none.
    pub counter: u32,
    /// The name in wire format, as it was asked, where the counter does not tell it; otherwise empty.
    pub name: Vec<u8>,
    /// Type.
    pub qtype: u16,
    /// Response code of the answer, 4 bits and more.
    pub rcode: u16,
    /// How it came.
    pub transport: Transport,
    /// Who asked: mostly a resolver. To be dropped after aggregation.
    pub client: IpAddr,
    /// On whose behalf, if it was said.
    pub subnet: Option<Subnet>,
    /// For how long what was answered may be cached, in seconds, if it may and that is known.
    pub ttl_s: Option<u32>,
    /// Whether who asked has proven its address.
    pub proven: bool,
}

/// Who hears of each query that is taken in, beside the counts: on the thread that takes it in, and never on one that
/// answers. It is to keep no address, and must not block.
pub type Hear = Box<dyn FnMut(&Observed) + Send>;

/// One query, as a thread that answers hands it over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sighting<'p> {
    pub at: Timestamp,
    pub counter: u32,
    pub name: &'p [u8],
    pub qtype: u16,
    pub rcode: Rcode,
    pub transport: Transport,
    pub client: IpAddr,
    pub subnet: Option<Subnet>,
    pub ttl_s: Option<u32>,
    pub proven: bool,
}

impl<'p> Sighting<'p> {
    /// A packet that was answered the general way; `None` if it was not answered.
    pub fn of(packet: &'p [u8], from: &Origin, outcome: &Outcome, at: Timestamp) -> Option<Self> {
        let written = outcome.written.as_ref()?;
        Some(Self {
            at,
            counter: outcome.counter,
            name: question_name(packet),
            qtype: outcome.qtype,
            rcode: written.rcode,
            transport: from.transport,
            client: from.peer.ip(),
            subnet: outcome.subnet,
            ttl_s: outcome.ttl_s,
            proven: proves(from.transport, outcome.client.as_ref()),
        })
    }
}

/// Whether the sender's address is proven: by a connection, or by its cookie.
pub(crate) fn proves(transport: Transport, client: Option<&Client>) -> bool {
    transport.proves_address() || client.is_some_and(|client| client.source == Source::Proven)
}

/// The name of the question in a packet that could be read, in wire format.
fn question_name(packet: &[u8]) -> &[u8] {
    let question = packet.get(12..).unwrap_or_default();
    rdata::name_length(question).and_then(|length| question.get(..length)).unwrap_or_default()
}
