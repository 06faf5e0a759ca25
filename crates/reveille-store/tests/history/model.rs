//! Against a naive model.

use super::*;

#[derive(Debug, Clone)]
enum Act {
    Record(Vec<(usize, bool, u64, u64)>),
    Reopen,
    Remove(usize),
}

fn acts() -> impl Strategy<Value = Vec<(u64, Act)>> {
    let late = prop_oneof![6 => 0u64..5, 3 => 0u64..900, 1 => 0u64..20 * HOUR];
    let amount = prop_oneof![1u64..5, 1u64..100_000];
    let points = prop::collection::vec((0usize..5, any::<bool>(), late, amount), 0..12);
    let act = prop_oneof![30 => points.prop_map(Act::Record), 2 => Just(Act::Reopen), 1 => (0usize..5).prop_map(Act::Remove)];
    let passed = prop_oneof![6 => 0u64..3, 4 => 1u64..90, 3 => 600u64..5_000, 1 => 20_000u64..90_000];
    prop::collection::vec((passed, act), 1..60)
}

/// A case takes about a second: it is synchronised to the disk as often as a day of a daemon.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(16)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_sum_is_that_of_a_naive_model(acts in acts(), crowded in any::<bool>()) {
        let names = ["a.vm.test", "b.vm.test", "c", "d", "e.other.test"];
        let dir = tempfile::tempdir().unwrap();
        // Crowded: hours are packed before their end again and again.
        let limits = Limits { open_names_max: if crowded { 6 } else { 1_000 }, ..Limits::default() };
        let mut history = open_with(dir.path(), limits.clone());
        let mut model: BTreeMap<(usize, bool, u64), u64> = BTreeMap::new();
        let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
        let mut now = START + 3 * DAY;
        for (passed, act) in acts {
            now += passed;
            match act {
                Act::Record(points) => {
                    let kind = |arrival: bool| if arrival { Kind::Arrivals } else { Kind::Queries };
                    let made = points.iter().map(|(name, arrival, late, amount)| Point {
                        name: names[*name].as_bytes().into(),
                        kind: kind(*arrival),
                        at_s: now - late,
                        amount: *amount,
                    });
                    record(&history, batch(now, made.collect()));
                    for (name, arrival, late, amount) in points {
                        *model.entry((name, arrival, (now - late) / 60)).or_default() += amount;
                    }
                    *seen.entry(now / 60).or_default() += 1;
                }
                Act::Reopen => {
                    drop(history);
                    history = open_with(dir.path(), limits.clone());
                }
                Act::Remove(name) => {
                    history.recorder().remove(names[name].as_bytes()).unwrap();
                    model.retain(|(of, ..), _| *of != name);
                }
            }
        }
        for when in [now, now + 2 * DAY] {
            settle(&history, when);
            for (index, name) in names.iter().enumerate() {
                for (arrival, kind) in [(false, Kind::Queries), (true, Kind::Arrivals)] {
                    for step_s in [60, 300, HOUR, DAY] {
                        let name = name.as_bytes();
                        let query = Query { name, kind, from_s: START, to_s: now + 1, step_s };
                        let answer = history.reader().query(&query).unwrap();
                        prop_assert_eq!(&answer.damaged, &[]);
                        prop_assert_eq!((answer.from_s, answer.step_s), (START, step_s));
                        for (place, bucket) in answer.buckets.iter().enumerate() {
                            let from = (START + place as u64 * step_s) / 60;
                            let minutes = from..from + step_s / 60;
                            let expected: u64 = minutes.clone().map(|minute| model.get(&(index, arrival, minute)).copied().unwrap_or(0)).sum();
                            let watched: u64 = seen.range(minutes).map(|(_, seconds)| seconds).sum();
                            prop_assert_eq!((bucket.sum, bucket.seen_s), (expected, watched), "{} at {}", names[index], from * 60);
                        }
                    }
                }
            }
        }
        let listed: Vec<_> = history.reader().names(b"", 100).unwrap().into_iter().map(|info| (info.name, info.first_s / 60, info.last_s / 60)).collect();
        let mut active: BTreeMap<Box<[u8]>, (u64, u64)> = BTreeMap::new();
        for (name, _, minute) in model.keys() {
            let about = active.entry(names[*name].as_bytes().into()).or_insert((*minute, *minute));
            *about = (about.0.min(*minute), about.1.max(*minute));
        }
        let expected: Vec<_> = active.into_iter().map(|(name, (first, last))| (name, first, last)).collect();
        prop_assert_eq!(listed, expected);
    }
}
