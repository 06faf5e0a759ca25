//! Messages: questions are parsed in place, answers are built with the `domain` crate.

mod compress;
mod cookie;
mod pack;
mod query;
mod write;

pub use cookie::{COOKIE_BYTES, ClientCookie, Cookie, OPTION_COOKIE, ServerPart};
pub(crate) use pack::Packer;
pub use query::{Edns, Faulty, Header, Query, Subnet, Unreadable};
pub(crate) use query::{OPTION_SUBNET, question_of};
pub use write::{
    Envelope, KEEPALIVE_MS, UDP_PAYLOAD_MAX, Written, write_error, write_fault, write_reply, write_truncated,
};
