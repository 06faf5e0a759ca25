//! The act room: what runs instances (`driver`), the QEMU driver (`qemu`), the images they boot (`image`), and
//! the format of their disks (`qcow2`).
//!
//! Nothing here decides. The control loop says what to do with which instance; this crate does it and reports
//! what came of it.

pub mod driver;
mod files;
pub mod image;
pub mod qcow2;
pub mod qemu;
