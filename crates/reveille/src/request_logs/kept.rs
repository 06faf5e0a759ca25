//! Profiles of users and groups on the disk: what they were at some time, and the requests since then.
//!
//! ```text
//!   requests ─► profiles (memory)
//!           └─► journal ── full ──► profiles (file, replaced as a whole), a new journal
//! ```
//!
//! Both files have a number. The profiles' file is written with the next one before the journal of that number is begun, so that a
//! journal with a lower number is in the profiles already, at whatever point a crash comes. A request is in the journal, and
//! survives the end of the process, before it is said to be taken; a power cut loses up to [`SYNC_EVERY`].

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use reveille_core::forecast::profile::{Profiles, Request, pack, unpack};

/// Size of a journal from which on it is taken over into the profiles, in bytes: some 200,000 requests.
pub const JOURNAL_BYTES_MAX: u64 = 16 << 20;
/// How long what was taken may be in the kernel's memory alone.
const SYNC_EVERY: Duration = Duration::from_secs(10);
/// How long a disk that takes nothing is left alone.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// Length of what both files begin with.
const HEAD_BYTES: usize = 16;

/// The profiles, in memory and on the disk.
#[derive(Debug)]
pub(super) struct Kept {
    dir: PathBuf,
    profiles: Profiles,
    number: u64,
    /// `None` while the disk takes nothing.
    journal: Option<File>,
    journal_bytes: u64,
    journal_bytes_max: u64,
    synced: Instant,
    /// When it is tried again to write.
    retry: Option<Instant>,
}

impl Kept {
    /// Reads what is in the directory, which is made if it is not there. What is damaged is told and left out.
    ///
    /// # Errors
    /// If the directory cannot be used.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        Self::open_with(dir, JOURNAL_BYTES_MAX)
    }

    fn open_with(dir: &Path, journal_bytes_max: u64) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let (number, mut profiles) = stored(&dir.join("profiles"))?;
        let number = replay(&dir.join("journal"), number, &mut profiles)?;
        let mut kept = Self {
            dir: dir.to_owned(),
            profiles,
            number,
            journal: None,
            journal_bytes: 0,
            journal_bytes_max,
            synced: Instant::now(),
            retry: None,
        };
        // From here on the journal has only whole frames.
        kept.store();
        Ok(kept)
    }

    pub fn profiles(&self) -> &Profiles {
        &self.profiles
    }

    /// Takes requests in.
    pub fn take(&mut self, requests: &[Request]) {
        requests.iter().for_each(|request| self.profiles.take(request));
        if self.retry.is_some_and(|retry| Instant::now() < retry) {
            return;
        }
        let frame = framed(&pack(requests));
        self.journal_bytes += frame.len() as u64;
        let written = match &mut self.journal {
            Some(journal) if self.journal_bytes <= self.journal_bytes_max => journal.write_all(&frame),
            // What was just taken in is in the profiles.
            Some(_) | None => return self.store(),
        };
        let synced = written.and_then(|()| self.sync());
        if let Err(error) = synced {
            self.failed(&error);
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.synced.elapsed() >= SYNC_EVERY {
            self.journal.as_ref().map_or(Ok(()), File::sync_data)?;
            self.synced = Instant::now();
        }
        Ok(())
    }

    /// Stores the profiles and begins a new journal.
    fn store(&mut self) {
        let number = self.number + 1;
        let written = write_file(&self.dir.join("profiles"), &numbered(number, &self.profiles.to_bytes()))
            .map(|_| self.number = number)
            .and_then(|()| write_file(&self.dir.join("journal"), &numbered(number, &[])));
        match written {
            Ok(journal) => {
                (self.journal, self.journal_bytes, self.retry) = (Some(journal), 0, None);
                self.synced = Instant::now();
            }
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &io::Error) {
        tracing::warn!(
            dir = %self.dir.display(), %error,
            "profiles of users and groups are not saved; it is tried again in a minute"
        );
        self.journal = None;
        self.retry = Some(Instant::now() + RETRY_AFTER);
    }
}

/// A file in the place of the one before, open at its end: it is the old or the new one at any time.
fn write_file(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(&beside, path)?;
    Ok(file)
}

/// The number, twice, so that a wrong bit in it is seen.
fn numbered(number: u64, bytes: &[u8]) -> Vec<u8> {
    [&number.to_le_bytes()[..], &(!number).to_le_bytes(), bytes].concat()
}

/// The number, and what is behind it; `None` if that is none.
fn of_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    let (again, rest) = rest.split_first_chunk()?;
    let number = u64::from_le_bytes(*number);
    (number == !u64::from_le_bytes(*again)).then_some((number, rest))
}

/// Length, and what it is of.
fn framed(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    [&length.to_le_bytes()[..], bytes].concat()
}

/// What is there, or nothing.
fn read(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The profiles that were stored, and their number.
fn stored(path: &Path) -> anyhow::Result<(u64, Profiles)> {
    let Some(bytes) = read(path)? else { return Ok((0, Profiles::default())) };
    let (number, bytes) = of_number(&bytes).unwrap_or_default();
    match Profiles::from_bytes(bytes) {
        Ok(profiles) => Ok((number, profiles)),
        Err(error) => {
            let aside = path.with_extension("damaged");
            fs::rename(path, &aside).with_context(|| format!("cannot rename {}", path.display()))?;
            let lost =
                "profiles of users and groups cannot be read and are learned anew; the file was set aside";
            tracing::warn!(path = %aside.display(), %error, "{lost}");
            Ok((number, Profiles::default()))
        }
    }
}

/// Takes in the requests of a journal that are not in the profiles with that number, and gives the number to go on from.
fn replay(path: &Path, number: u64, profiles: &mut Profiles) -> anyhow::Result<u64> {
    let Some(bytes) = read(path)? else { return Ok(number) };
    let Some((own, bytes)) = of_number(&bytes) else {
        tracing::warn!(path = %path.display(), "its head is damaged: the requests in it are lost to the profiles");
        return Ok(number);
    };
    if own < number {
        return Ok(number);
    }
    let mut rest = bytes;
    while let Some((length, after)) = rest.split_first_chunk() {
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let requests = after.get(..length).map(unpack);
        let Some(Ok(requests)) = requests else {
            let at = HEAD_BYTES + bytes.len() - rest.len();
            let lost = "the requests from there on are lost to the profiles";
            tracing::warn!(path = %path.display(), at, "a frame is damaged or not whole: {lost}");
            return Ok(own);
        };
        requests.iter().for_each(|request| profiles.take(request));
        rest = after.get(length..).unwrap_or_default();
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use reveille_core::model::Timestamp;

    use super::*;

    fn requests(user: &str, count: u64) -> Vec<Request> {
        let request = |number: u64| Request {
            at: Timestamp::from_ms(1_795_000_000_000 + number * 1_000),
            user: user.into(),
            group: Some("staff".into()),
            service: "a.vm.test".into(),
            runtime: None,
            seconds: number as f64,
            cpu_seconds: None,
            memory_bytes: None,
            io_bytes: None,
            tags: Box::default(),
        };
        (0..count).map(request).collect()
    }

    /// Requests that all profiles together know of.
    fn known(kept: &Kept) -> u64 {
        let own = kept.profiles().users().map(|(_, profile)| profile.behaviour().requests);
        own.sum::<u64>() + kept.profiles().other_users().behaviour().requests
    }

    #[test]
    fn what_was_taken_is_there_after_a_kill_and_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut taken = 0;
        // Small journals, so that there are many.
        for life in 0..6 {
            let mut kept = Kept::open_with(dir.path(), 2_000).unwrap();
            assert_eq!(known(&kept), taken, "in life {life}");
            for _ in 0..=life * 3 {
                kept.take(&requests("ann", 7));
                taken += 7;
            }
            // Nothing is written at an end: each is as a kill.
            drop(kept);
        }
        let kept = Kept::open_with(dir.path(), 2_000).unwrap();
        assert_eq!(known(&kept), taken);
        assert!(fs::metadata(dir.path().join("journal")).unwrap().len() <= 2_000 + HEAD_BYTES as u64);
    }

    #[test]
    fn a_kill_between_profiles_and_journal_counts_nothing_twice() {
        let dir = tempfile::tempdir().unwrap();
        let mut kept = Kept::open(dir.path()).unwrap();
        kept.take(&requests("ann", 20));
        let journal = fs::read(dir.path().join("journal")).unwrap();
        kept.store();
        drop(kept);
        // As if the new journal had not been begun.
        fs::write(dir.path().join("journal"), &journal).unwrap();
        assert_eq!(known(&Kept::open(dir.path()).unwrap()), 20);
    }

    #[test]
    fn damage_costs_what_is_behind_it_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let mut kept = Kept::open(dir.path()).unwrap();
        for _ in 0..3 {
            kept.take(&requests("ann", 10));
        }
        drop(kept);
        let path = dir.path().join("journal");
        let mut journal = fs::read(&path).unwrap();
        let last = journal.len() - 3;
        journal[last] ^= 1;
        fs::write(&path, &journal).unwrap();
        assert_eq!(known(&Kept::open(dir.path()).unwrap()), 20);
        // Profiles that cannot be read leave those of the journal.
        let mut kept = Kept::open(dir.path()).unwrap();
        kept.take(&requests("bob", 9));
        drop(kept);
        fs::write(dir.path().join("profiles"), b"nothing").unwrap();
        assert_eq!(known(&Kept::open(dir.path()).unwrap()), 9);
        // A number that cannot be is damage like any other.
        let mut kept = Kept::open(dir.path()).unwrap();
        kept.take(&requests("bob", 3));
        drop(kept);
        let mut profiles = fs::read(dir.path().join("profiles")).unwrap();
        profiles[6] ^= 0x10;
        fs::write(dir.path().join("profiles"), &profiles).unwrap();
        assert_eq!(known(&Kept::open(dir.path()).unwrap()), 3, "the journal's alone");
        // A later version may be able to read them.
        assert_eq!(fs::read(dir.path().join("profiles.damaged")).unwrap(), profiles);
    }
}
