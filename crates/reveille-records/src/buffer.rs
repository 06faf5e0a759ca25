//! Rows that wait to be written: so many and so large at most.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::row::Row;

/// Most memory of the rows of one kind, in bytes, however few they are.
pub const BUFFER_BYTES_MAX: usize = 64 << 20;

/// Rows of one kind. Whoever has one hands it over, or it is dropped and counted; nobody waits but for another who does so.
#[derive(Debug)]
pub struct Buffer<R> {
    held: Mutex<Held<R>>,
    rows_max: usize,
    /// As many as a file has; who waits is told that there are so many.
    file_rows: usize,
    has_file: Notify,
    taken: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Held<R> {
    rows: VecDeque<R>,
    bytes: usize,
}

impl<R: Row> Buffer<R> {
    /// An empty one with room for two files of so many rows.
    pub(crate) fn new(file_rows: usize) -> Self {
        Self {
            held: Mutex::new(Held { rows: VecDeque::new(), bytes: 0 }),
            rows_max: 2 * file_rows,
            file_rows,
            has_file: Notify::new(),
            taken: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// Takes these rows, as far as there is room.
    pub fn push(&self, rows: impl IntoIterator<Item = R>) {
        let (mut taken, mut dropped) = (0, 0);
        let mut held = self.held();
        for row in rows {
            let bytes = row.bytes();
            if held.rows.len() < self.rows_max && held.bytes + bytes <= BUFFER_BYTES_MAX {
                held.bytes += bytes;
                held.rows.push_back(row);
                taken += 1;
            } else {
                dropped += 1;
            }
        }
        let is_file = self.is_file(&held);
        drop(held);
        if is_file {
            self.has_file.notify_one();
        }
        self.taken.fetch_add(taken, Relaxed);
        self.dropped.fetch_add(dropped, Relaxed);
    }

    /// Waits until there is a file's worth of rows, or half of the memory is taken.
    pub(crate) async fn file(&self) {
        while !self.has_file() {
            self.has_file.notified().await;
        }
    }

    /// Whether there is.
    pub(crate) fn has_file(&self) -> bool {
        self.is_file(&self.held())
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.held().rows.is_empty()
    }

    /// Takes out the oldest rows, a file's worth at most.
    pub(crate) fn take(&self) -> Vec<R> {
        let mut held = self.held();
        let count = held.rows.len().min(self.file_rows);
        let rows: Vec<R> = held.rows.drain(..count).collect();
        held.bytes -= rows.iter().map(Row::bytes).sum::<usize>();
        if held.rows.is_empty() {
            // What a flood needed is not kept for ever.
            held.rows = VecDeque::new();
        }
        rows
    }

    /// Rows that were taken, and that were dropped, since the start.
    pub(crate) fn counted(&self) -> (u64, u64) {
        (self.taken.load(Relaxed), self.dropped.load(Relaxed))
    }

    fn is_file(&self, held: &Held<R>) -> bool {
        held.rows.len() >= self.file_rows || held.bytes >= BUFFER_BYTES_MAX / 2
    }

    fn held(&self) -> MutexGuard<'_, Held<R>> {
        // Whoever panicked in between has left whole rows.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use reveille_core::model::Timestamp;

    use super::*;
    use crate::row::{QueryRow, Source};

    fn row(number: u64, name: &str) -> QueryRow {
        QueryRow {
            at: Timestamp::from_ms(number),
            name: name.into(),
            qtype: Arc::from("A"),
            client: None,
            source: Source::Own,
            rcode: Some(0),
        }
    }

    #[test]
    fn rows_come_out_in_their_order_and_what_has_no_room_is_counted() {
        let buffer = Buffer::new(10);
        buffer.push((0..25).map(|number| row(number, "a")));
        assert_eq!(buffer.counted(), (20, 5));
        let at = |rows: Vec<QueryRow>| rows.into_iter().map(|row| row.at.as_ms()).collect::<Vec<_>>();
        assert_eq!(at(buffer.take()), (0..10).collect::<Vec<_>>());
        buffer.push([row(25, "a")]);
        assert_eq!(at(buffer.take()), (10..20).collect::<Vec<_>>());
        assert_eq!(at(buffer.take()), [25]);
        assert_eq!((buffer.take(), buffer.counted()), (vec![], (21, 5)));
    }

    #[test]
    fn long_names_take_no_more_memory_than_there_is() {
        let (buffer, name) = (Buffer::new(1_000_000), "x".repeat(1_000));
        buffer.push((0..100_000).map(|number| row(number, &name)));
        let (taken, dropped) = buffer.counted();
        assert_eq!(taken + dropped, 100_000);
        let bytes = usize::try_from(taken).unwrap() * row(0, &name).bytes();
        assert!(bytes <= BUFFER_BYTES_MAX && bytes + 2_000 > BUFFER_BYTES_MAX, "{bytes}");
        assert_eq!(buffer.take().len() as u64, taken);
        // There is room again.
        buffer.push([row(0, &name)]);
        assert_eq!(buffer.counted(), (taken + 1, dropped));
    }
}
