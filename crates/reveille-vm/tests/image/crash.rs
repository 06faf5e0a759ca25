//! A builder that is killed in the middle leaves a store that can be used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reveille_vm::image::{BuildRequest, ImageStore, RootSource};

use crate::support::{Bench, left_overs};

const CHILD: &str = "REVEILLE_TEST_BUILDER";
const PATIENCE: Duration = Duration::from_secs(60);

/// Not a test of its own: what the killed process does, again and again, each time with another content.
#[test]
fn builder_that_is_killed() {
    let Some(directory) = std::env::var_os(CHILD) else { return };
    let directory = PathBuf::from(directory);
    let store = ImageStore::open(directory.join("images")).unwrap();
    for turn in 0.. {
        fs::write(directory.join("root/turn"), format!("{} {turn}", std::process::id())).unwrap();
        let kernel =
            reveille_vm::image::KernelSource::File { kernel: directory.join("vmlinuz"), modules: None };
        let root = RootSource::Directory(directory.join("root"));
        let request = BuildRequest { name: Some("web".to_owned()), ..BuildRequest::new(root, kernel) };
        let image = store.build(&request, &mut |_| ()).unwrap();
        // So that removals are cut off too.
        store.set_name("next", &image.digest).unwrap();
        store.remove("web", &[]).unwrap();
        store.remove("next", &[]).unwrap();
    }
}

/// The moments to kill at: something of this kind is there.
const MOMENTS: [fn(&Path) -> bool; 7] = [
    |images| has(images, ".build-", ""),
    |images| has(images, ".build-", "scratch"),
    |images| has(images, ".build-", "image/kernel"),
    |images| has(images, ".build-", "image/initrd"),
    |images| has(images, ".build-", "image/image.json"),
    |images| images.join("names/web").exists(),
    |images| has(images, ".gone-", ""),
];

fn has(images: &Path, beginning: &str, inside: &str) -> bool {
    let Ok(listing) = fs::read_dir(images) else { return false };
    listing.flatten().any(|item| {
        item.file_name().to_string_lossy().starts_with(beginning) && item.path().join(inside).exists()
    })
}

#[test]
fn a_builder_may_be_killed_at_any_moment() {
    let bench = Bench::new();
    bench.write("large", 0o644, &vec![5; 8 << 20]);
    let kept = bench.build_named("kept");
    let mut found = 0;
    for moment in MOMENTS.iter().cycle().take(21) {
        let mut builder = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::builder_that_is_killed", "--nocapture"])
            .env(CHILD, bench.directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !moment(&bench.images()) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        builder.kill().unwrap();
        assert!(!builder.wait().unwrap().success());
        assert!(Instant::now() < deadline, "the builder never got there");
        found += usize::from(!left_overs(&bench.images()).is_empty());

        // Who only looks sees whole images, also before anything is swept.
        for image in bench.store.list().unwrap().images {
            bench.store.verify(&image.digest).unwrap();
        }
        let store = ImageStore::open(bench.images()).unwrap();
        assert_eq!(left_overs(&bench.images()), Vec::<String>::new());
        assert_eq!(store.verify("kept").unwrap(), kept);
        let listing = store.list().unwrap();
        assert!(listing.damaged.is_empty(), "{:?}", listing.damaged);
        for name in ["web", "next"] {
            if let Ok(image) = store.resolve(name) {
                store.verify(&image.digest).unwrap();
                store.remove(name, &[]).unwrap();
            }
        }
        for image in store.list().unwrap().images.iter().filter(|image| image.names.is_empty()) {
            store.remove(&image.digest, &[]).unwrap();
        }
    }
    // Else nothing was cut off and the test has shown nothing.
    assert!(found > 0);
}
