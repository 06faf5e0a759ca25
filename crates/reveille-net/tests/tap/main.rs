//! Tap mode with real QEMU guests, in network namespaces of the tests' own: a host with the daemon's part, and a client
//! beside it.
//!
//! Needs root; without it the tests say that they were not run. `make test` sets `REVEILLE_TEST_KERNEL` and
//! `REVEILLE_TEST_INITRD`; `REVEILLE_TEST_TAP_WAKES` raises the number of wakes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod guest;
mod spaces;

mod firewall;
mod holder;
mod wakes;
