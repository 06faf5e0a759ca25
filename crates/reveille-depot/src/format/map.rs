//! Page maps: which pages of a part lie where. What is in no run is zero.
//!
//! As bytes: the number of chunks; for each its name, its pages, its bytes and its key; then for each part the number of
//! runs and for each run four numbers: how far it begins behind the end of the one before, how many pages it has, which
//! chunk, which place in it. Runs can neither overlap nor go back, since the first number is not negative.

use super::Fault;
use super::chunk::{CHUNK_BYTES_MAX, CHUNK_PAGES_MAX};
use super::varint::{Reader, put};
use crate::names::ChunkName;
use crate::pages::PageSet;

/// Most chunks of a version: 256 GiB, were they full.
pub const CHUNKS_MAX: usize = 1 << 20;
/// Most runs of a version.
pub const RUNS_MAX: usize = 1 << 22;
/// Most pages of a part: 1 TiB.
pub const PART_PAGES_MAX: u64 = 1 << 28;
/// Most runs of a list of touched pages.
pub const TOUCHED_RUNS_MAX: usize = 1 << 20;
/// Most bytes of such a list: two numbers of up to 4 and 5 bytes each.
pub const TOUCHED_BYTES_MAX: u64 = 9 * (TOUCHED_RUNS_MAX as u64) + 10;

/// A chunk that a version needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRef {
    /// Its name.
    pub name: ChunkName,
    /// How many pages it has, used or not.
    pub pages: u16,
    /// Bytes of the object.
    pub stored_bytes: u32,
    /// Which of the manifest's keys seals it: 1 is the first, 0 none.
    pub key: u16,
}

/// Pages that follow each other in a part and in a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first page in the part.
    pub page: u64,
    /// How many.
    pub count: u16,
    /// The first page's place in the chunk.
    pub place: u16,
    /// Which chunk of the table.
    pub chunk: u32,
}

impl Run {
    /// The page after the last.
    pub fn end(&self) -> u64 {
        self.page + u64::from(self.count)
    }
}

/// The runs of one part, ascending, none empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PageMap(Vec<Run>);

impl PageMap {
    /// Its runs.
    pub fn runs(&self) -> &[Run] {
        &self.0
    }

    /// How many pages it has; the others are zero.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|run| u64::from(run.count)).sum()
    }

    /// The run that has `page`, or the first one after it.
    pub fn run_at_or_after(&self, page: u64) -> Option<&Run> {
        self.0.get(self.0.partition_point(|run| run.end() <= page))
    }

    /// Where `page` lies: which chunk, which place; `None` if it is zero.
    pub fn find(&self, page: u64) -> Option<(u32, u16)> {
        let run = self.run_at_or_after(page).filter(|run| run.page <= page)?;
        let into = u16::try_from(page - run.page).ok()?;
        Some((run.chunk, run.place.checked_add(into)?))
    }

    /// Adds a page behind all that are there.
    pub fn push(&mut self, page: u64, chunk: u32, place: u16) {
        if let Some(last) = self.0.last_mut()
            && last.end() == page
            && last.chunk == chunk
            && last.place + last.count == place
        {
            last.count += 1;
            return;
        }
        self.0.push(Run { page, count: 1, place, chunk });
    }
}

/// Tables and maps as bytes.
pub(crate) fn encode<'a>(chunks: &[ChunkRef], maps: impl IntoIterator<Item = &'a PageMap>) -> Vec<u8> {
    let mut to = Vec::new();
    put(&mut to, chunks.len() as u64);
    for chunk in chunks {
        to.extend_from_slice(&chunk.name.0);
        for number in [u64::from(chunk.pages), u64::from(chunk.stored_bytes), u64::from(chunk.key)] {
            put(&mut to, number);
        }
    }
    for map in maps {
        put(&mut to, map.0.len() as u64);
        let mut end = 0;
        for run in &map.0 {
            put(&mut to, run.page - end);
            put(&mut to, u64::from(run.count));
            put(&mut to, u64::from(run.chunk));
            put(&mut to, u64::from(run.place));
            end = run.end();
        }
    }
    to
}

fn small<T: TryFrom<u64>>(reader: &mut Reader<'_>, max: u64, what: &str) -> Result<T, Fault> {
    let number = reader.number_up_to(max, what)?;
    T::try_from(number).map_err(|_| reader.fault(format!("{what} is {number}, too large")))
}

fn decode_chunk(reader: &mut Reader<'_>, keys: u64) -> Result<ChunkRef, Fault> {
    let name = ChunkName(reader.array()?);
    let pages = small(reader, CHUNK_PAGES_MAX as u64, "the number of a chunk's pages")?;
    if pages == 0 {
        return Err(reader.fault("a chunk without pages"));
    }
    let stored_bytes = small(reader, CHUNK_BYTES_MAX as u64, "the length of a chunk")?;
    let key = small(reader, keys, "the number of a chunk's key")?;
    Ok(ChunkRef { name, pages, stored_bytes, key })
}

fn decode_run(
    reader: &mut Reader<'_>,
    end: u64,
    pages: u64,
    chunks: &[ChunkRef],
    used: &mut [bool],
) -> Result<Run, Fault> {
    let page = end + reader.number_up_to(pages - end, "the gap before a run of pages")?;
    let count: u16 =
        small(reader, (pages - page).min(CHUNK_PAGES_MAX as u64), "the length of a run of pages")?;
    if count == 0 {
        return Err(reader.fault("a run without pages"));
    }
    let chunk: u32 = small(reader, u64::from(u32::MAX), "the number of a run's chunk")?;
    let index = usize::try_from(chunk).unwrap_or(usize::MAX);
    let (Some(of), Some(used)) = (chunks.get(index), used.get_mut(index)) else {
        return Err(reader.fault(format!("a run is in chunk {chunk} of {}", chunks.len())));
    };
    let place_max = of.pages.checked_sub(count);
    let place_max = place_max
        .ok_or_else(|| reader.fault(format!("a run of {count} pages in a chunk of {}", of.pages)))?;
    let place = small(reader, u64::from(place_max), "the place of a run in its chunk")?;
    *used = true;
    Ok(Run { page, count, place, chunk })
}

/// Reads the table of chunks and one map for each of `parts`, whose numbers of pages these are. `at` is where the bytes
/// lie, for messages; `keys` how many keys the manifest has.
pub(crate) fn decode(
    bytes: &[u8],
    at: usize,
    keys: usize,
    parts: &[u64],
) -> Result<(Vec<ChunkRef>, Vec<PageMap>), Fault> {
    let mut reader = Reader::new(bytes, at);
    let count = reader.number_up_to(CHUNKS_MAX as u64, "the number of chunks")?;
    let mut chunks = Vec::new();
    for _ in 0..count {
        chunks.push(decode_chunk(&mut reader, keys as u64)?);
    }
    let mut used = vec![false; chunks.len()];
    let mut runs_left = RUNS_MAX as u64;
    let mut maps = Vec::new();
    for &pages in parts {
        let count = reader.number_up_to(runs_left, "the number of runs of pages")?;
        runs_left -= count;
        let mut map = PageMap::default();
        let mut end = 0;
        for _ in 0..count {
            let run = decode_run(&mut reader, end, pages, &chunks, &mut used)?;
            end = run.end();
            map.0.push(run);
        }
        maps.push(map);
    }
    reader.end()?;
    if let Some(unused) = used.iter().position(|used| !used) {
        return Err(reader.fault(format!("chunk {unused} is in the table and used by no page")));
    }
    Ok((chunks, maps))
}

/// A set of pages as bytes.
///
/// # Errors
/// If it has more than [`TOUCHED_RUNS_MAX`] runs or lies beyond [`PART_PAGES_MAX`].
pub fn encode_set(set: &PageSet) -> Result<Vec<u8>, Fault> {
    let runs = set.runs();
    if runs.len() > TOUCHED_RUNS_MAX {
        return Err(Fault::new(0, format!("{} runs of pages, at most {TOUCHED_RUNS_MAX}", runs.len())));
    }
    if let Some(last) = runs.last().filter(|last| last.end > PART_PAGES_MAX) {
        return Err(Fault::new(0, format!("page {}, at most {PART_PAGES_MAX} are possible", last.end)));
    }
    let mut to = Vec::new();
    put(&mut to, runs.len() as u64);
    let mut end = 0;
    for run in runs {
        put(&mut to, run.start - end);
        put(&mut to, run.end - run.start);
        end = run.end;
    }
    Ok(to)
}

/// Reads a set of pages.
///
/// # Errors
/// [`Fault`] if the bytes are not one.
pub fn decode_set(bytes: &[u8]) -> Result<PageSet, Fault> {
    let mut reader = Reader::new(bytes, 0);
    let count = reader.number_up_to(TOUCHED_RUNS_MAX as u64, "the number of runs of pages")?;
    let mut runs = Vec::new();
    let mut end = 0;
    for _ in 0..count {
        let start = end + reader.number_up_to(PART_PAGES_MAX - end, "the gap before a run of pages")?;
        end = start + reader.number_up_to(PART_PAGES_MAX - start, "the length of a run of pages")?;
        runs.push(start..end);
    }
    reader.end()?;
    Ok(runs.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(pages: u16) -> ChunkRef {
        ChunkRef { name: ChunkName([1; 32]), pages, stored_bytes: 77, key: 0 }
    }

    fn map(runs: &[(u64, u16, u32, u16)]) -> PageMap {
        PageMap(runs.iter().map(|&(page, count, chunk, place)| Run { page, count, place, chunk }).collect())
    }

    #[test]
    fn maps_come_back_and_find_pages() {
        let mut map = PageMap::default();
        for (page, chunk, place) in [(3, 0, 5), (4, 0, 6), (5, 1, 0), (900, 1, 1)] {
            map.push(page, chunk, place);
        }
        assert_eq!(map.runs().len(), 3);
        assert_eq!(map.find(4), Some((0, 6)));
        assert_eq!(map.find(6), None);
        let chunks = [chunk(7), chunk(256)];
        let empty = PageMap::default();
        let bytes = encode(&chunks, [&map, &empty]);
        let (back, maps) = decode(&bytes, 0, 0, &[901, 5]).unwrap();
        assert_eq!((back.as_slice(), maps.as_slice()), (&chunks[..], &[map, empty][..]));
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length], 0, 0, &[901, 5]).is_err());
        }
    }

    #[test]
    fn maps_that_point_outside_are_refused_and_say_where() {
        let refused = |chunks: &[ChunkRef], map: PageMap, pages| {
            decode(&encode(chunks, [&map]), 0, 0, &[pages]).unwrap_err().to_string()
        };
        let one = [chunk(4)];
        assert!(refused(&one, map(&[(8, 3, 0, 0)]), 10).contains("length of a run"));
        assert!(refused(&one, map(&[(11, 1, 0, 0)]), 10).contains("gap before a run"));
        assert!(refused(&one, map(&[(0, 1, 1, 0)]), 10).contains("chunk 1 of 1"));
        assert!(refused(&one, map(&[(0, 2, 0, 3)]), 10).contains("place of a run"));
        assert!(refused(&one, map(&[(0, 5, 0, 0)]), 10).contains("in a chunk of 4"));
        assert!(refused(&one, map(&[(0, 0, 0, 0)]), 10).contains("without pages"));
        assert!(refused(&one, map(&[]), 10).contains("used by no page"));
        assert!(refused(&[chunk(300)], map(&[(0, 1, 0, 0)]), 10).contains("number of a chunk's pages"));
        let keyed = [ChunkRef { key: 1, ..chunk(4) }];
        assert!(refused(&keyed, map(&[(0, 1, 0, 0)]), 10).contains("chunk's key"));
    }

    #[test]
    fn sets_come_back() {
        let set: PageSet = [1..4, 900..901, (1 << 28) - 1..1 << 28].into_iter().collect();
        assert_eq!(decode_set(&encode_set(&set).unwrap()).unwrap(), set);
        assert!(encode_set(&std::iter::once(1 << 28).collect()).is_err());
        assert!(decode_set(&[255; 20]).is_err());
    }
}
