//! Zones for other servers: transfers in full (RFC 5936) and by differences (RFC 1995), and telling of new serials
//! (RFC 1996).
//!
//! ```text
//!   question ─► judge ─┬─► reply: refused, or the SOA alone
//!                      └─► Transfer ─► messages (a thread that may block) ─► two of them wait at most ─► TCP
//!   new view ─► notify ─► NOTIFY to each secondary, again until it acknowledges
//! ```
//!
//! A transfer holds the view that it was judged by until its last message, so that it is one serial from beginning
//! to end; what it holds of its own is the message in the making and those that wait for the client.

mod judge;
mod messages;
mod notify;

#[cfg(test)]
mod tests;

pub(crate) use judge::{Transfer, judge};
pub(crate) use messages::{Way, write};
pub use notify::{NotifyList, NotifyTarget, Secondaries, SecondaryStatus, ZoneNotify};
pub(crate) use notify::{keep as keep_notifying, start as start_notifying};

/// Most transfers at a time; the next ones wait.
pub(crate) const TRANSFERS_MAX: usize = 16;
/// Longest wait for a place among them, in milliseconds.
pub(crate) const TRANSFER_WAIT_MS_MAX: u64 = 20_000;
/// Messages of a transfer that wait until the client takes them, beside the one in the making.
pub(crate) const MESSAGES_WAITING_MAX: usize = 2;
/// Longest time that a client may take for one message, in milliseconds.
pub(crate) const MESSAGE_MS_MAX: u64 = 30_000;
