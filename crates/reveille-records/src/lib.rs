//! Raw records: what was asked and requested, row by row, as Parquet files beside the versions in the object store (O3).
//!
//! ```text
//!   observer, collector ──► Buffer<QueryRow>   ─┐  each flush interval, or when there  ┌─► records/kind=query/date=…/….parquet
//!   request logs        ──► Buffer<RequestRow> ─┴─ are as many as a file may have ─────┴─► records/kind=request/date=…/….parquet
//! ```
//!
//! Nobody waits for it: a buffer has a fixed size, and what finds no room is dropped and counted. A file is put in one step
//! under a name that is never used again, so that whoever reads sees whole files only; a kill costs what was buffered, which
//! is what came within one flush interval. While the object store does not take a file, it is tried again until it does, and
//! what comes meanwhile has the room of the buffer.
//!
//! The date of a file is that of its rows, so that a reader may pass over all others. Retention goes by that date, and
//! deletes nothing that does not have a name as this crate gives them.
//!
//! **Invariant:** no address of a client is in a row, but as a network or as a hash whose key is nowhere written.

mod buffer;
mod encode;
mod lane;
mod place;
mod retention;
mod row;
mod shelf;

pub use buffer::{BUFFER_BYTES_MAX, Buffer};
pub use encode::{Encode, EncodeError, parquet};
pub use lane::{Records, STOP_MS_MAX, Settings};
pub use place::{Kind, day_of};
pub use retention::prune;
pub use row::{Client, Clients, Marker, QueryRow, RequestRow, Row, Source};
pub use shelf::{Shelf, ShelfError};
