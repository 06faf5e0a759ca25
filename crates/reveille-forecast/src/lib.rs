//! Forecasts beside the daemon: what needs files, clocks or threads, which `reveille-core` does not have. The
//! benchmark of its models on public data ([`bench`]), and deadlines for models that are not trusted ([`guard`]).

#![forbid(unsafe_code)]

pub mod bench;
pub mod boosted;
pub mod guard;
pub mod heavy;
mod trees;
