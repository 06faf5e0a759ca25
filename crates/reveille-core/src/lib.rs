//! The pure half of Reveille: what exists (`model`), what will be asked for (`forecast`), what to do about it
//! (`decide`), whether it serves (`health`) and what to answer (`answer`). Nothing in this crate reads a clock, a file, a socket or a random
//! number: time is an argument, and the same input gives the same output, so that every decision can be replayed.

#![forbid(unsafe_code)]

pub mod answer;
pub mod decide;
pub mod forecast;
pub mod health;
pub mod model;
pub mod mutation;
pub mod warm_up;
