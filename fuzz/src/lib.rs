//! What the fuzz targets check. Each target is a function over bytes that panics at a finding; `targets/` gives them to
//! libFuzzer, and a test of `reveille-dns` runs them over mutations of the seeds (see `scripts/fuzz.sh`).
//!
//! A new target: a module here, a line in `Cargo.toml`, a file in `targets/`, a directory in `seeds/`, and its name in
//! `scripts/fuzz.sh` and in `crates/reveille-dns/tests/fuzz.rs` (the depot's is in `crates/reveille-depot/tests/fuzz.rs`).

pub mod depot;
pub mod dnstap;
pub mod fast;
pub mod framing;
#[path = "../../crates/reveille-dns/tests/common/message.rs"]
pub mod message;
pub mod question;
pub mod transfer;
pub mod update;
pub mod world;
pub mod zonefile;
