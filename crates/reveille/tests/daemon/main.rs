//! The daemon as its operators, clients and secondaries have it: the real binary, dig, nsupdate and other name servers.
//! No virtual machine is started; services have no image.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "../e2e/addresses.rs"]
mod addresses;
mod anomalies;
mod bench;
mod dnstap;
mod load;
mod place;
#[path = "../../../reveille-dns/tests/primaries/mod.rs"]
mod primaries;

mod operate;
mod records;
mod reload;
mod replay;
mod request_logs;
mod serials;
mod updates;
mod volume;
