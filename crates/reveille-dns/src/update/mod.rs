//! Dynamic updates (RFC 2136) of the static records, from outside in.
//!
//! ```text
//!   packet ─► TSIG ─► UpdateMessage ─► bounded channel ─► control loop: judge ─► rows durable ─► view ─► answer
//!                                                           (pure)               (store)
//! ```
//!
//! An update changes static records alone. A service's addresses and its `_vmstate`, the SOA and whatever belongs
//! to signing have an owner already; an update that asks for them is refused as a whole. Nothing may be updated
//! without a TSIG key and a [`Grant`] for it.
//!
//! # What is kept
//!
//! The zone file stays as its author wrote it. What updates have changed is kept beside it, one row for each
//! RRset that differs: the records that it has more and less than the file, and its TTL if that differs
//! ([`SetChange`]). At each start and reload the rows are laid over the file ([`lay_over`]), so an edited file and the
//! updates meet record by record:
//!
//! - a record that the file gained or lost, and no update touched, is as the file says;
//! - a record that updates added stays, and one that they removed stays away, whatever the file says; when the
//!   file says the same, the row shrinks at the next update of the RRset;
//! - a row that no longer fits (the file has a CNAME where updates added an address; a service has the name now)
//!   is set aside with a warning, is not served, and is tried again at the next start or reload.
//!
//! Nothing that was acknowledged is lost or undone by anything but a newer update. So an update that touches what is
//! set aside changes that too, though nobody sees it yet (`aside.rs`): what it removes is removed there, what it adds
//! takes away what cannot stand beside it, and the rest keeps its place in the row. Of two changes that cannot both be
//! served the newer one is kept. An update that only takes something from what is set aside is durable before its
//! answer like any other, and gives no new serial. What RFC 2136 §3.4.2.2 has a server ignore (an address beside an
//! alias that is served) changes nothing here either.
//!
//! # Limits
//!
//! A message has at most [`UPDATE_RECORDS_MAX`] prerequisites and changes, and is REFUSED beyond; a zone has at most
//! [`CHANGED_SETS_MAX`] rows.

mod aside;
mod book;
mod desk;
mod door;
mod edits;
mod grant;
mod judge;
mod message;
mod overlay;
mod prerequisites;

#[cfg(test)]
mod tests;

pub use book::{ChangedZone, Row, StaticBook, Verdicts};
pub use desk::{UPDATE_GROUP_MAX, UpdateDesk, ZoneRows};
pub use door::{UPDATES_WAITING_MAX, UpdateAsk, Verdict};
pub use grant::{Grant, NamePattern, NamePatternError};
pub use judge::{Refusal, Request, grantable_type};
pub use message::{Edit, Prerequisite, UPDATE_RECORDS_MAX, UpdateMessage};
pub use overlay::{SetAside, SetChange, lay_over, taken_by};

pub(crate) use door::{Admitted, UpdateDoor, WaitingUpdate, is_update};

/// RRsets of one zone that may differ from its file. Beyond it updates that would change more are refused.
pub const CHANGED_SETS_MAX: usize = 100_000;
