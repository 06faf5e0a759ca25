//! Versions of virtual machines in object storage: put, fetch, list, keep, collect, own.
//!
//! The crate knows files, pages and objects, and of services their names. A [`Depot`] is a prefix in a directory, in S3,
//! in Azure Blob or in GCS; [`names`] shows what lies where. Start with [`put`] and [`fetch`]; why nothing that is needed
//! is ever deleted is told in [`collect`], who may write in [`owner`].

pub mod annex;
pub mod archive;
pub mod catalogue;
pub mod collect;
pub mod config;
mod depot;
pub mod fetch;
pub mod format;
pub mod names;
pub mod objects;
pub mod owner;
pub mod pages;
pub mod put;
pub mod republish;
pub mod retention;
pub mod seal;
pub mod source;
pub mod verify;

pub use depot::{Cancel, Depot, Progress, Stage, Stopwatch, Watch};
