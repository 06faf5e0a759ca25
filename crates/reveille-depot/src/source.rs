//! What a part of a new version is read from.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{SeekFrom, seek};

use crate::names::VersionId;
use crate::pages::{PAGE, PAGE_BYTES, PageSet, pages_of};

/// What is known of some pages before they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// They are zero.
    Zeros,
    /// They must be read.
    Content,
    /// They are what they are in the version that the new one is compared with.
    AsParent,
}

/// Pages of a part. They must not change while the version is put: an upload notices where they do, and fails.
pub trait PageSource: Send + Sync {
    /// Length of the part; the last page may be there in part.
    fn bytes(&self) -> u64;

    /// What is known of the pages from `page` on, and which is the first page of which something else is known, or the
    /// number of pages.
    ///
    /// # Errors
    /// If it cannot be found out.
    fn span(&self, page: u64) -> io::Result<(Span, u64)>;

    /// Reads whole pages from `page` on; behind the part's end are zeros. Only asked for what is [`Span::Content`].
    ///
    /// # Errors
    /// If they cannot be read.
    fn read(&self, page: u64, into: &mut [u8]) -> io::Result<()>;

    /// The version that [`Span::AsParent`] speaks of; `None` if the source never says that.
    fn base(&self) -> Option<&VersionId> {
        None
    }
}

/// A named part of a new version.
pub struct NewPart {
    /// `memory`, `device`, `disk-0`; see [`crate::format::manifest::is_part_name`].
    pub name: String,
    /// Its content.
    pub source: Box<dyn PageSource>,
}

impl NewPart {
    /// A part.
    pub fn new(name: &str, source: impl PageSource + 'static) -> Self {
        Self { name: name.to_owned(), source: Box::new(source) }
    }
}

/// Reads at an offset; what lies behind the file's end is zero.
fn read_padded(file: &File, page: u64, into: &mut [u8]) -> io::Result<()> {
    let mut at = page * PAGE;
    let mut rest = into;
    while !rest.is_empty() {
        match file.read_at(rest, at) {
            Ok(0) => {
                rest.fill(0);
                return Ok(());
            }
            Ok(count) => {
                at += count as u64;
                rest = rest.get_mut(count..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A whole file. Its holes cost nothing.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    bytes: u64,
}

impl FileSource {
    /// The file at `path`, as long as it is now.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { file, bytes })
    }
}

impl PageSource for FileSource {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn span(&self, page: u64) -> io::Result<(Span, u64)> {
        let (from, end) = (page * PAGE, pages_of(self.bytes));
        let data = match seek(&self.file, SeekFrom::Data(from)) {
            Ok(data) => data,
            // No more data.
            Err(rustix::io::Errno::NXIO) => return Ok((Span::Zeros, end)),
            Err(error) => return Err(error.into()),
        };
        // A page that has both is read.
        let first = data / PAGE;
        if first > page {
            return Ok((Span::Zeros, first.min(end)));
        }
        let hole = seek(&self.file, SeekFrom::Hole(data.max(from)))?;
        Ok((Span::Content, pages_of(hole).clamp(page + 1, end)))
    }

    fn read(&self, page: u64, into: &mut [u8]) -> io::Result<()> {
        read_padded(&self.file, page, into)
    }
}

/// Some bytes, such as device state.
#[derive(Debug)]
pub struct BytesSource(pub Bytes);

impl PageSource for BytesSource {
    fn bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn span(&self, _page: u64) -> io::Result<(Span, u64)> {
        Ok((Span::Content, pages_of(self.bytes())))
    }

    fn read(&self, page: u64, into: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(page).unwrap_or(usize::MAX).saturating_mul(PAGE_BYTES);
        let rest = self.0.get(from..).unwrap_or_default();
        let (head, tail) = into.split_at_mut(rest.len().min(into.len()));
        head.copy_from_slice(rest.get(..head.len()).unwrap_or_default());
        tail.fill(0);
        Ok(())
    }
}

/// A version, and what has changed since: a guest that was restored copy-on-write, or a live checkpoint. The changed
/// pages lie at their own places in a file; what else is in the file does not matter, and it may be shorter.
#[derive(Debug)]
pub struct ChangedSource {
    base: VersionId,
    file: File,
    bytes: u64,
    changed: PageSet,
}

impl ChangedSource {
    /// The part of `base` with the same name, `bytes` long now, with the pages `changed` as they are in `file`.
    pub fn new(base: VersionId, file: File, bytes: u64, changed: PageSet) -> Self {
        Self { base, file, bytes, changed }
    }
}

impl PageSource for ChangedSource {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn span(&self, page: u64) -> io::Result<(Span, u64)> {
        let end = pages_of(self.bytes);
        Ok(match self.changed.run_at_or_after(page) {
            None => (Span::AsParent, end),
            Some(run) if run.start > page => (Span::AsParent, run.start.min(end)),
            Some(run) => (Span::Content, run.end.min(end)),
        })
    }

    fn read(&self, page: u64, into: &mut [u8]) -> io::Result<()> {
        read_padded(&self.file, page, into)
    }

    fn base(&self) -> Option<&VersionId> {
        Some(&self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(source: &dyn PageSource) -> Vec<(Span, u64)> {
        let (mut at, mut all) = (0, vec![]);
        while at < pages_of(source.bytes()) {
            let (span, end) = source.span(at).unwrap();
            assert!(end > at && end <= pages_of(source.bytes()), "{at} {end}");
            all.push((span, end));
            at = end;
        }
        all
    }

    #[test]
    fn holes_are_not_read_and_a_last_page_in_part_is_padded() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        temp.as_file().write_at(&[7; 5000], 16 * PAGE).unwrap();
        temp.as_file().set_len(32 * PAGE + 5).unwrap();
        temp.as_file().write_at(&[9; 5], 32 * PAGE).unwrap();
        let source = FileSource::open(temp.path()).unwrap();
        assert_eq!(
            spans(&source),
            [(Span::Zeros, 16), (Span::Content, 18), (Span::Zeros, 32), (Span::Content, 33)]
        );
        let mut page = [1; PAGE_BYTES];
        source.read(32, &mut page).unwrap();
        assert!(page[..5] == [9; 5] && page[5..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_did_not_change_is_as_in_the_base() {
        let base = VersionId { service: "a".parse().unwrap(), number: 1 };
        let changed = [2..4, 9..20].into_iter().collect();
        let source = ChangedSource::new(base, tempfile::tempfile().unwrap(), 10 * PAGE, changed);
        assert_eq!(
            spans(&source),
            [(Span::AsParent, 2), (Span::Content, 4), (Span::AsParent, 9), (Span::Content, 10)]
        );
    }
}
