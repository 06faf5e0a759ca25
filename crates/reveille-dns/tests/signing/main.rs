//! Signed zones as delv, kdig, Unbound and the tools of BIND see them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;

mod answers;
mod keys;
mod resolver;
mod signed;
mod unbound;
