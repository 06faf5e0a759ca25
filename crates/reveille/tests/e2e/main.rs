//! The daemon as its users have it: the real binary, real virtual machines, dig and plain sockets.
//!
//! `make test` prepares the image and says where it is; the short counts of `cycles`, `crash` and `boots` are
//! raised by environment variables (`scripts/soak.sh`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod addresses;
mod chance;
mod place;
#[path = "../../../reveille-depot/tests/common/servers.rs"]
mod servers;
mod small;
#[path = "../../../reveille-net/tests/tap/spaces.rs"]
mod spaces;
mod wire;
mod world;

mod armed;
mod boots;
mod budget;
mod crash;
mod crowd;
mod cycles;
mod disk;
mod faults;
mod forecast;
mod guest;
mod health;
mod loss;
mod proxy;
mod refusals;
mod registry;
mod rows;
mod services;
mod snapshots;
mod steps;
mod stop;
mod stored;
mod tap;
mod users;
mod wake;
mod warm_up;
