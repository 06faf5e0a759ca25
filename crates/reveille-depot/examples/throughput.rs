//! How fast a version is put and fetched, in a directory: a guest with 256 MiB of memory that is not zero, half of each
//! page noise.
//!
//!     cargo run --release -p reveille-depot --example throughput [DIRECTORY]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::Instant;

use reveille_depot::config::DepotConfig;
use reveille_depot::fetch::FetchOrder;
use reveille_depot::format::manifest::{Description, Needs};
use reveille_depot::names::VersionId;
use reveille_depot::source::{FileSource, NewPart};
use reveille_depot::{Depot, Watch};

const BYTES: u64 = 256 << 20;

fn about(number: u64) -> Description {
    let text = String::new;
    let needs = Needs {
        vmm: text(),
        vmm_version: text(),
        machine: text(),
        cpu: text(),
        kernel: text(),
        accelerator: text(),
        cpus: 1,
        memory_mib: BYTES >> 20,
    };
    Description {
        id: VersionId { service: "bench".parse().expect("a name"), number },
        epoch: 0,
        parent: None,
        image: text(),
        taken_at_ms: 0,
        paused_us: 0,
        needs,
        wake_ms: Default::default(),
        notes: Default::default(),
    }
}

fn rate(what: &str, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    println!("{what:28} {:8.0} MB/s {:8.0} ms", BYTES as f64 / 1e6 / seconds, seconds * 1e3);
}

#[tokio::main]
async fn main() {
    let base = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let temp = tempfile::tempdir_in(base).unwrap();
    let guest = temp.path().join("guest");
    let mut file = BufWriter::new(File::create(&guest).unwrap());
    let mut state = 1u64;
    for page in 0..BYTES / 4096 {
        for _ in 0..256 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            file.write_all(&(state >> 13).to_le_bytes()).unwrap();
        }
        file.write_all(&[u8::try_from(page % 251).unwrap() | 1; 2048]).unwrap();
    }
    file.flush().unwrap();
    let depot = Depot::open(&DepotConfig::at(&format!("file://{}/depot", temp.path().display()))).unwrap();
    let part = || vec![NewPart::new("memory", FileSource::open(&guest).unwrap())];
    let (first, watch) = (about(1), Watch::default());
    let begun = Instant::now();
    let put = depot.put_version(&first, part(), None, &watch).await.unwrap();
    rate("first version put", begun);
    println!("  stored {} MB of {} MB", put.own_bytes / 1_000_000, BYTES / 1_000_000);
    let begun = Instant::now();
    depot.put_version(&about(2), part(), Some(&first.id), &watch).await.unwrap();
    rate("second, nothing changed", begun);
    let begun = Instant::now();
    depot.fetch(&first.id, &temp.path().join("to"), FetchOrder::AsStored, &watch).await.unwrap();
    rate("fetched, checked, synced", begun);
}
