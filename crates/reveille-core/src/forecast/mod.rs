//! What will be asked for: distributions of the future, from what was seen. Pure: the past and `now` in, values out.

pub mod gaps;
