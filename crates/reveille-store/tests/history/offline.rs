//! A history that is read without its daemon, or beside it.

use reveille_store::history::{Offline, OpenError};

use super::damage::{hour_at, with_every_file};
use super::*;

/// Amounts by name and hour.
type Sums = BTreeMap<(String, u64), u64>;

fn read(dir: &Path) -> (Sums, Vec<Damage>) {
    let mut sums = Sums::new();
    let damaged = Offline::open(dir).unwrap().points(Kind::Queries, |point| {
        let name = String::from_utf8(point.name.to_vec()).unwrap();
        *sums.entry((name, point.at_s / HOUR)).or_default() += point.amount;
        true
    });
    (sums, damaged.unwrap())
}

fn expected(of: &BTreeMap<String, Vec<u64>>) -> Sums {
    let hours = of.iter().flat_map(|(name, amounts)| {
        amounts.iter().zip(0..).map(move |(amount, hour)| ((name.clone(), hour_at(hour) / HOUR), *amount))
    });
    hours.collect()
}

/// Every file with what is in it.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    files(dir, "").into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn every_point_is_read_once_whoever_has_the_history_open_and_nothing_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!Offline::is_history(dir.path()));
    let sums = expected(&with_every_file(dir.path()));
    assert!(Offline::is_history(dir.path()));
    let before = content(dir.path());
    assert_eq!(read(dir.path()), (sums.clone(), Vec::new()));
    assert_eq!(content(dir.path()), before);
    // Beside the one who writes, and to the last batch.
    let history = open(dir.path());
    let now = hour_at(79) + 5;
    record(&history, batch(now, vec![point("late", now, 3)]));
    let (mut with_late, damaged) = read(dir.path());
    assert_eq!((with_late.remove(&("late".to_owned(), now / HOUR)), damaged), (Some(3), Vec::new()));
    assert_eq!(with_late, sums);
}

#[test]
fn what_a_merged_file_has_taken_over_is_read_once_also_after_a_crash_in_between() {
    let dir = tempfile::tempdir().unwrap();
    let sums = expected(&with_every_file(dir.path()));
    let history = open(dir.path());
    let before = content(dir.path());
    // Until the hours of the last day are in one file.
    let hours_gone = |path: &&PathBuf| path.display().to_string().contains("minutes1h") && !path.exists();
    let mut now = hour_at(79) + HOUR;
    while !before.keys().any(|path| hours_gone(&path)) {
        assert!(now < hour_at(79) + 3 * DAY, "never merged");
        run(&history, now, now, 60);
        now += 60;
    }
    drop(history);
    assert_eq!(read(dir.path()).0, sums);
    // As if the old files had not been removed yet.
    let gone = before.iter().filter(|(path, _)| hours_gone(path));
    gone.for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    assert_eq!(read(dir.path()).0, sums);
}

#[test]
fn damage_is_told_with_its_file_and_costs_one_name() {
    let dir = tempfile::tempdir().unwrap();
    let sums = expected(&with_every_file(dir.path()));
    let path = files(dir.path(), "minutes1d")[0].clone();
    let good = fs::read(&path).unwrap();
    let mut bytes = good.clone();
    // Within the last block, which the index follows.
    let footer = bytes.len() - 32;
    let index = usize::try_from(u64::from_le_bytes(bytes[footer..footer + 8].try_into().unwrap())).unwrap();
    bytes[index - 3] ^= 0x40;
    fs::write(&path, &bytes).unwrap();
    let (read_sums, damaged) = read(dir.path());
    assert!(damaged.len() == 1 && damaged[0].file == path, "{damaged:?}");
    assert!(damaged[0].to_string().contains("1 blocks cannot be read"), "{}", damaged[0]);
    assert!(read_sums.len() < sums.len() && read_sums.iter().all(|(key, sum)| sums[key] == *sum));
    fs::write(&path, &good).unwrap();
    let stopped = Offline::open(dir.path()).unwrap().points(Kind::Queries, |_| false);
    assert_eq!(stopped.unwrap(), []);
    let none = Offline::open(&dir.path().join("none")).unwrap_err();
    assert!(matches!(none, OpenError::Unusable { .. }), "{none}");
}
