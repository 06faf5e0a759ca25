//! Flipped bits, cuts, and what is told of them.

use super::*;

/// A history with every sort of file, and what each name has in each hour.
pub fn with_every_file(dir: &Path) -> BTreeMap<String, Vec<u64>> {
    let limits = Limits { minutes_kept_s: 2 * DAY, ..Limits::default() };
    let history = open_with(dir, limits);
    let mut sums: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for hour in 0..80 {
        // Thirty days' hours, a day's hours, a day's minutes, an hour's minutes and a journal.
        let at = hour_at(hour);
        let names = (0..12).map(|name| (format!("name-{name}.vm.test"), 1 + (hour * 31 + name * 7) % 1_000));
        let names: Vec<_> = names.collect();
        record(&history, batch(at, names.iter().map(|(name, amount)| point(name, at, *amount)).collect()));
        for (name, amount) in names {
            sums.entry(name).or_default().push(amount);
        }
        if hour == 20 || hour == 40 {
            run(&history, at + 3 * DAY, at + 3 * DAY + HOUR + 600, 60);
        }
    }
    settle(&history, hour_at(79) + 1);
    drop(history);
    for tag in ["hours30d", "hours1d", "minutes1d", "minutes1h", "journal"] {
        assert!(!files(dir, tag).is_empty(), "no {tag} in {:?}", files(dir, ""));
    }
    sums
}

pub fn hour_at(hour: u64) -> u64 {
    match hour {
        0..=20 => START + hour * HOUR,
        21..=40 => START + 36 * DAY + (hour - 20) * HOUR,
        _ => START + 41 * DAY + (hour - 40) * HOUR,
    }
}

/// Each hour of each name has its sum, or is unseen and told; says how many are not there.
fn told_or_right(dir: &Path, sums: &BTreeMap<String, Vec<u64>>, what: &str) -> usize {
    let (history, damaged) =
        History::open(dir, Limits::default()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut missing = 0;
    for (name, amounts) in sums {
        for (hour, amount) in amounts.iter().enumerate() {
            let at = hour_at(hour as u64);
            let answer = ask(&history, name, at, at + HOUR, HOUR);
            let bucket = answer.buckets[0];
            if bucket.sum == *amount && bucket.seen_s == 1 {
                continue;
            }
            missing += usize::from(bucket.sum != *amount);
            // A journal that ends early between two batches says what was before, and no less than one that was not
            // written on.
            if what.starts_with("journal cut") && bucket.is_unseen() {
                continue;
            }
            let spans = |damage: &&Damage| damage.from_s <= at && at < damage.to_s;
            let told = answer.damaged.iter().chain(&damaged).any(|damage| spans(&damage));
            assert!(
                told,
                "{what}: {name} has {bucket:?} and not {amount} at hour {hour}, and nothing says why"
            );
            assert!(bucket.sum <= *amount, "{what}: {name} has more than was counted");
        }
    }
    missing
}

#[test]
fn each_flipped_bit_and_each_cut_costs_a_block_that_is_told_and_never_more() {
    let whole = tempfile::tempdir().unwrap();
    let sums = with_every_file(whole.path());
    assert_eq!(told_or_right(whole.path(), &sums, "whole"), 0);
    // Opening is a start of its own: from here on it is the same files each time.
    let dir = tempfile::tempdir().unwrap();
    let fresh = |file: Option<&Path>, bytes: &[u8]| {
        for path in files(dir.path(), "") {
            fs::remove_file(path).unwrap();
        }
        for path in files(whole.path(), "") {
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        if let Some(file) = file {
            fs::write(dir.path().join(file.file_name().unwrap()), bytes).unwrap();
        }
    };
    let mut seed = 7u64;
    for tag in ["hours30d", "hours1d", "minutes1d", "minutes1h", "journal"] {
        let path = files(whole.path(), tag).remove(0);
        let bytes = fs::read(&path).unwrap();
        // A stride that visits every sort of place; each start costs some milliseconds.
        for at in (0..bytes.len()).step_by(bytes.len() / 24 + 1) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (seed >> 61);
            fresh(Some(&path), &changed);
            let what = format!("bit of byte {at} of {} in {tag}", bytes.len());
            let missing = told_or_right(dir.path(), &sums, &what);
            // One name in one file; or all names of one batch, and what needs the names that it brought.
            let hours = if tag.starts_with("hours") || tag == "minutes1d" { 24 } else { 12 };
            assert!(missing <= hours, "{what}: {missing} hours are not there");
        }
        for length in [0, 1, 9, 30, bytes.len() / 3, bytes.len() / 2, bytes.len() - 33, bytes.len() - 1] {
            fresh(Some(&path), &bytes[..length.min(bytes.len())]);
            told_or_right(dir.path(), &sums, &format!("{tag} cut at {length} of {}", bytes.len()));
        }
    }
}

#[test]
fn damage_is_told_by_file_name_and_time_and_still_after_files_were_merged() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    for hour in 0..24 {
        let at = START + hour * HOUR;
        record(&history, batch(at, vec![point("hit.vm.test", at, 5), point("well.vm.test", at, 6)]));
    }
    settle(&history, START + DAY);
    drop(history);
    let path = files(dir.path(), &format!("minutes1h-{}-", START + 3 * HOUR)).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    let name = b"hit.vm.test";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes[at + name.len() + 4] ^= 0x10;
    fs::write(&path, &bytes).unwrap();

    let history = open(dir.path());
    let check = |history: &History, file: &str, from_s, to_s| {
        let answer = ask(history, "hit.vm.test", START, START + DAY, HOUR);
        let [damage] = &answer.damaged[..] else { panic!("{:?}", answer.damaged) };
        assert_eq!((damage.from_s, damage.to_s), (from_s, to_s));
        let sentence = damage.to_string();
        assert!(sentence.contains("hit.vm.test") && sentence.contains(file), "{sentence}");
        assert!(answer.buckets[3].is_unseen());
        assert_eq!(ask(history, "well.vm.test", START, START + DAY, HOUR).damaged, []);
        assert_eq!(total(history, "well.vm.test", START, START + DAY), 144);
    };
    check(&history, "minutes1h", START + 3 * HOUR, START + 4 * HOUR);
    let sentence = ask(&history, "hit.vm.test", START, START + DAY, HOUR).damaged[0].to_string();
    assert!(sentence.contains("2024-10-14T03:00:00Z to 2024-10-14T04:00:00Z"), "{sentence}");
    settle(&history, START + DAY + 2 * HOUR);
    assert_eq!(files(dir.path(), "minutes1h"), [] as [PathBuf; 0]);
    check(&history, "minutes1d", START, START + DAY);
}

#[test]
fn files_that_were_replaced_and_are_there_again_after_a_crash_are_not_counted_twice() {
    let dir = tempfile::tempdir().unwrap();
    let old = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    let keep = |part: &str| {
        for path in files(dir.path(), part) {
            fs::copy(&path, old.path().join(path.file_name().unwrap())).unwrap();
        }
    };
    for hour in 0..24 {
        let at = START + hour * HOUR;
        record(&history, batch(at, vec![point("a", at, 5)]));
        keep("journal");
    }
    settle(&history, START + DAY + 400);
    keep("minutes1h");
    settle(&history, START + DAY + 2 * HOUR);
    assert_eq!(files(dir.path(), "blocks").len(), 1);
    drop(history);
    // As a cut of the power may leave it: the new file is there, and all removals are undone.
    let hours = files(old.path(), "minutes1h");
    assert_eq!(hours.len(), 24);
    for path in &hours {
        fs::copy(path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let history = open(dir.path());
    assert_eq!(total(&history, "a", START, START + DAY), 120);
    assert_eq!(files(dir.path(), "blocks").len(), 1);
    drop(history);
    // A cut one step before: hours and their journals.
    fs::remove_file(files(dir.path(), "blocks").remove(0)).unwrap();
    for path in files(old.path(), "") {
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let history = open(dir.path());
    assert_eq!(total(&history, "a", START, START + DAY), 120);
    // Files that were being made count for nothing.
    drop(history);
    let unfinished = dir.path().join(format!("minutes1d-{START}-99.blocks.new"));
    fs::write(&unfinished, b"half").unwrap();
    let history = open(dir.path());
    assert_eq!((total(&history, "a", START, START + DAY), unfinished.exists()), (120, false));
}

#[test]
fn a_damaged_catalogue_is_put_aside_and_names_are_read_from_the_blocks_again() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    record(&history, batch(START + 70, vec![point("a", START + 5, 1), point("b", START + 65, 1)]));
    settle(&history, START + 2 * HOUR);
    record(&history, batch(START + 2 * HOUR, vec![point("c", START + 2 * HOUR, 1)]));
    drop(history);
    let path = dir.path().join("names.redb");
    let mut bytes = fs::read(&path).unwrap();
    bytes.iter_mut().skip(4_096).for_each(|byte| *byte ^= 0x55);
    fs::write(&path, &bytes).unwrap();
    let (history, damaged) = History::open(dir.path(), Limits::default()).unwrap();
    assert!(damaged[0].to_string().contains("names.redb"), "{damaged:?}");
    assert_eq!(fs::read(dir.path().join("names.redb.damaged")).unwrap(), bytes, "put aside as it is");
    let names: Vec<_> =
        history.reader().names(b"", 10).unwrap().into_iter().map(|info| (info.name, info.last_s)).collect();
    let name = |name: &[u8]| Box::<[u8]>::from(name);
    assert_eq!(names, [(name(b"a"), START), (name(b"b"), START + 60), (name(b"c"), START + 2 * HOUR)]);
}

#[test]
fn a_file_of_a_newer_format_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    record(&history, batch(START, vec![point("a", START, 1)]));
    settle(&history, START + 2 * HOUR);
    drop(history);
    let path = files(dir.path(), "minutes1h").remove(0);
    let mut bytes = fs::read(&path).unwrap();
    bytes[7] = 2;
    let inputs = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
    let end = 12 + inputs * 8;
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes[..end]);
    bytes[end..end + 4].copy_from_slice(&sum.to_le_bytes()[..4]);
    fs::write(&path, &bytes).unwrap();
    let error = History::open(dir.path(), Limits::default()).unwrap_err().to_string();
    assert!(error.contains("format 2") && error.contains("newer"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), bytes);
}
