//! What a user of these forecasts would miss.

use super::*;
use crate::decide::keep::{Costs, Prices, RungCost};
use crate::model::Rung;

const MINUTE_MS: u64 = 60_000;

fn asked(at_min: u64) -> Arrival {
    Arrival { at: Timestamp::from_ms(at_min * MINUTE_MS), client: None, busy_ms: None, group: None }
}

/// A name that was asked for `times` times, every so many minutes.
fn every(gaps: &mut Gaps, minutes: u64, times: u64) -> Name {
    let mut name = Name::default();
    (0..times).for_each(|time| gaps.arrived(&mut name, asked(time * minutes)));
    name
}

/// Arrivals per hour that are expected after so many idle minutes.
fn after(gaps: &Gaps, name: &Name, idle_min: u64) -> f64 {
    gaps.hazard(name, piece_at(idle_min * MINUTE_MS)).unwrap().per_hour
}

#[test]
fn a_name_that_is_asked_for_every_hour_is_expected_when_the_hour_is_nearly_over() {
    let mut gaps = Gaps::default();
    let name = every(&mut gaps, 60, 60);
    let (early, due) = (after(&gaps, &name, 15), after(&gaps, &name, 57));
    assert!(due > 2.0 * early && due > 1.0, "{early} {due}");
}

#[test]
fn a_new_name_inherits_what_its_group_has_taught() {
    let hazard = |minutes: u64| {
        let (mut gaps, mut name, mut at_min) = (Gaps::default(), Name::default(), 0);
        for gap in 0..60 {
            // Irregular ones: a quarter of it up to twice it.
            at_min += minutes * (1 + gap * gap * 5 % 8) / 4;
            gaps.arrived(&mut name, asked(at_min));
        }
        let mut new = Name::default();
        gaps.arrived(&mut new, asked(at_min));
        after(&gaps, &new, 10)
    };
    let (busy, quiet) = (hazard(5), hazard(300));
    assert!(busy > 1.5 * quiet, "{busy} {quiet}");
}

#[test]
fn a_new_name_is_expected_as_names_of_its_group_were_and_not_as_others() {
    let at = |minute: u64, group: u64| Arrival { group: Some(group), ..asked(minute) };
    let mut gaps = Gaps::default();
    // Names that come and go, each asked for five times. Irregular ones: a quarter of it up to twice it, in the order of time.
    let mut names = [Name::default(), Name::default()];
    let times = |group: usize, minutes: u64, times: u64| {
        (0..times).scan(0, move |at_min, gap| {
            *at_min += minutes * (1 + gap * gap * 5 % 8) / 4;
            Some((*at_min, group, gap % 5 == 0))
        })
    };
    let mut arrivals: Vec<(u64, usize, bool)> = times(0, 8, 400).chain(times(1, 100, 60)).collect();
    arrivals.sort_unstable();
    for (minute, name, new) in &arrivals {
        if *new {
            names[*name] = Name::default();
        }
        gaps.arrived(&mut names[*name], at(*minute, *name as u64));
    }
    let now_min = arrivals.last().map_or(0, |(minute, ..)| *minute);
    let mut first = |group| {
        let mut new = Name::default();
        gaps.arrived(&mut new, at(now_min, group));
        after(&gaps, &new, 5)
    };
    let (busy, quiet) = (first(0), first(1));
    assert!(busy > 1.2 * quiet, "{busy} {quiet}");
}

#[test]
fn silence_is_learned_once_however_often_it_is_told() {
    let told = |looks: &[u64]| {
        let mut gaps = Gaps::default();
        let mut name = every(&mut gaps, 30, 10);
        for look in looks.iter().copied() {
            gaps.silent(&mut name, Timestamp::from_ms((270 + look) * MINUTE_MS));
        }
        gaps.arrived(&mut name, asked(270 + 100));
        gaps.hazards(&name, Timestamp::from_ms(400 * MINUTE_MS), 50)
    };
    let once = told(&[]);
    assert_eq!(once.len(), 50);
    assert_eq!(told(&[0, 7, 7, 20, 99]), once);
    // And long silence makes an arrival less likely.
    let mut gaps = Gaps::default();
    let mut name = every(&mut gaps, 30, 10);
    let before = after(&gaps, &name, 2_000);
    gaps.silent(&mut name, Timestamp::from_ms((270 + 2_000) * MINUTE_MS));
    assert!(after(&gaps, &name, 2_000) < before);
}

#[test]
fn hazards_begin_with_the_piece_that_goes_on_and_end_with_the_last() {
    let mut gaps = Gaps::default();
    let name = every(&mut gaps, 30, 3);
    let at = |min: u64| Timestamp::from_ms((60 + min) * MINUTE_MS);
    let pieces = gaps.hazards(&name, at(10), 4);
    assert!(pieces[0].from_ms <= 10 * MINUTE_MS && 10 * MINUTE_MS < pieces[0].until_ms);
    assert!(pieces.windows(2).all(|pair| pair[0].until_ms == pair[1].from_ms));
    assert_eq!(gaps.hazards(&name, at(30 * 24 * 60), 4), []);
    assert_eq!(gaps.hazards(&Name::default(), at(0), 4), []);
}

/// Gaps of about ten minutes, each up to 5 % off.
fn about_ten_minutes(time: u64) -> u64 {
    10 * MINUTE_MS / 1_000 * (950 + time * 37 % 101)
}

#[test]
fn who_is_asked_for_by_a_clock_is_warm_when_it_strikes_and_asleep_before() {
    let rung = |rung, held_mib, wake_ms| RungCost { rung, held_mib, wake_ms };
    let rungs =
        vec![rung(Rung::Active, 128.0, 0.0), rung(Rung::Paused, 75.0, 20.0), rung(Rung::Local, 0.0, 190.0)];
    let costs = Costs::new(rungs, Prices { gib_hour: 1.0, delay_second: 0.5, change: 0.0 }).unwrap();
    let (mut gaps, mut name, mut at) = (Gaps::default(), Name::default(), Timestamp::from_ms(0));
    for time in 0..26 {
        let gap_ms = about_ten_minutes(time);
        if time >= 8 {
            let stays = costs.schedule(&gaps.hazards(&name, at, PIECES), Rung::Active);
            let found = stays.iter().find(|stay| stay.until_ms > gap_ms).unwrap();
            assert!(found.rung >= Rung::Paused, "{time}: {stays:?}");
            let warm = stays.iter().filter(|stay| stay.rung > Rung::Local);
            let warm_ms: u64 = warm.map(|stay| stay.until_ms.min(gap_ms).saturating_sub(stay.from_ms)).sum();
            assert!(warm_ms * 10 <= gap_ms * 3, "{time}: warm for {warm_ms} of {gap_ms} ms: {stays:?}");
        }
        at = at.plus_ms(gap_ms);
        gaps.arrived(&mut name, Arrival { at, client: None, busy_ms: None, group: None });
    }
    // A clock that has stopped is not waited for: an hour later as little is expected as of anybody.
    let (due, late) = (after(&gaps, &name, 10), after(&gaps, &name, 60));
    assert!(due > 20.0 * late, "{due} {late}");
}

#[test]
fn what_is_expected_in_a_time_is_the_hazard_over_it() {
    let piece = |from_ms, until_ms, per_hour| Piece { from_ms, until_ms, per_hour };
    let pieces = [piece(0, 1_800_000, 2.0), piece(1_800_000, 3_600_000, 6.0)];
    assert!((expected(&pieces, 0, 3_600_000) - 4.0).abs() < 1e-12);
    assert!((expected(&pieces, 900_000, 2_700_000) - 2.0).abs() < 1e-12);
    assert!((expected(&pieces, 3_600_000, 7_200_000) - 6.0).abs() < 1e-12, "as at the end");
    assert!(expected(&pieces, 5, 5) == 0.0 && expected(&[], 0, 1) == 0.0);
}
