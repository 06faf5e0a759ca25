//! Images, from a root and a kernel to a guest that runs.
//!
//! Packages are downloaded once, into `REVEILLE_TEST_CACHE` or `target/test-cache`. `REVEILLE_TEST_QEMU` and
//! `REVEILLE_TEST_QEMU_DATA` name a QEMU other than the installed one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod boot;
mod build;
mod crash;
mod disk;
mod refusal;
mod store;
mod support;
