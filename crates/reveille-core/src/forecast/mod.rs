//! What will be asked for, as distributions: never a single number. Pure: history and time are arguments, and the
//! same history gives the same forecast.

pub mod volume;
