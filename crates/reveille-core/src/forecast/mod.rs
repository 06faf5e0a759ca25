//! What will be asked for, when and how much; and what is out of the ordinary. Pure; see design note 0005.

pub mod anomaly;
pub mod caching;
pub mod gaps;
pub mod profile;
pub mod risk;
mod stored;
pub mod volume;
