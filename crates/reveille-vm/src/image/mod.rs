//! Images: what instances boot. A kernel and an initial RAM file system, made from a root, kept by content address.
//!
//! ```text
//! directory, tar, OCI ─ source ─► tree ─ program: is there an init?┐
//! file, package, apt ─ kernel, package ─► modules ────────────────┤
//! qcow2 or raw ─ disk ─────────────────────────────────────────────┤
//! busybox, script ─ boot ─────────────────────────────────────────┴─► initramfs ─► cpio ─► store
//! ```
//!
//! Everything here blocks; callers on an async runtime use a thread for it. The same input gives the same image, byte
//! by byte: entries are sorted, times are dropped, and nothing is compressed.

mod boot;
mod build;
mod cpio;
mod disk;
mod elf;
mod fault;
mod initramfs;
mod kernel;
mod manifest;
mod modules;
mod oci;
mod package;
mod program;
mod source;
mod space;
mod store;
mod tree;

pub use boot::{BusyboxError, USER_SPACE_REACHED};
pub use build::{BUSYBOX, BuildError, BuildRequest, BuildStep, OnProgress, Progress};
pub use fault::{NameError, RemoveError, ResolveError, StoreError};
pub use kernel::{KERNEL_BYTES_MAX, KernelError, KernelSource};
pub use manifest::ImageFault;
pub use modules::ModulesError;
pub use package::{DOWNLOAD_SECONDS_MAX, PackageError};
pub use program::{INIT_PATHS, InitError};
pub use source::{RootSource, SourceError};
pub use space::NoSpace;
pub use store::{
    Damaged, IMAGES_MAX, Image, ImageStore, Listing, NAME_BYTES_MAX, PREFIX_MIN, Removed, Use, check_name,
};
pub use tree::{ENTRIES_MAX, EntryFault, PATH_BYTES_MAX, ROOT_BYTES_MAX, TreeError};
