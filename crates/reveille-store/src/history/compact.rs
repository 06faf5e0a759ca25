//! Making one file of several: the hours of a day into the day, a day's minutes into hours, days into a month.
//!
//! Points of the same name, kind and place are added, so nothing depends on the order, and sums stay what they were. The
//! work is done in steps between batches, since a day of a hundred thousand names takes seconds.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::Damage;
use super::block::{Block, Columns, add_columns};
use super::pack::Pack;
use super::segment::{Segment, Stored, Unfit};
use super::series::Level;

/// Blocks that are read of a file at once.
const BLOCKS_PER_READ: u64 = 512;

/// What is to be made of what.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub level: Level,
    pub start_s: u64,
    pub inputs: Vec<Arc<Segment>>,
}

type ByName = BTreeMap<Box<[u8]>, Columns>;

/// A job that is being done.
pub(super) struct Compaction {
    pub job: Job,
    sources: Vec<Source>,
    pack: Pack,
}

/// One of the files that are read, in the order of hashes.
struct Source {
    segment: Arc<Segment>,
    next_entry: u64,
    read: VecDeque<(u64, Stored)>,
}

impl Compaction {
    pub fn begin(dir: &Path, seq: u64, job: Job) -> io::Result<Self> {
        let inputs: Vec<u64> = job.inputs.iter().map(|segment| segment.seq).collect();
        let pack = Pack::create(dir, (job.level, job.start_s, seq), &inputs)?;
        let source = |segment: &Arc<Segment>| Source {
            segment: Arc::clone(segment),
            next_entry: 0,
            read: VecDeque::new(),
        };
        let sources = job.inputs.iter().map(source).collect();
        Ok(Self { job, sources, pack })
    }

    /// Merges about `blocks_max` blocks. True when all are done.
    pub fn step(&mut self, blocks_max: usize, damaged: &mut Vec<Damage>) -> io::Result<bool> {
        let mut done = 0;
        while done < blocks_max {
            for source in &mut self.sources {
                source.fill()?;
            }
            let heads = self.sources.iter().filter_map(|source| source.read.front());
            let Some(hash) = heads.map(|(hash, _)| *hash).min() else { return Ok(true) };
            let (names, blocks) = self.take(hash, damaged)?;
            done += blocks;
            for (name, columns) in names {
                self.pack.push(&name, &columns)?;
            }
        }
        Ok(false)
    }

    /// Everything of one hash, which is one name unless two share it, and of how many blocks.
    fn take(&mut self, hash: u64, damaged: &mut Vec<Damage>) -> io::Result<(ByName, usize)> {
        let mut names = ByName::new();
        let (mut blocks, mut lost) = (0, Vec::new());
        let (level, start_s) = (self.job.level, self.job.start_s);
        for source in &mut self.sources {
            loop {
                source.fill()?;
                let Some((_, stored)) = source.read.pop_front_if(|(next, _)| *next == hash) else { break };
                blocks += 1;
                let segment = &source.segment;
                let body = match stored {
                    Stored::Block(body) => body,
                    Stored::Erased => continue,
                    Stored::Lost => {
                        lost.push(Arc::clone(segment));
                        continue;
                    }
                };
                let read = Block::of(&body)
                    .and_then(|block| Some((block.name, block.columns(segment.level.slots())?)));
                let Some((name, columns)) = read else {
                    lost.push(Arc::clone(segment));
                    continue;
                };
                let from = segment.level.resolution().seconds();
                let to = level.resolution().seconds();
                add_columns(names.entry(name.into()).or_default(), columns, |slot| {
                    let at_s = segment.start_s + u64::from(slot) * from;
                    u32::try_from(at_s.saturating_sub(start_s) / to).unwrap_or(u32::MAX)
                });
            }
        }
        for segment in &lost {
            let name = names.keys().next().map(|name| &**name);
            damaged
                .push(segment.damage(name, "a damaged block is left out of the file that replaces this one"));
        }
        if !lost.is_empty() {
            self.pack.push_lost(hash)?;
        }
        Ok((names, blocks))
    }

    /// Makes the new file durable.
    pub fn finish(self) -> Result<Segment, Unfit> {
        self.pack.finish()
    }

    /// Gives the work up; nothing has changed.
    pub fn abandon(self) {
        self.pack.abandon();
    }
}

impl Source {
    fn fill(&mut self) -> io::Result<()> {
        if self.read.is_empty() && self.next_entry < self.segment.entries() {
            self.read = self.segment.blocks(self.next_entry, BLOCKS_PER_READ)?.into();
            self.next_entry += self.read.len() as u64;
        }
        Ok(())
    }
}
