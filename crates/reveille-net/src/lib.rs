//! The activator in relay mode: holds the first packets of clients while an instance wakes, then relays.
//!
//! A service has stable addresses, on which [`Relay`] listens for each declared port, and while an instance runs a
//! [`Backend`]: the same ports of the guest, reached through its [link](guest). What clients send is passed to the
//! backend while the service's [gate](reveille_core::model::Gate) is open, and waits while it is held.
//!
//! ```text
//! client ──► stable address ──► gate ── Open ───► backend ──► guest
//!                                 ├──── Hold ───► waits; Wanted is reported
//!                                 └──── Refuse ─► reset, counted
//! ```
//!
//! The gate is the one place where arrivals and sleep meet: see [`Relay::close_if_idle`].
//!
//! Relay mode needs no privileges beyond those for the ports themselves. Stable addresses may be any of 127/8,
//! addresses that are configured on the host, or addresses of a prefix that is routed to it
//! (`ip route add local PREFIX dev lo`, with [`Binding::freebind`] for IPv6).

mod activator;
mod binding;
mod counters;
mod events;
mod gate;
pub mod guest;
mod held;
mod listen;
mod open_files;
mod relay;
mod splice;
pub mod tap;
mod tcp;
mod udp;
mod upstream;

pub use activator::{Activator, ActivatorError};
pub use binding::{BindError, Binding, RelayLimits};
pub use counters::{Replies, Traffic};
pub use events::{EventSender, RelayEvent, RelayEvents, ServiceEvents, channel as relay_events};
pub use open_files::{OPEN_FILES_MAX, raise_open_files};
pub use relay::{Busy, Now, Relay};
pub use upstream::Backend;
