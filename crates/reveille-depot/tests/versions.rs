//! Versions in a directory: what is put comes back, and only what is new is stored.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use common::{Dice, PAGE, about, config, device, id, memory, on_disk, pseudo_guest, same_content};
use reveille_depot::fetch::FetchOrder;
use reveille_depot::{Depot, Watch};

#[tokio::test]
async fn a_version_comes_back_as_it_was_put() {
    let temp = tempfile::tempdir().unwrap();
    let depot = Depot::open(&config(&temp.path().join("depot"))).unwrap();
    let guest = temp.path().join("guest");
    pseudo_guest(&guest, 8 << 20, 30, &mut Dice(1));
    let watch = Watch::default();
    let parts = vec![memory(&guest), device(b"registers")];
    let put = depot.put_version(&about("a.test", 1), parts, None, &watch).await.unwrap();
    assert!(!put.was_there && put.pages > 100 && put.pages == put.pages_stored, "{put:?}");

    let to = temp.path().join("fetched");
    let manifest = depot.fetch(&id("a.test", 1), &to, FetchOrder::AsStored, &watch).await.unwrap();
    assert_eq!(manifest.about, about("a.test", 1));
    same_content(&to.join("memory"), &guest);
    assert_eq!(fs::read(to.join("device")).unwrap(), b"registers");
    assert!(on_disk(&to.join("memory")) < 6 << 20, "zeros stay holes: {}", on_disk(&to.join("memory")));
    assert!(!temp.path().join("fetched.partial").exists());

    let parts = vec![memory(&guest), device(b"registers")];
    let again = depot.put_version(&about("a.test", 1), parts, None, &watch).await.unwrap();
    assert!(again.was_there);
    let other = depot.put_version(&about("a.test", 1), vec![device(b"other")], None, &watch).await;
    assert!(other.unwrap_err().to_string().contains("must be higher"));
}

#[tokio::test]
async fn a_second_version_stores_what_changed() {
    let temp = tempfile::tempdir().unwrap();
    let depot = Depot::open(&config(&temp.path().join("depot"))).unwrap();
    let (guest, to) = (temp.path().join("guest"), temp.path().join("fetched"));
    let mut dice = Dice(2);
    pseudo_guest(&guest, 256 << 20, 25, &mut dice);
    let watch = Watch::default();
    let first = depot.put_version(&about("a.test", 1), vec![memory(&guest)], None, &watch).await.unwrap();
    let file = File::options().write(true).open(&guest).unwrap();
    for _ in 0..400 {
        file.write_all_at(&dice.page(), dice.below(65_536) * PAGE).unwrap();
    }
    let parent = id("a.test", 1);
    let parts = vec![memory(&guest)];
    let second = depot.put_version(&about("a.test", 2), parts, Some(&parent), &watch).await.unwrap();
    println!("first {first:?}\nsecond {second:?}");
    assert!(second.own_bytes * 100 <= first.own_bytes * 3, "{} of {}", second.own_bytes, first.own_bytes);
    depot.fetch(&id("a.test", 2), &to, FetchOrder::AsStored, &watch).await.unwrap();
    same_content(&to.join("memory"), &guest);
}

#[tokio::test]
async fn a_roll_back_makes_the_old_version_the_newest_and_costs_one_object() {
    let temp = tempfile::tempdir().unwrap();
    let depot = Depot::open(&config(&temp.path().join("depot"))).unwrap();
    let (guest, to) = (temp.path().join("guest"), temp.path().join("fetched"));
    let watch = Watch::default();
    pseudo_guest(&guest, 4 << 20, 30, &mut Dice(3));
    let parts = vec![memory(&guest), device(b"first")];
    depot.put_version(&about("a.test", 1), parts, None, &watch).await.unwrap();
    depot.put_version(&about("a.test", 2), vec![device(b"second")], None, &watch).await.unwrap();

    let early = depot.republish(&id("a.test", 1), 2, 1, &watch).await.unwrap_err();
    assert!(early.to_string().contains("must be higher"), "{early}");
    let put = depot.republish(&id("a.test", 1), 3, 1, &watch).await.unwrap();
    assert!(!put.was_there && put.pages_stored == 0 && put.own_bytes < 4096, "{put:?}");
    let again = depot.republish(&id("a.test", 1), 3, 1, &watch).await.unwrap();
    assert!(again.was_there, "a repeated one finds what it did");
    let other = depot.republish(&id("a.test", 2), 3, 1, &watch).await.unwrap_err();
    assert!(other.to_string().contains("must be higher"), "{other}");

    // What is freed by deleting the first one: nothing, since the third needs it; by deleting both: nearly all.
    let going = |numbers: &[u64]| numbers.iter().map(|number| id("a.test", *number)).collect();
    assert_eq!(depot.freed_by(&going(&[1])).await.unwrap(), 0);
    assert!(depot.freed_by(&going(&[1, 3])).await.unwrap() > 500_000);
    depot.delete(&id("a.test", 1)).await.unwrap();
    let manifest = depot.fetch(&id("a.test", 3), &to, FetchOrder::AsStored, &watch).await.unwrap();
    assert_eq!(reveille_depot::republish::restored_from(&manifest), Some(1));
    same_content(&to.join("memory"), &guest);
    let gone = depot.republish(&id("a.test", 1), 4, 1, &watch).await.unwrap_err();
    assert!(gone.to_string().contains("versions/1"), "{gone}");
}

#[tokio::test]
async fn an_export_reads_ahead_of_what_it_writes_and_comes_to_its_end() {
    let temp = tempfile::tempdir().unwrap();
    let depot = Depot::open(&config(&temp.path().join("depot"))).unwrap();
    let (guest, file) = (temp.path().join("guest"), temp.path().join("a.tar"));
    pseudo_guest(&guest, 64 << 20, 80, &mut Dice(4));
    let watch = Watch::default();
    depot.put_version(&about("a.test", 1), vec![memory(&guest)], None, &watch).await.unwrap();
    let first = id("a.test", 1);
    let exported = depot.export(&first, &file, &watch);
    tokio::time::timeout(std::time::Duration::from_secs(60), exported).await.expect("an end").unwrap();
    assert_eq!(reveille_depot::archive::version_of(&file).unwrap(), id("a.test", 1));
    assert_eq!(depot.highest(&"b.test".parse().unwrap()).await.unwrap(), 0);
    depot.import(&file, &id("b.test", 7), 1, &watch).await.unwrap();
    assert_eq!(depot.highest(&"b.test".parse().unwrap()).await.unwrap(), 7);
    assert!(reveille_depot::archive::version_of(&guest).is_err());
}
