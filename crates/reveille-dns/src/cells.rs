//! A lossy way from one thread to another: a ring of cells of one cache line each, between one that writes and one that
//! reads.
//!
//! Neither waits for the other. Without room the writer is told so, and drops what it had. What is written becomes
//! visible as a whole with [`Writer::flush`], once a batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Numbers of one cell.
pub(crate) const WORDS: usize = 8;
/// Bytes of one cell.
pub(crate) const CELL_BYTES: usize = WORDS * 8;

type Cell = [AtomicU64; WORDS];

#[derive(Debug)]
#[repr(align(128))]
struct Index(AtomicUsize);

#[derive(Debug)]
struct Shared {
    /// As many as a power of two.
    cells: Box<[Cell]>,
    /// Cells written since the start.
    written: Index,
    /// Cells read since the start.
    read: Index,
    dropped: AtomicU64,
    /// The reader wants nothing for now.
    closed: AtomicBool,
}

/// The end that writes.
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    mask: usize,
    written: usize,
    /// As last seen; looked up again only when there seems to be no room.
    read: usize,
}

/// The end that reads.
#[derive(Debug)]
pub(crate) struct Reader {
    shared: Arc<Shared>,
    mask: usize,
}

/// Both ends of a new ring with room for at least `count` cells.
pub(crate) fn cells(count: usize) -> (Writer, Reader) {
    let count = count.next_power_of_two();
    let cells = std::iter::repeat_with(Cell::default).take(count).collect();
    let index = || Index(AtomicUsize::new(0));
    let (dropped, closed) = (AtomicU64::new(0), AtomicBool::new(false));
    let shared = Arc::new(Shared { cells, written: index(), read: index(), dropped, closed });
    let mask = count - 1;
    (Writer { shared: Arc::clone(&shared), mask, written: 0, read: 0 }, Reader { shared, mask })
}

impl Writer {
    /// Whether `count` more cells fit. If not, what they were for counts as dropped.
    pub fn has_room(&mut self, count: usize) -> bool {
        if self.written + count - self.read > self.mask + 1 {
            self.read = self.shared.read.0.load(Ordering::Acquire);
            if self.written + count - self.read > self.mask + 1 {
                self.drop_one();
                return false;
            }
        }
        true
    }

    /// Whether the reader wants anything now. If not, what was for it counts as dropped.
    pub fn is_wanted(&self) -> bool {
        if self.shared.closed.load(Ordering::Relaxed) {
            self.drop_one();
            return false;
        }
        true
    }

    /// Writes one of the cells for which there is room.
    pub fn put(&mut self, words: [u64; WORDS]) {
        if let Some(cell) = self.shared.cells.get(self.written & self.mask) {
            for (place, word) in cell.iter().zip(words) {
                place.store(word, Ordering::Relaxed);
            }
        }
        self.written += 1;
    }

    /// Writes bytes into as many of them as they take, filled up with zeros.
    pub fn put_bytes(&mut self, bytes: &[u8]) {
        let (whole, rest) = bytes.as_chunks::<CELL_BYTES>();
        whole.iter().for_each(|chunk| self.put(words_of(chunk)));
        if !rest.is_empty() {
            let mut chunk = [0; CELL_BYTES];
            if let Some(to) = chunk.get_mut(..rest.len()) {
                to.copy_from_slice(rest);
            }
            self.put(words_of(&chunk));
        }
    }

    /// Makes everything that was written visible to the reader; once a batch.
    pub fn flush(&self) {
        self.shared.written.0.store(self.written, Ordering::Release);
    }

    fn drop_one(&self) {
        let dropped = &self.shared.dropped;
        // Nobody else writes it.
        dropped.store(dropped.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

impl Reader {
    /// The cells that may be read: from the first that was not given back, up to the last that is visible.
    pub fn readable(&self) -> std::ops::Range<usize> {
        let written = self.shared.written.0.load(Ordering::Acquire);
        self.shared.read.0.load(Ordering::Relaxed)..written
    }

    /// One of them.
    pub fn cell(&self, at: usize) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        if let Some(cell) = self.shared.cells.get(at & self.mask) {
            for (word, place) in words.iter_mut().zip(cell) {
                *word = place.load(Ordering::Relaxed);
            }
        }
        words
    }

    /// Appends the bytes that were written from the cell `at` on; gives the cell behind them.
    pub fn bytes(&self, at: usize, length: usize, out: &mut Vec<u8>) -> usize {
        let cells = length.div_ceil(CELL_BYTES);
        for number in 0..cells {
            let bytes = self.cell(at + number).map(u64::to_le_bytes);
            let take = (length - number * CELL_BYTES).min(CELL_BYTES);
            out.extend_from_slice(bytes.as_flattened().get(..take).unwrap_or_default());
        }
        at + cells
    }

    /// Gives the cells before `at` back to the writer.
    pub fn release(&self, at: usize) {
        self.shared.read.0.store(at, Ordering::Release);
    }

    /// From now on nothing is wanted, or all of it again.
    pub fn set_closed(&self, closed: bool) {
        self.shared.closed.store(closed, Ordering::Relaxed);
    }

    /// How often there was no room, or nothing was wanted, since the start.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

fn words_of(bytes: &[u8; CELL_BYTES]) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    let (chunks, _) = bytes.as_chunks::<8>();
    words.iter_mut().zip(chunks).for_each(|(word, chunk)| *word = u64::from_le_bytes(*chunk));
    words
}
