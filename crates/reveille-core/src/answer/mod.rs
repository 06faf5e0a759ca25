//! What is answered to a DNS question, given a view.
//!
//! ```text
//!   question ─► zone (longest match) ─► cut? ─► service? ─► _vmstate? ─► static records ─► wildcard ─► NXDOMAIN
//!                    none: REFUSED      referral   address,      TXT          RRset,          expanded
//!                                                  wake, hold                 CNAME chased
//! ```
//!
//! [`answer`] is RFC 1034 §4.3.2 over the static records of a [`Zone`] with the services of the [`View`] laid
//! over them. It borrows everything that it can from the view and decides nothing about sockets: the query room
//! writes the [`Reply`] into a message, passes on its wish to wake, and keeps the question while it is to be held.

mod acl;
mod clash;
mod content;
mod key;
mod lookup;
mod network;
pub mod rdata;
mod reply;
mod signing;
mod table;
mod view;
mod vmstate;
mod zone;

#[cfg(test)]
mod tests;

pub use acl::{Acl, AclEntry, Asker};
pub use clash::{Clash, clashes, static_clash};
pub use content::{Condensed, Difference, HISTORY_BYTES_MAX, HISTORY_DIFFERENCES_MAX, History, ZoneEdit};
pub use key::{NameKey, QuestionName};
pub use lookup::{CNAME_CHAIN_MAX, Question, answer};
pub use network::{Network, NetworkError};
pub use reply::{Data, Ede, Owner, Rcode, Records, Reply, Section};
pub use signing::{Asked, Denial, SignReplies, Signer, Standing};
pub use table::{Kinds, NameTable, Place, Slot};
pub use view::{Refused, ServiceView, View, WakeTime, Zones};
pub use vmstate::VMSTATE_LABEL;
pub use zone::{
    Node, Record, RecordSet, Zone, ZoneDefaults, ZoneDraft, ZoneFault, ZoneFaultKind, is_newer_serial,
    serial_after,
};
