//! What a user would miss: events with their evidence, and quiet where nothing happens.

use proptest::prelude::*;

use super::memory::Memory;
use super::*;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;
/// A Monday, 00:00.
const MONDAY: Timestamp = Timestamp::from_ms(4 * DAY_MS);

fn detector(settings: Settings) -> Detector {
    Detector::new(settings).unwrap()
}

/// A sum of four uniform numbers around zero with a standard deviation of about 1, by a generator with a fixed seed.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        let mut sum = 0.0;
        for _ in 0..4 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            sum += (self.0 >> 40) as f64 / (1_u64 << 24) as f64 - 0.5;
        }
        sum * 3.0_f64.sqrt()
    }
}

/// Feeds `count` points, `step_ms` apart, of the value that `series` gives for each time; all that was said.
fn feed(
    detector: &mut Detector,
    from: Timestamp,
    step_ms: u64,
    count: u64,
    mut series: impl FnMut(Timestamp) -> f64,
) -> Vec<(Timestamp, Verdict)> {
    let times = (0..count).map(|point| from.plus_ms(point * step_ms));
    times.map(|at| (at, detector.observe(at, series(at)).unwrap())).collect()
}

fn alarms(said: &[(Timestamp, Verdict)]) -> Vec<Timestamp> {
    said.iter().filter(|(_, verdict)| verdict.score >= 0.5).map(|(at, _)| *at).collect()
}

/// Ten queries a minute for a day, give or take two.
fn steady(noise: &mut Noise) -> Detector {
    let mut detector = detector(Settings::default());
    feed(&mut detector, MONDAY, MINUTE_MS, 1_440, |_| (10.0 + 2.0 * noise.next()).round());
    detector
}

#[test]
fn a_spike_is_reported_once_with_its_evidence() {
    let mut noise = Noise(1);
    let mut detector = steady(&mut noise);
    let tuesday = MONDAY.plus_ms(DAY_MS);
    let burst = [60.0, 90.0, 80.0, 10.0, 11.0, 9.0, 10.0];
    let said =
        feed(&mut detector, tuesday, MINUTE_MS, 7, |at| burst[(at.ms_since(tuesday) / MINUTE_MS) as usize]);
    // The first point says so, the greater one after it again, the lesser one not.
    assert_eq!(alarms(&said), [tuesday, tuesday.plus_ms(MINUTE_MS)]);
    let ended: Vec<Event> = said.iter().filter_map(|(_, verdict)| verdict.ended).collect();
    let [event] = ended.as_slice() else { panic!("{ended:?}") };
    assert_eq!(event.kind, Kind::Spike);
    assert_eq!((event.since, event.until, event.points), (tuesday, tuesday.plus_ms(2 * MINUTE_MS), 3));
    assert_eq!(event.observed, 90.0);
    assert!((event.expected - 10.0).abs() < 1.5, "{event:?}");
    assert!((1.0..3.0).contains(&event.spread), "{event:?}");
    assert_eq!(event.deviation_sd, (event.observed - event.expected) / event.spread);
    assert!(event.is_alarm());
    assert_eq!(detector.event(), None);
}

#[test]
fn a_drop_is_told_from_a_spike() {
    let mut noise = Noise(2);
    let mut detector = steady(&mut noise);
    let said = feed(&mut detector, MONDAY.plus_ms(DAY_MS), MINUTE_MS, 1, |_| 0.0);
    let event = said[0].1.event.unwrap();
    assert_eq!((event.kind, event.observed), (Kind::Drop, 0.0));
    assert!(event.deviation_sd < -3.0, "{event:?}");
}

#[test]
fn a_single_outlier_hardly_moves_the_baseline() {
    let mut noise = Noise(10);
    let mut detector = steady(&mut noise);
    let tuesday = MONDAY.plus_ms(DAY_MS);
    let said = feed(&mut detector, tuesday, MINUTE_MS, 2, |at| if at == tuesday { 1e6 } else { 30.0 });
    let (before, after) = (said[0].1, said[1].1);
    assert!((after.expected - before.expected).abs() < 0.5 && after.spread < 1.2 * before.spread, "{said:?}");
    assert_eq!(after.event.map(|event| event.kind), Some(Kind::Spike));
}

#[test]
fn a_level_that_stays_is_the_new_baseline() {
    let mut noise = Noise(3);
    let mut detector = steady(&mut noise);
    let tuesday = MONDAY.plus_ms(DAY_MS);
    let said = feed(&mut detector, tuesday, MINUTE_MS, 600, |_| (40.0 + 2.0 * noise.next()).round());
    let ended: Vec<Event> = said.iter().filter_map(|(_, verdict)| verdict.ended).collect();
    let shifts: Vec<&Event> = ended.iter().filter(|event| event.kind == Kind::LevelShift).collect();
    let [shift] = shifts.as_slice() else { panic!("{ended:?}") };
    assert_eq!((shift.since, shift.points), (tuesday, Settings::default().shift_points));
    // From then on it is usual: no more than what three standard deviations let through.
    let (_, last) = said.last().unwrap();
    assert!((last.expected - 40.0).abs() < 2.0, "{last:?}");
    let later = said[20..].iter().filter(|(_, verdict)| verdict.event.is_some()).count();
    assert!(later < 20, "{later} of 580 points are in events");
    assert_eq!(alarms(&said), [tuesday]);
}

/// Busy from nine to five, quiet else.
fn office_hours(at: Timestamp) -> f64 {
    if (9..17).contains(&(at.as_ms() % DAY_MS / HOUR_MS)) { 100.0 } else { 10.0 }
}

#[test]
fn every_day_is_usual_and_a_day_without_its_hours_is_not() {
    let mut noise = Noise(4);
    let mut detector = detector(Settings::default());
    let step = 5 * MINUTE_MS;
    feed(&mut detector, MONDAY, step, 6 * 288, |at| office_hours(at) + 3.0 * noise.next());
    let sunday = MONDAY.plus_ms(6 * DAY_MS);
    let said = feed(&mut detector, sunday, step, 288, |at| office_hours(at) + 3.0 * noise.next());
    assert_eq!(alarms(&said), []);
    let noon = said.iter().find(|(at, _)| at.as_ms() % DAY_MS == 12 * HOUR_MS).unwrap().1;
    assert!((noon.expected - 100.0).abs() < 3.0 && noon.spread < 10.0, "{noon:?}");

    // No value of that day is new, but nine o'clock is no time for them.
    let said = feed(&mut detector, sunday.plus_ms(DAY_MS), step, 288, |_| 10.0 + 3.0 * noise.next());
    let (nine, verdict) = said.iter().find(|(_, verdict)| verdict.event.is_some()).unwrap();
    assert_eq!(nine.as_ms() % DAY_MS, 9 * HOUR_MS);
    assert!(verdict.event.unwrap().kind == Kind::Drop && verdict.deviation_sd < -20.0, "{verdict:?}");
    let alarm = alarms(&said)[0].as_ms() % DAY_MS;
    assert!((9 * HOUR_MS..12 * HOUR_MS).contains(&alarm), "{alarm}");
    // Three days later that it is busy from nine to five is believed again.
    let mut again = |day: u64, days: u64| {
        let from = MONDAY.plus_ms(day * DAY_MS);
        feed(&mut detector, from, step, days * 288, |at| office_hours(at) + 3.0 * noise.next())
    };
    again(8, 2);
    let in_events = again(10, 1).iter().filter(|(_, verdict)| verdict.event.is_some()).count();
    assert!(in_events < 10, "{in_events}");
}

#[test]
fn a_quiet_weekend_is_usual_once_it_was_seen() {
    let mut noise = Noise(5);
    let mut detector = detector(Settings::default());
    let weekday = |at: Timestamp| at.ms_since(MONDAY) / DAY_MS % 7 < 5;
    let mut series = |at: Timestamp| if weekday(at) { office_hours(at) } else { 10.0 } + 3.0 * noise.next();
    feed(&mut detector, MONDAY, 5 * MINUTE_MS, 4 * 7 * 288, &mut series);
    let said = feed(&mut detector, MONDAY.plus_ms(28 * DAY_MS), 5 * MINUTE_MS, 7 * 288, &mut series);
    let in_events = said.iter().filter(|(_, verdict)| verdict.event.is_some()).count();
    assert!(in_events < said.len() / 50, "{in_events} of {} points are in events", said.len());
    let saturday_noon = said[5 * 288 + 144].1;
    assert!((saturday_noon.expected - 10.0).abs() < 5.0, "{saturday_noon:?}");
}

#[test]
fn the_first_query_for_a_name_that_slept_is_no_anomaly_a_thousand_are() {
    let mut detector = detector(Settings::default());
    feed(&mut detector, MONDAY, MINUTE_MS, 1_440, |_| 0.0);
    let said = feed(&mut detector, MONDAY.plus_ms(DAY_MS), MINUTE_MS, 1, |_| 1.0);
    assert_eq!((said[0].1.score, said[0].1.event), (0.0, None));
    let said = feed(&mut detector, MONDAY.plus_ms(DAY_MS + MINUTE_MS), MINUTE_MS, 1, |_| 1_000.0);
    assert!(said[0].1.event.is_some_and(|event| event.kind == Kind::Spike && event.is_alarm()), "{said:?}");
}

#[test]
fn what_was_long_ago_is_forgotten() {
    let mut noise = Noise(6);
    let mut detector = detector(Settings { memory_points: 2_000, ..Settings::default() });
    let mut minutes = |count: u64, from: u64, level: f64| {
        let from = MONDAY.plus_ms(from * MINUTE_MS);
        feed(&mut detector, from, MINUTE_MS, count, |_| (level + 2.0 * noise.next()).round())
    };
    minutes(1_500, 0, 10.0);
    let first = minutes(3, 1_500, 500.0)[0].1.surprise;
    minutes(1_000, 1_503, 10.0);
    let known = minutes(3, 2_503, 500.0)[0].1.surprise;
    minutes(2_500, 2_506, 10.0);
    let forgotten = minutes(3, 5_006, 500.0)[0].1.surprise;
    assert!(known < first / 2.0 && known < forgotten / 2.0, "{first} {known} {forgotten}");
}

#[test]
fn a_changed_threshold_changes_the_next_event() {
    let mut noise = Noise(7);
    let mut detector = steady(&mut noise);
    let mut deaf = detector.clone();
    deaf.set_threshold_sd(50.0).unwrap();
    let tuesday = MONDAY.plus_ms(DAY_MS);
    assert!(detector.observe(tuesday, 30.0).unwrap().event.is_some());
    let verdict = deaf.observe(tuesday, 30.0).unwrap();
    assert!(verdict.event.is_none() && verdict.score < 0.5, "{verdict:?}");
    let faults = deaf.set_threshold_sd(0.0).unwrap_err();
    assert_eq!(faults[0].to_string(), "threshold_sd = 0: must be 0.5 to 100");
    assert_eq!(deaf.settings().threshold_sd, 50.0);
}

#[test]
fn every_setting_out_of_range_is_told() {
    let settings = Settings {
        threshold_sd: f64::NAN,
        least_spread: 0.0,
        shift_points: 1,
        calm_points: 0,
        trailing_points: 1,
        memory_points: 1,
    };
    let keys: Vec<&str> = Detector::new(settings).unwrap_err().iter().map(|fault| fault.key).collect();
    let all =
        ["threshold_sd", "least_spread", "shift_points", "calm_points", "trailing_points", "memory_points"];
    assert_eq!(keys, all);
}

#[test]
fn a_refused_point_changes_nothing() {
    let mut detector = steady(&mut Noise(8));
    let before = detector.clone();
    let tuesday = MONDAY.plus_ms(DAY_MS);
    for value in [f64::NAN, f64::INFINITY, -1e300] {
        assert_eq!(detector.observe(tuesday, value), Err(PointError::NotFinite));
    }
    let again = tuesday.as_ms() - MINUTE_MS;
    let refused = PointError::NotLater { at_ms: again, last_ms: again };
    assert_eq!(detector.observe(Timestamp::from_ms(again), 10.0), Err(refused));
    assert_eq!(detector, before);
}

#[test]
fn a_stored_detector_goes_on_and_a_damaged_one_is_refused() {
    let mut noise = Noise(9);
    let mut detector = steady(&mut noise);
    let stored = serde_json::to_string(&detector).unwrap();
    let mut restored: Detector = serde_json::from_str(&stored).unwrap();
    for minute in 0..500 {
        let (at, value) = (MONDAY.plus_ms(DAY_MS + minute * MINUTE_MS), 10.0 + 3.0 * noise.next());
        let (a, b) = (detector.observe(at, value).unwrap(), restored.observe(at, value).unwrap());
        assert!((a.score - b.score).abs() < 1e-9 && a.event.is_some() == b.event.is_some(), "{a:?} {b:?}");
    }
    let damage = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut value: serde_json::Value = serde_json::from_str(&stored).unwrap();
        change(&mut value);
        serde_json::from_value::<Detector>(value).unwrap_err().to_string()
    };
    let told = [
        damage(&|state| state["values"]["codes"].as_array_mut().unwrap().reverse()),
        damage(&|state| state["trailing"]["next"] = 99.into()),
        damage(&|state| state["trailing"]["hours"] = serde_json::json!([])),
        damage(&|state| state["baseline"]["week"]["hours"] = serde_json::json!([])),
        damage(&|state| state["settings"]["threshold_sd"] = 0.into()),
    ];
    for error in told {
        assert!(error.starts_with("the stored detector is damaged: "), "{error}");
    }
}

proptest! {
    /// Whatever it is fed, a detector says something finite, and what it keeps stays what a stored one must be.
    #[test]
    fn any_stream_is_taken(
        values in prop::collection::vec(prop_oneof![-1e3..1e3, Just(0.0), -3e38..3e38], 1..600),
        step_ms in 1_u64..4 * HOUR_MS,
    ) {
        let mut detector = detector(Settings { trailing_points: 5, memory_points: 200, ..Settings::default() });
        for (point, value) in values.iter().enumerate() {
            let verdict = detector.observe(MONDAY.plus_ms(point as u64 * step_ms), *value).unwrap();
            prop_assert!((0.0..=1.0).contains(&verdict.score), "{verdict:?}");
            prop_assert!(verdict.deviation_sd.is_finite() && verdict.spread > 0.0, "{verdict:?}");
        }
        prop_assert!(Detector::try_from(detector.0).is_ok());
    }

    /// A memory never holds more than it may, stays sorted, and knows its extremes.
    #[test]
    fn a_memory_stays_sound(values in prop::collection::vec(-100_f32..100.0, 1..300)) {
        let mut memory = Memory::new(8);
        for (point, value) in values.iter().enumerate() {
            memory.remember(*value, point as u64, 1_000);
            prop_assert!(memory.is_sound(8), "{memory:?}");
        }
        let least = values.iter().copied().fold(f32::INFINITY, f32::min);
        let greatest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        prop_assert_eq!((memory.distance(least), memory.distance(greatest)), (0.0, 0.0));
    }
}
