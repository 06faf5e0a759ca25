//! The QEMU driver with real QEMU processes and a real kernel.
//!
//! `make test` sets `REVEILLE_TEST_KERNEL` and `REVEILLE_TEST_INITRD` to those of an image, and for a QEMU other
//! than the installed one `REVEILLE_TEST_QEMU` and `REVEILLE_TEST_QEMU_DATA`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what the tests share is test code too")]

mod beside;
mod disk;
mod life;
mod loss;
mod refusal;
mod rows;
mod world;
