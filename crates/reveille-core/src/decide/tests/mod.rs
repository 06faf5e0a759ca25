//! Stories: what happens, and the whole plan after it.

mod depot;
mod forecast;
mod replicas;
mod room;
mod stories;
mod versions;
mod warm_up;
mod world;
