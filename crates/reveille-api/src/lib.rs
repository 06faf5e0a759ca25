//! The HTTP API: the one way in which people, scripts and the command line speak to a running daemon.
//!
//! ```text
//! connection ─► limits ─► guard (Host, Origin, content type, token) ─► routes ─► Control (the daemon)
//!                                                                        └────► problem+json on any error
//! ```
//!
//! [`control`] is what the daemon implements, [`types`] the bodies that travel, [`client`] the other end of the
//! wire. Nothing here knows how a service is woken.

#![forbid(unsafe_code)]

pub mod access;
pub mod client;
pub mod control;
pub mod events;
mod guard;
mod metrics;
mod places;
pub mod problem;
pub mod request_log;
mod routes;
mod server;
pub mod time;
pub mod token_file;
pub mod types;

pub use access::{Access, Anonymous, Scope, Token, TokenGrant, TokenHash};
pub use client::{Client, ClientError};
pub use control::{
    CloneRequest, Connections, Control, ControlError, Depth, Pin, RolloverStep, Unstored, Wait,
};
pub use events::Event;
pub use problem::Problem;
pub use server::{BindError, bind, serve};
pub use time::{Time, TimeError};
