//! Checksums of what a manifest does not vouch for: the guest's memory, and the layers of its disk.
//!
//! The manifest is written while the guest stands still, and these files are large. So their sums are taken when the guest
//! has been captured, or its version fetched, beside everything else; and they are no part of what makes a version one. A
//! version without them is restored unchecked: one whose daemon was ended too soon, a clone's, one that is too large
//! to be read in a wake.
//!
//! They are compared while the process starts that is to run the version, which takes about as long; so a wake from an
//! armed or paused process waits for none of it. They tell of a disk that does not give back what was written, not of somebody
//! who means harm: who can write to these files can write to their sums.
//!
//! A sum is over the pages that are not zero, each with its place: it is the same whichever of the others are holes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use crc_fast::{CrcAlgorithm, Digest};
use reveille_core::model::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, oneshot};

use super::Slot;
use super::layout::private;
use super::version::{Manifest, StateDir};
use crate::files::{allocated_bytes, next_extent, read_full};

/// The sums, in a state's directory.
const FILE: &str = "sums.json";
/// They, until they are known to be of what is there.
const NEW: &str = "sums.new";
/// Largest file of sums that is read.
const FILE_BYTES_MAX: u64 = 16 << 10;
/// Most that is read to check a version, so that a wake does not wait for it: some 0.2 s of one CPU.
const CHECKED_BYTES_MAX: u64 = 1 << 30;
/// Versions whose sums are taken at a time.
static TAKEN_AT_A_TIME: Semaphore = Semaphore::const_new(1);
/// Read at a time.
const PIECE_BYTES: usize = 256 << 10;
const PAGE_BYTES: usize = 4 << 10;

/// The sums of one version.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sums {
    number: u64,
    at: Timestamp,
    /// CRC-64/NVME by file.
    files: BTreeMap<String, u64>,
}

/// Takes the sums of the version that is there, in the background. That may take long on a busy host: nothing of the instance
/// is held meanwhile.
pub fn record_later(slot: &Arc<Slot>) {
    let (state, slot) = (slot.state.clone(), Arc::downgrade(slot));
    tokio::spawn(async move {
        let taken = async {
            let _one = TAKEN_AT_A_TIME.acquire().await.map_err(io::Error::other)?;
            in_leisure(move || {
                let manifest = state.read().map_err(io::Error::other)?;
                let Some(sums) = take(&state, &manifest)? else { return Ok(None) };
                write(&state, &sums)?;
                Ok(Some(manifest))
            })
            .await
        };
        let taken = taken.await;
        let Some(slot) = slot.upgrade() else { return };
        match taken {
            Ok(Some(manifest)) => {
                let (turn, state) = (slot.take_turn().await, slot.state.clone());
                // Read while a guest runs by now, they would be of something else.
                let named = turn.blocking(move || match state.read() {
                    Ok(now) if now == manifest => fs::rename(state.path().join(NEW), state.path().join(FILE)),
                    Ok(_) | Err(_) => Ok(()),
                });
                if let Err(error) = named.await {
                    tracing::warn!(instance = %slot.instance, %error, "the checksums of its version cannot be kept");
                }
            }
            Ok(None) => {}
            // Most likely it was wanted again at once.
            Err(error) => tracing::debug!(instance = %slot.instance, %error, "no checksums of its version"),
        }
    });
}

/// Runs `work` on a thread of its own that gives way to all others: somebody may be waking.
async fn in_leisure<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (sender, done) = oneshot::channel();
    std::thread::Builder::new().name("sums".to_owned()).spawn(move || {
        give_way();
        // Nobody waits any more at the end of the daemon.
        let _ = sender.send(work());
    })?;
    done.await.unwrap_or_else(|stopped| Err(io::Error::other(stopped)))
}

/// Has the calling thread run only where no other wants to. At the least nice value it would still have its time slice to the
/// end, some 3 ms, before a thread that wakes.
#[expect(unsafe_code, reason = "neither std nor rustix sets a scheduling policy")]
fn give_way() {
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: it reads `priority`, which outlives the call, and changes nothing but the calling thread's policy (0).
    // Should it be refused, the thread runs like any other.
    let _ = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const priority) };
}

/// The first file of the version that is not what was captured. One that cannot be read is not, either.
pub fn damaged(state: &StateDir, manifest: &Manifest) -> Option<String> {
    let told = File::open(state.path().join(FILE)).ok()?;
    let told: Sums = serde_json::from_reader(told.take(FILE_BYTES_MAX)).ok()?;
    if (told.number, told.at) != (manifest.version.number, manifest.version.at) {
        return None;
    }
    told.files.into_iter().find_map(|(name, expected)| match sum(&state.path().join(&name)) {
        Ok(found) if found == expected => None,
        Ok(_) => Some(format!("{name} is damaged: the checksum does not match")),
        Err(error) => Some(format!("{name} is damaged: it cannot be read: {error}")),
    })
}

fn take(state: &StateDir, manifest: &Manifest) -> io::Result<Option<Sums>> {
    let layers = manifest.disk.iter().flat_map(|disk| disk.chain.names());
    let names: Vec<String> = std::iter::once("memory".to_owned()).chain(layers).collect();
    let mut bytes = 0;
    for name in &names {
        bytes += allocated_bytes(&fs::metadata(state.path().join(name))?);
    }
    if bytes > CHECKED_BYTES_MAX {
        return Ok(None);
    }
    let sums = names.into_iter().map(|name| sum(&state.path().join(&name)).map(|sum| (name, sum)));
    let files = sums.collect::<io::Result<_>>()?;
    Ok(Some(Sums { number: manifest.version.number, at: manifest.version.at, files }))
}

fn write(state: &StateDir, sums: &Sums) -> io::Result<()> {
    let mut file = private().write(true).create(true).truncate(true).open(state.path().join(NEW))?;
    file.write_all(&serde_json::to_vec(sums)?)?;
    file.sync_all()
}

/// Removes the sums.
pub fn discard(state: &Path) -> io::Result<()> {
    for file in [FILE, NEW] {
        match fs::remove_file(state.join(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

fn sum(path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(&length.to_le_bytes());
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = 0;
    while let Some(extent) = next_extent(&file, at)? {
        // Whole pages, also where a file system has smaller blocks.
        at = at.max(extent.start - extent.start % PAGE_BYTES as u64);
        file.seek(SeekFrom::Start(at))?;
        while at < extent.end {
            let read = read_full(&mut file, &mut piece)?;
            if read == 0 {
                break;
            }
            for page in piece[..read].chunks(PAGE_BYTES) {
                if page != &ZEROS[..page.len()] {
                    digest.update(&at.to_le_bytes());
                    digest.update(page);
                }
                at += page.len() as u64;
            }
        }
    }
    Ok(digest.finalize())
}

static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_sum_is_of_the_contents_and_not_of_the_holes() {
        let temp = tempfile::tempdir().unwrap();
        let (sparse, dense) = (temp.path().join("sparse"), temp.path().join("dense"));
        let mut all = vec![0; 3 << 20];
        for place in [5, PAGE_BYTES * 7, (1 << 20) + 77, (3 << 20) - 1] {
            all[place] = 9;
        }
        let file = File::create(&sparse).unwrap();
        file.set_len(all.len() as u64).unwrap();
        for (number, page) in all.chunks(PAGE_BYTES).enumerate().filter(|(_, page)| page.contains(&9)) {
            file.write_all_at(page, (number * PAGE_BYTES) as u64).unwrap();
        }
        fs::write(&dense, &all).unwrap();
        let whole = sum(&dense).unwrap();
        assert_eq!(sum(&sparse).unwrap(), whole);

        for (what, change) in [
            ("a bit", (PAGE_BYTES * 7, 8)),
            ("in a hole", (2 << 20, 1)),
            ("the last byte", ((3 << 20) - 1, 0)),
        ] {
            let (place, byte) = change;
            let was = std::mem::replace(&mut all[place], byte);
            fs::write(&dense, &all).unwrap();
            assert_ne!(sum(&dense).unwrap(), whole, "{what}");
            all[place] = was;
        }
        // The same pages elsewhere, and the same with more zeros behind.
        all.swap(5, PAGE_BYTES * 3 + 5);
        fs::write(&dense, &all).unwrap();
        assert_ne!(sum(&dense).unwrap(), whole);
        all.swap(5, PAGE_BYTES * 3 + 5);
        all.resize(4 << 20, 0);
        fs::write(&dense, &all).unwrap();
        assert_ne!(sum(&dense).unwrap(), whole);
    }
}
