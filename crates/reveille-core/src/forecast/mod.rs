//! What is seen of demand, and what will come of it: pure, online, in bounded state per name.

pub mod anomaly;
