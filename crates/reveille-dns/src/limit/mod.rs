//! The gate: who is answered, how often, and who may wake how much.
//!
//! ```text
//!            ┌─ arrive ──────────────┐     ┌─ rate ────────────┐     ┌─ wake ─────────────────────┐
//!  question ─► cookie ─► lists ──────┼──►  │ answers over UDP  ├──►  │ only where one would begin │
//!            │ proven?   drop,       │     │ pass, slip, drop  │     │ client, zone, host         │
//!            │           refuse      │     └───────────────────┘     └────────────────────────────┘
//!            └───────────────────────┘   looked up in between: kind of answer, zone, wake wanted
//! ```
//!
//! A [`Judge`] is one look at the gate: the rules and the time that hold for a batch of questions. Its calls take
//! `&self`, do not allocate, lock, log or read a clock, and are shared by all threads; what they count goes to the
//! thread's own [`GateTally`].
//!
//! One question over UDP, on its way through:
//!
//! ```
//! use reveille_core::model::Timestamp;
//! use reveille_dns::Transport;
//! use reveille_dns::limit::*;
//! use reveille_dns::wire::{COOKIE_BYTES, Cookie, Subnet};
//! # use std::net::IpAddr;
//! # fn find(_: u16) -> (Kind, bool) { (Kind::Positive, true) }
//!
//! /// What the loop does with a question.
//! enum Do {
//!     Nothing,
//!     /// Header, question, OPT with the cookie; that code.
//!     Error(u16, Option<[u8; COOKIE_BYTES]>),
//!     /// The same with TC and NOERROR or NXDOMAIN, no records.
//!     Truncated(Option<[u8; COOKIE_BYTES]>),
//!     Answer { cookie: Option<[u8; COOKIE_BYTES]>, wake: bool },
//! }
//!
//! fn one(
//!     judge: &Judge<'_>, peer: IpAddr, cookie: Option<&Cookie>, subnet: Option<&Subnet>, qtype: u16, zone: u16,
//! ) -> Do {
//!     let arrival = Arrival { peer, transport: Transport::Udp, cookie, subnet, qtype, zone: Some(zone) };
//!     let client = judge.arrive(&arrival);
//!     // What stands at the name; for what is not to be looked up the kind is `Error`.
//!     let (kind, wants_wake) = match client.entry {
//!         Entry::Drop => return Do::Nothing,
//!         Entry::Enter => find(qtype),
//!         Entry::Refuse | Entry::BadCookie | Entry::Truncate => (Kind::Error, false),
//!     };
//!     let verdict = judge.rate(&client, kind);
//!     if verdict == RateVerdict::Drop {
//!         return Do::Nothing;
//!     }
//!     let cookie = judge.cookie_for(&client, cookie);
//!     match client.entry {
//!         Entry::Drop => Do::Nothing,
//!         Entry::Refuse => Do::Error(5, cookie),
//!         Entry::BadCookie => Do::Error(23, cookie),
//!         Entry::Truncate => Do::Truncated(cookie),
//!         Entry::Enter if verdict == RateVerdict::Slip && kind != Kind::Error => Do::Truncated(cookie),
//!         // A wake only with an answer that goes out whole, and only where it would be a new one: ask here after
//!         // the thread's own memory of what it asked for in this view.
//!         Entry::Enter => Do::Answer { cookie, wake: wants_wake && judge.wake(&client, zone).passes() },
//!     }
//! }
//!
//! let start = Timestamp::from_ms(1_800_000_000_000);
//! let gate = Gate::new(&GateConfig::default(), &["vm.test".parse()?], start)?;
//! let tally = gate.tally(Writers::One); // one for each thread
//! let judge = gate.judge(start.plus_ms(17), &tally); // one for each batch
//! let done = one(&judge, "192.0.2.1".parse()?, None, None, 1, 0);
//! assert!(matches!(done, Do::Answer { cookie: None, wake: true }));
//! assert_eq!(gate.counts().of(Counter::Wake(Source::Unproven)), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! To let the cache misses of a batch overlap: `arrive` for all questions of the batch, each followed by
//! [`Judge::touch`], and only then `rate` for all of them.

mod bucket;
mod budget;
mod client;
mod config;
mod cookie;
mod gate;
mod judge;
mod list;
mod rate;
mod tally;

#[cfg(test)]
mod tests;

pub use budget::{UNPROVEN_HOST_PERCENT, WakeLimit, WakeVerdict, ZONES_MAX};
pub use client::Source;
pub use config::{CookieConfig, GateConfig, RateConfig, WakeConfig, WakeMode};
pub use cookie::{CookieSecrets, CookieStatus, SECRETS_MAX, Secret, SecretError};
pub use gate::{Gate, GateError, PreparedRules};
pub use judge::{Arrival, Client, Entry, Judge};
pub use list::{Action, QueryType, QueryTypeError, RULES_MAX, Rule};
pub use rate::{Kind, RateVerdict};
pub use tally::{Counter, GateCounts, GateTally, Writers};
