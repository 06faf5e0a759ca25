//! Whole replays.

use reveille_core::model::Rung;

use crate::compare::Measure;
use crate::trace::Request;
use crate::{ReplayError, Report, Settings, Tape, Trace, replay};

const HOUR_MS: u64 = 3_600_000;

/// Names that are asked for at these times, in minutes.
fn trace(names: &[&[u64]]) -> Trace {
    let all = names.iter().enumerate().flat_map(|(name, minutes)| {
        minutes.iter().map(move |minute| Request {
            at_ms: 480_000 * HOUR_MS + minute * 60_000,
            name,
            client: None,
            busy_ms: None,
            requests: 1,
        })
    });
    let mut requests: Vec<Request> = all.collect();
    requests.sort_by_key(|request| request.at_ms);
    Trace { names: (0..names.len()).map(|name| format!("name-{name}")).collect(), requests }
}

fn every(minutes: u64, times: u64) -> Vec<u64> {
    (0..times).map(|time| time * minutes).collect()
}

#[test]
fn nothing_of_the_future_reaches_a_look() {
    let (a, b) = (every(17, 30), every(41, 12));
    let whole = Tape::record(&trace(&[&a, &b]), |_| ()).unwrap();
    let mut other = a[..20].to_vec();
    other.extend([700, 703, 1_500]);
    let changed = Tape::record(&trace(&[&other, &b]), |_| ()).unwrap();
    // Up to the 20th arrival of the first name everything is the same, whatever came later.
    let before = |tape: &Tape| -> Vec<crate::Gap> {
        let mut at_ms = [0; 2];
        let ended = tape.gaps.iter().filter(|gap| {
            at_ms[gap.name] += gap.ms;
            at_ms[gap.name] <= 19 * 17 * 60_000
        });
        ended.cloned().collect()
    };
    assert_eq!(before(&whole).len(), 19 + 7);
    assert_eq!(before(&whole), before(&changed));
}

#[test]
fn looks_cover_each_gap_without_a_hole() {
    let tape = Tape::record(&trace(&[&[0, 1, 1, 4, 200], &[3, 900]]), |_| ()).unwrap();
    let gaps: Vec<u64> = tape.gaps.iter().map(|gap| gap.ms / 60_000).collect();
    assert_eq!(gaps, [1, 0, 3, 196, 897]);
    for gap in &tape.gaps {
        let lasted: u64 = gap.looks.iter().map(|look| u64::from(look.lasted_ms)).sum();
        assert_eq!(lasted, gap.ms);
        let (last, whole) = gap.looks.split_last().unwrap();
        assert!(whole.iter().all(|look| look.lasted_ms == look.length_ms));
        assert!(last.lasted_ms <= last.length_ms);
    }
}

#[test]
fn a_pattern_is_seen_and_costs_less_than_a_fixed_keep_alive() {
    // Two names with clear gaps: bursts of four, then two hours of nothing.
    let bursts: Vec<u64> = (0..40).flat_map(|burst| (0..4).map(move |one| burst * 120 + one * 3)).collect();
    let hourly = every(60, 60);
    let trace = trace(&[&bursts, &hourly]);
    let report = replay(&trace, &settings(), |_, _, _| ()).unwrap();
    assert_eq!((report.names, report.requests), (2, 220));
    let first = &report.comparisons[0];
    assert_eq!((first.measure, first.budgets.len()), (Measure::ColdStarts, 3));
    for budget in &first.budgets {
        let (policy, fixed) = budget.others[0];
        assert_eq!(policy, "fixed");
        assert!(budget.reveille.unwrap() < 0.65 * fixed.unwrap(), "{}", report.shown(2));
    }
    shows_itself(&report);
}

fn settings() -> Settings {
    let settings = Settings { budgets_min: vec![20.0, 60.0], budget_reach_min: 60, ..Settings::default() };
    Settings { fixed_min: vec![1.0, 2.0, 5.0, 40.0, 90.0, 120.0], ..settings }.completed()
}

fn shows_itself(report: &Report) {
    let text = report.shown(1).to_string();
    for part in [
        "all names (cold starts)",
        "idle-warm h",
        "GiB-hours",
        "fixed (10.0 min)",
        "name-0",
        "p99",
        "… and 1 more names",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let json = serde_json::to_value(report).unwrap();
    assert_eq!(json["details"][0]["by_name"]["name-0"]["requests"], 160);
    assert!(json["delay_ratio_worst"].is_number() && json["settings"]["rungs"][5]["held_mib"] == 128.0);
    let svg = report.svg();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && !svg.contains("NaN"));
    assert_eq!((svg.matches("<g ").count(), svg.matches("</g>").count()), (3, 3));
}

#[test]
fn what_cannot_be_replayed_is_refused() {
    let nothing = replay(&trace(&[&[1], &[2]]), &Settings::default(), |_, _, _| ());
    assert_eq!(nothing.unwrap_err(), ReplayError::NoGap);
    let mut wrong = settings();
    wrong.rungs[0].wake_ms = f64::NAN;
    let refused = replay(&trace(&[&[1, 2]]), &wrong, |_, _, _| ()).unwrap_err();
    assert_eq!(refused.to_string(), "costs: wake_ms of cold is NaN: it must be a number of at least 0");
    let odd = Settings {
        fixed_min: vec![f64::NAN],
        reaches_min: vec![0],
        rest: Rung::Cold,
        rungs: settings().rungs.split_off(2),
        ..settings()
    };
    let refused = replay(&trace(&[&[1, 2]]), &odd, |_, _, _| ()).unwrap_err().to_string();
    let told: Vec<&str> = refused.split("; ").filter_map(|fault| fault.split(" is ").next()).collect();
    assert_eq!(told, ["rest", "fixed_min", "reaches_min"], "{refused}");
}

#[test]
fn a_directory_is_replayed_as_far_as_it_holds_arrivals() {
    let directory = std::env::temp_dir().join(format!("reveille-replay-{}", std::process::id()));
    std::fs::create_dir_all(directory.join("arrivals")).unwrap();
    let none = crate::policies(&directory, |_, _, _, _| ()).unwrap_err().to_string();
    assert!(none.ends_with("no CSV file with a column for the time and one for the name"), "{none}");
    std::fs::write(directory.join("latency.csv"), "timestamp,value\nnonsense,1\n").unwrap();
    std::fs::write(directory.join("arrivals/a.csv"), "time,name\n0,a\n600,a\n1200,a\n").unwrap();
    let bench = crate::policies(&directory, |_, _, _, _| ()).unwrap();
    assert_eq!((bench.traces.len(), bench.traces[0].report.requests), (1, 3));
    std::fs::write(directory.join("arrivals/b.csv"), "time,name\n0,a\nx,a\n").unwrap();
    let damaged = crate::policies(&directory, |_, _, _, _| ()).unwrap_err().to_string();
    assert!(damaged.contains("b.csv: line 3: time \"x\" is not "), "{damaged}");
    std::fs::remove_dir_all(&directory).unwrap();
}
