//! Replay.
pub mod tape;
pub mod trace;
