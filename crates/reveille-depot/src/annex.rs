//! Files beside the versions: raw records. The depot neither reads nor collects them, and they are not sealed, so that
//! others can read them.

use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use bytes::Bytes;

use crate::config::{self, DepotConfig, OpenError};
use crate::names::RECORDS;
use crate::objects::{Listed, ObjectError, Objects, Put};

/// What is being written is no older: a put takes two minutes at most.
const LEFTOVER_AGE: Duration = Duration::from_secs(3_600);
/// Below `records/` lie kinds, and in them dates.
const LEFTOVER_DEPTH: u32 = 2;

/// The files below `records/`. All paths are relative to that.
#[derive(Debug, Clone)]
pub struct Annex(Objects);

impl Annex {
    /// That of the depot of `config`. The store is not asked yet.
    ///
    /// # Errors
    /// [`OpenError`] if the configuration cannot be used.
    pub fn open(config: &DepotConfig) -> Result<Self, OpenError> {
        config::check_ranges(config)?;
        Ok(Self(config::connect(config)?))
    }

    /// Puts a file as a whole, or not at all.
    ///
    /// # Errors
    /// There is one already; the store refuses or does not answer.
    pub async fn put_new(&self, path: &str, bytes: Bytes) -> Result<(), ObjectError> {
        self.0.put(&below(path), bytes, Put::Create).await
    }

    /// The names of the directories in `path`.
    ///
    /// # Errors
    /// The store refuses or does not answer.
    pub async fn directories(&self, path: &str) -> Result<Vec<String>, ObjectError> {
        self.0.directories(&below(path)).await
    }

    /// All files below `path`.
    ///
    /// # Errors
    /// As above; there are too many.
    pub async fn list(&self, path: &str) -> Result<Vec<Listed>, ObjectError> {
        let listed = self.0.list(&below(path)).await?.into_iter();
        let own = |listed: Listed| {
            let path = listed.path.strip_prefix(RECORDS)?.strip_prefix('/')?.to_owned();
            Some(Listed { path, ..listed })
        };
        Ok(listed.filter_map(own).collect())
    }

    /// Removes what puts that were killed have left in a depot in a directory: beside its name a file that is being written
    /// has a `#` and a number, and readers that take whatever is there stumble over it. Gives how many there were.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub async fn tidy(&self) -> Result<u64, ObjectError> {
        let Some(directory) = self.0.directory() else { return Ok(0) };
        let root = directory.join(RECORDS);
        let tidying = tokio::task::spawn_blocking(move || tidied(&root, LEFTOVER_DEPTH));
        let failed = |why: String| ObjectError::Store { doing: "tidy", path: RECORDS.to_owned(), why };
        tidying.await.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }

    /// Deletes a file; nothing to delete is no error.
    ///
    /// # Errors
    /// The store refuses or does not answer.
    pub async fn delete(&self, path: &str) -> Result<(), ObjectError> {
        self.0.delete(&below(path)).await
    }
}

fn tidied(directory: &Path, depth: u32) -> io::Result<u64> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry?;
        let (kind, name) = (entry.file_type()?, entry.file_name());
        if kind.is_dir() && depth > 0 {
            removed += tidied(&entry.path(), depth - 1)?;
        } else if kind.is_file() && name.to_str().is_some_and(is_leftover) {
            let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
            if age > LEFTOVER_AGE {
                fs::remove_file(entry.path())?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

/// Whether it is named as a file that is being written.
fn is_leftover(name: &str) -> bool {
    let number = name.split_once(".parquet#").map(|(_, number)| number);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn below(path: &str) -> String {
    format!("{RECORDS}/{path}")
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[tokio::test]
    async fn leftovers_of_a_kill_go_and_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let annex = Annex::open(&DepotConfig::at(&format!("file://{}", temp.path().display()))).unwrap();
        assert_eq!(annex.tidy().await.unwrap(), 0);
        let day = temp.path().join("records/kind=query/date=2026-11-23");
        fs::create_dir_all(&day).unwrap();
        let long_ago = SystemTime::now() - 2 * LEFTOVER_AGE;
        for (name, at) in [
            ("a.parquet#1", long_ago),
            ("a.parquet", long_ago),
            ("b.parquet#x", long_ago),
            ("b.parquet#2", SystemTime::now()),
        ] {
            let file = fs::File::create(day.join(name)).unwrap();
            file.set_modified(at).unwrap();
        }
        assert_eq!(annex.tidy().await.unwrap(), 1);
        assert!(!day.join("a.parquet#1").exists());
        assert_eq!(fs::read_dir(&day).unwrap().count(), 3);
    }
}
