//! The query room: wire format, UDP and TCP servers, zone files.
//!
//! ```text
//!   udp (threads) ───┐                      ┌─► out            the answer
//!   tcp, tls (tokio) ┼─► respond(view, …) ──┼─► wake           bounded, lossy channel to the slow loop
//!   https (tokio) ───┘                      └─► hold (tokio)   the question waits for a view in which it is ready
//! ```
//!
//! In front of it stands the gate, [`limit`]: who is answered, how often, and who may wake how much.
//!
//! [`respond`] reads one view, writes one answer and knows no socket. What it asks for beside the answer, a wake
//! or a hold, is passed on without waiting: no query waits for the slow loop.

mod base64;
mod bind;
mod cells;
mod connections;
pub mod dnstap;
mod fast;
#[doc(hidden)]
pub mod fuzz;
mod hold;
mod https;
pub mod limit;
pub mod named_file;
pub mod observe;
mod places;
pub mod publish;
mod respond;
mod server;
pub mod sign;
mod tally;
mod tcp;
mod tls;
mod transfer;
pub mod tsig;
mod udp;
pub mod update;
mod wake;
pub mod wire;
pub mod zonefile;

pub use bind::BindError;
pub use respond::{Origin, Outcome, Setting, Transport, WakeWish, respond};
pub use server::{Clock, DnsConfig, DnsServer, EncryptedConfig};
pub use tally::{Counts, Tallies};
pub use tls::{About, Certificate, CertificateError, CertificateSource, Refreshed};
pub use transfer::{NotifyList, NotifyTarget, Secondaries, SecondaryStatus, ZoneNotify};
pub use udp::echo;
pub use wake::{AskKind, WakeAsk};
