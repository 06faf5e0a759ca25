//! Writing a file of blocks: under another name, then synchronised, then renamed, so that it is there whole or not.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::block::{self, Columns};
use super::frame::{Mark, checksum, put_frame};
use super::segment::{FILE_MODE, MAGIC, Place, Segment, Unfit, file_name, hash_of, header};
use super::series::Level;

/// How the name of an unfinished file ends; what is left of one is removed at the next start.
pub(super) const UNFINISHED: &str = ".new";

/// A file that is being written.
pub(super) struct Pack {
    dir: PathBuf,
    id: (Level, u64, u64),
    out: BufWriter<File>,
    at: u64,
    index: Vec<u8>,
    entries: u64,
    frame: Vec<u8>,
}

impl Pack {
    /// Begins the file with number `seq` that replaces the files with the numbers `inputs`.
    pub fn create(dir: &Path, id: (Level, u64, u64), inputs: &[u64]) -> io::Result<Self> {
        let path = dir.join(file_name(id.0, id.1, id.2) + UNFINISHED);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&path)?;
        let mut out = BufWriter::with_capacity(256 << 10, file);
        let header = header(inputs);
        out.write_all(&header)?;
        Ok(Self {
            dir: dir.to_owned(),
            id,
            out,
            at: header.len() as u64,
            index: Vec::new(),
            entries: 0,
            frame: Vec::new(),
        })
    }

    /// Appends a name's points. Names come in the order of their hashes.
    pub fn push(&mut self, name: &[u8], columns: &Columns) -> io::Result<()> {
        self.frame.clear();
        block::encode(name, columns, &mut self.frame);
        self.put_frame(hash_of(name))
    }

    /// Notes that a name with this hash had points that were damaged.
    pub fn push_lost(&mut self, hash: u64) -> io::Result<()> {
        self.frame.clear();
        put_frame(Mark::Lost, &mut self.frame, |_| ());
        self.put_frame(hash)
    }

    fn put_frame(&mut self, hash: u64) -> io::Result<()> {
        self.out.write_all(&self.frame)?;
        let place = Place { at: self.at, len: u32::try_from(self.frame.len()).unwrap_or(u32::MAX) };
        self.index.extend_from_slice(&hash.to_le_bytes());
        self.index.extend_from_slice(&place.packed().to_le_bytes());
        self.entries += 1;
        self.at += self.frame.len() as u64;
        Ok(())
    }

    /// Makes the file durable and gives it its name.
    pub fn finish(mut self) -> Result<Segment, Unfit> {
        let mut footer = Vec::new();
        footer.extend_from_slice(&self.at.to_le_bytes());
        footer.extend_from_slice(&self.entries.to_le_bytes());
        footer.extend_from_slice(&checksum(&self.index).to_le_bytes());
        footer.extend_from_slice(&checksum(&footer).to_le_bytes());
        footer.extend_from_slice(&MAGIC);
        self.out.write_all(&self.index)?;
        self.out.write_all(&footer)?;
        self.out.flush()?;
        self.out.get_ref().sync_all()?;
        let path = self.dir.join(file_name(self.id.0, self.id.1, self.id.2));
        std::fs::rename(self.unfinished(), &path)?;
        File::open(&self.dir)?.sync_all()?;
        // Nothing of it can be damaged yet; should it be, reading it says so.
        Segment::open(&path, self.id, &mut Vec::new())
    }

    /// Gives the file up.
    pub fn abandon(self) {
        // What stays is removed at the next start.
        let _ = std::fs::remove_file(self.unfinished());
    }

    fn unfinished(&self) -> PathBuf {
        self.dir.join(file_name(self.id.0, self.id.1, self.id.2) + UNFINISHED)
    }
}
