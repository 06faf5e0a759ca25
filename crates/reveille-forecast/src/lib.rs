//! Forecasts beside the daemon: what needs files, clocks or threads, which `reveille-core` does not have. Today the
//! benchmark of its models on public data ([`bench`]).

#![forbid(unsafe_code)]

pub mod bench;
