//! Versions of virtual machines in object storage.
pub mod catalogue;
pub mod config;
mod depot;
pub mod failpoint;
pub mod fetch;
pub mod format;
pub mod names;
pub mod objects;
pub mod owner;
pub mod pages;
pub mod put;
pub mod seal;
pub mod source;

pub use depot::{Cancel, Depot, Progress, Stage, Stopwatch, Watch};
