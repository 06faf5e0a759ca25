//! The act room: what runs instances (`driver`), the QEMU driver (`qemu`), and the images they boot (`image`).
//!
//! Nothing here decides. The control loop says what to do with which instance; this crate does it and reports
//! what came of it.

pub mod driver;
pub mod image;
pub mod qemu;
