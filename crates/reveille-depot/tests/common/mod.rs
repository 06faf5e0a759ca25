//! What the tests of the depot share.
#![allow(dead_code, missing_docs, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use reveille_depot::config::DepotConfig;
use reveille_depot::format::manifest::{Description, Needs};
use reveille_depot::names::VersionId;
use reveille_depot::source::{BytesSource, FileSource, NewPart};

pub const PAGE: u64 = 4096;

pub fn id(service: &str, number: u64) -> VersionId {
    VersionId { service: service.parse().unwrap(), number }
}

/// Says what a test does not care about.
pub fn about(service: &str, number: u64) -> Description {
    Description {
        id: id(service, number),
        epoch: 1,
        parent: number.checked_sub(1).filter(|parent| *parent > 0),
        image: "0f1e".to_owned(),
        taken_at_ms: 1_798_761_599_000,
        paused_us: 4_200,
        needs: Needs {
            vmm: "qemu".to_owned(),
            vmm_version: "10.0.2".to_owned(),
            machine: "microvm".to_owned(),
            cpu: "aa".to_owned(),
            kernel: "6.1".to_owned(),
            accelerator: "kvm".to_owned(),
            cpus: 1,
            memory_mib: 1,
        },
        wake_ms: [("local".to_owned(), 60)].into(),
        notes: BTreeMap::new(),
    }
}

/// A depot in a directory.
pub fn config(directory: &Path) -> DepotConfig {
    DepotConfig::at(&format!("file://{}", directory.display()))
}

/// Numbers that look random and are the same in each run.
#[derive(Clone)]
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// A page as guests have them: half of it noise, half of it the same byte.
    pub fn page(&mut self) -> Vec<u8> {
        let filler = u8::try_from(self.below(256)).unwrap();
        let mut page = vec![filler | 1; 4096];
        for word in page[..2048].chunks_exact_mut(8) {
            word.copy_from_slice(&self.next().to_le_bytes());
        }
        page
    }
}

/// A sparse file that looks like a guest's memory: runs of pages with holes between.
pub fn pseudo_guest(path: &Path, bytes: u64, share_percent: u64, dice: &mut Dice) {
    let file = File::create(path).unwrap();
    file.set_len(bytes).unwrap();
    let pages = bytes / PAGE;
    let mut at = 0;
    while at < pages {
        let run = 1 + dice.below(64);
        if dice.below(100) < share_percent {
            for page in at..(at + run).min(pages) {
                file.write_all_at(&dice.page(), page * PAGE).unwrap();
            }
        }
        at += run;
    }
}

pub fn memory(path: &Path) -> NewPart {
    NewPart::new("memory", FileSource::open(path).unwrap())
}

pub fn device(content: &[u8]) -> NewPart {
    NewPart::new("device", BytesSource(content.to_vec().into()))
}

pub fn same_content(a: &Path, b: &Path) {
    assert_eq!(fs::metadata(a).unwrap().len(), fs::metadata(b).unwrap().len());
    assert!(fs::read(a).unwrap() == fs::read(b).unwrap(), "{} differs from {}", a.display(), b.display());
}

/// Bytes that a file takes on disk.
pub fn on_disk(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}
