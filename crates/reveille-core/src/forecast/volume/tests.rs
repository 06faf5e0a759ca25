//! Stories of forecasts: what a user would miss.

use std::sync::Arc;

use super::score::{covered, mae};
use super::*;

const HOUR_S: i64 = 3_600;

/// Noise that is the same each time, uniform within ±1.
fn noise(at: usize) -> f64 {
    let mut bits = (at as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (bits >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// Visits by the hour: more by day, half of it at weekends.
fn visits(at: usize) -> f64 {
    let day = 1.2 + (at as f64 * std::f64::consts::TAU / 24.0).sin();
    let week = if at / 24 % 7 >= 5 { 0.5 } else { 1.0 };
    100.0 * day * week
}

fn series(step_s: i64, values: Vec<f64>) -> Series {
    Series::new(0, step_s, values).unwrap()
}

#[test]
fn day_and_week_are_forecast_with_intervals_that_hold() {
    let truth: Vec<f64> = (0..1_048).map(|at| visits(at) + 12.0 * noise(at)).collect();
    let history = series(HOUR_S, truth[..1_000].to_vec());
    let chosen = choose(&history, 48).unwrap();
    assert_eq!(chosen.seasons(), Seasons { short: 24, long: Some(168) });
    let forecast = chosen.forecast(&history, 48, &LEVELS).unwrap();
    let actual = &truth[1_000..];
    assert!(mae(forecast.point(), actual) < 9.0, "noise alone is 6: {}", mae(forecast.point(), actual));
    let held = covered(forecast.path(2), forecast.path(6), actual);
    assert!((0.65..=0.97).contains(&held), "an interval of 80 % held {held}");
    let width = forecast.path(6)[0] - forecast.path(2)[0];
    assert!(width < 45.0, "an interval that holds by being wide says nothing: {width}");
    for coverage in chosen.calibration().coverage() {
        assert!((coverage.measured - coverage.nominal).abs() < 0.1, "{coverage:?}");
    }
    // With nine quantile shapes it cannot be next to nothing, and ten times its history is too much for a name.
    assert!((1_000..80_000).contains(&chosen.size_bytes()), "{} bytes", chosen.size_bytes());
}

#[test]
fn quantiles_never_cross_and_never_fall_below_nothing() {
    // Nothing by night, few by day.
    let count = |at: usize| if at % 24 < 12 { 0.0 } else { (3.0 + 3.0 * noise(at)).round() };
    let history = series(HOUR_S, (0..700).map(count).collect());
    let forecast = choose(&history, 24).unwrap().forecast(&history, 24, &LEVELS).unwrap();
    for ahead in 0..24 {
        let at: Vec<f64> = (0..LEVELS.len()).map(|level| forecast.path(level)[ahead]).collect();
        assert!(at.windows(2).all(|pair| pair[0] <= pair[1]), "{ahead}: {at:?}");
        assert!(at.iter().all(|&value| value >= 0.0 && value.is_finite()), "{ahead}: {at:?}");
    }
}

#[test]
fn the_later_window_of_a_series_keeps_its_hours() {
    // Models chosen on one window go on from a later one that begins at another hour.
    let truth: Vec<f64> = (0..1_300).map(visits).collect();
    let chosen = choose(&series(HOUR_S, truth[..900].to_vec()), 24).unwrap();
    let whole = series(HOUR_S, truth.clone());
    let later = whole.between(231, 1_231);
    let forecast = chosen.forecast(&later, 24, &LEVELS).unwrap();
    let error = mae(forecast.point(), &truth[1_231..1_255]);
    assert!(error < 3.0, "{error} of a mean of 100");
    for transform in [Transform::Identity, Transform::Log] {
        let seasons = Seasons { short: 24, long: Some(168) };
        let model = Autoregression::harmonic(seasons, transform);
        let fitted = model.fit(Window { first: 0, values: &truth[..900] }).unwrap();
        let path = fitted.path(Window { first: 231, values: &truth[231..1_231] }, 24).unwrap();
        assert!(mae(&path, &truth[1_231..1_255]) < 8.0, "{}: {path:?}", model.name());
    }
}

#[test]
fn what_was_not_seen_is_not_taken_for_silence() {
    let mut values: Vec<f64> = (0..800).map(|at| visits(at) + 5.0 * noise(at)).collect();
    values[500..560].fill(f64::NAN);
    values[790..800].fill(f64::NAN);
    let history = series(HOUR_S, values);
    let forecast = choose(&history, 24).unwrap().forecast(&history, 24, &LEVELS).unwrap();
    let actual: Vec<f64> = (800..824).map(visits).collect();
    let error = mae(forecast.point(), &actual);
    assert!(error < 15.0, "{error} of a mean of 100");
}

/// Its paths are too high, or no numbers, or not as long as they should be.
#[derive(Clone, Copy)]
struct Broken(f64, usize);

impl Model for Broken {
    fn name(&self) -> String {
        "broken".to_owned()
    }

    fn fit(&self, _: Window<'_>) -> Result<Box<dyn Fitted>, Fault> {
        Ok(Box::new(*self))
    }
}

impl Fitted for Broken {
    fn path(&self, _: Window<'_>, horizon: usize) -> Result<Vec<f64>, Fault> {
        Ok(vec![self.0; horizon - self.1])
    }
}

#[test]
fn a_model_that_gives_nonsense_loses_its_place() {
    let history = series(HOUR_S, (0..400).map(visits).collect());
    let seasons = seasons_of(&history);
    for broken in [Broken(f64::NAN, 0), Broken(1e300, 0), Broken(100.0, 1)] {
        let mut models = candidates(seasons);
        models.push(Arc::new(broken));
        let chosen = choose_among(&models, seasons, &history, 24).unwrap();
        assert!(chosen.members().iter().all(|member| member.name() != "broken"), "{}", broken.0);
    }
    let alone: Vec<Arc<dyn Model>> = vec![Arc::new(Broken(f64::NAN, 0))];
    assert_eq!(choose_among(&alone, seasons, &history, 24).err(), Some(Fault::NoModel));
}

#[test]
fn a_short_history_has_a_plain_forecast_and_a_shorter_one_a_reason() {
    let history = series(60, vec![3.0, 4.0, 3.0, 5.0, 4.0, 3.0, 4.0, 4.0, 5.0, 3.0, 4.0, 4.0]);
    let forecast = choose(&history, 30).unwrap().forecast(&history, 30, &LEVELS).unwrap();
    assert!(forecast.point().iter().all(|value| (3.0..=5.0).contains(value)), "{forecast:?}");
    let fault = choose(&series(60, vec![3.0; 3]), 30).err();
    assert_eq!(fault, Some(Fault::TooShort { needed: 8, present: 3 }));
}

#[test]
fn constants_and_silence_are_forecast_as_such() {
    for value in [0.0, 7.0] {
        let history = series(HOUR_S, vec![value; 500]);
        let forecast = choose(&history, 24).unwrap().forecast(&history, 24, &LEVELS).unwrap();
        for level in 0..LEVELS.len() {
            assert!(forecast.path(level).iter().all(|at| (at - value).abs() < 1e-6), "{value}: {forecast:?}");
        }
    }
}

#[test]
fn minutes_are_forecast_by_blocks_a_week_at_a_time() {
    let by_minute = |at: usize| visits(at / 60) + 20.0 * noise(at);
    let history = series(60, (0..5 * 1_440).map(by_minute).collect());
    let chosen = choose(&history, 1_440).unwrap();
    assert_eq!(chosen.seasons(), Seasons { short: 1_440, long: None });
    let forecast = chosen.forecast(&history, 1_440, &LEVELS).unwrap();
    assert_eq!(forecast.path(4).len(), 1_440);
    // What is known now of the day after: the season, not that the weekend begins.
    let shape: Vec<f64> = (5 * 1_440..6 * 1_440).map(|at| 2.0 * visits(at / 60)).collect();
    assert!(mae(forecast.point(), &shape) < 15.0, "{}", mae(forecast.point(), &shape));
}

#[test]
fn a_season_that_no_calendar_has_is_found() {
    let values: Vec<f64> =
        (0..600).map(|at| if at % 17 < 4 { 50.0 } else { 5.0 } + 3.0 * noise(at)).collect();
    assert_eq!(detect(&values), Some(17));
    assert_eq!(seasons_of(&series(7_000, values)), Seasons { short: 17, long: None });
    assert_eq!(detect(&(0..600).map(noise).collect::<Vec<f64>>()), None);
    assert_eq!(by_calendar(60), Some(Seasons { short: 1_440, long: Some(10_080) }));
    assert_eq!(by_calendar(86_400), Some(Seasons { short: 7, long: None }));
}

#[test]
fn what_is_out_of_range_is_refused_by_name() {
    assert_eq!(Series::new(0, 0, Vec::new()).err(), Some(Fault::Step { step_s: 0 }));
    let infinite = Series::new(0, 60, vec![1.0, f64::INFINITY]).err();
    assert_eq!(infinite, Some(Fault::Value { index: 1, value: f64::INFINITY }));
    let history = series(HOUR_S, (0..400).map(visits).collect());
    assert_eq!(choose(&history, 0).err(), Some(Fault::Horizon { steps: 0 }));
    assert_eq!(choose(&history, HORIZON_MAX + 1).err(), Some(Fault::Horizon { steps: HORIZON_MAX + 1 }));
    let chosen = choose(&history, 24).unwrap();
    for levels in [&[][..], &[0.5, 0.5], &[0.9, 0.1], &[0.0], &[1.0], &[f64::NAN]] {
        assert_eq!(chosen.forecast(&history, 24, levels).err(), Some(Fault::Levels), "{levels:?}");
    }
}

#[test]
fn estimating_anew_follows_what_has_changed() {
    // The day turns into its opposite; the members stay, their coefficients follow.
    let old: Vec<f64> = (0..600).map(visits).collect();
    let turned = |at: usize| 250.0 - visits(at);
    let mut chosen = choose(&series(HOUR_S, old), 24).unwrap();
    let new = series(HOUR_S, (0..600).map(turned).collect());
    let names = |chosen: &Chosen| chosen.members().iter().map(Member::name).collect::<Vec<_>>();
    let before = names(&chosen);
    chosen.refit(&new);
    assert_eq!(names(&chosen), before);
    let forecast = chosen.forecast(&new, 24, &LEVELS).unwrap();
    let actual: Vec<f64> = (600..624).map(turned).collect();
    assert!(mae(forecast.point(), &actual) < 15.0, "{}", mae(forecast.point(), &actual));
}

#[test]
fn levels_of_a_model_that_cross_are_put_in_order_and_nonsense_is_refused() {
    let quantiles = Quantiles::new(&[0.1, 0.9], vec![5.0, 5.0], vec![6.0, 1.0, 4.0, 9.0]).unwrap();
    assert_eq!((quantiles.path(0), quantiles.path(1)), (&[4.0, 1.0][..], &[6.0, 9.0][..]));
    let infinite = Quantiles::new(&[0.5], vec![1.0], vec![f64::INFINITY]);
    assert_eq!(infinite, Err(Fault::NotFinite));
    assert!(Quantiles::new(&[0.5], vec![1.0], vec![1.0, 2.0]).is_err());
}

#[test]
fn arima_finds_the_orders_of_what_it_is_given() {
    // ARIMA(1, 0, 0)(0, 1, 0) of a season of 12: differences keep 0.8 of the last one.
    let mut values: Vec<f64> = (0..12).map(|at| f64::from(at) * 10.0).collect();
    let mut difference = 0.0;
    for at in 12..600 {
        difference = 0.8 * difference + noise(at);
        values.push(values[at - 12] + difference);
    }
    let mut kept = difference;
    let mut ahead = |at: usize| {
        kept *= 0.8;
        values[at - 12] + kept
    };
    let expected: Vec<f64> = (600..612).map(&mut ahead).collect();
    let model = Arima { season: 12, transform: Transform::Identity };
    let window = Window { first: 0, values: &values };
    let path = model.fit(window).unwrap().path(window, 12).unwrap();
    assert!(mae(&path, &expected) < 0.3, "{path:?} for {expected:?}");
}

#[test]
fn no_path_runs_away() {
    // A burst in the last hour, far beyond what was there: multiplicative models would go on with it.
    let mut values: Vec<f64> = (0..700).map(|at| visits(at) + 5.0 * noise(at)).collect();
    values[695..700].copy_from_slice(&[500.0, 2_000.0, 8_000.0, 32_000.0, 128_000.0]);
    let history = series(HOUR_S, values);
    let forecast = choose(&history, 48).unwrap().forecast(&history, 48, &LEVELS).unwrap();
    assert!(forecast.point().iter().all(|&value| value <= 2.0 * 128_000.0), "{:?}", forecast.point());
    let seasons = seasons_of(&history);
    for model in candidates(seasons) {
        // Some have no forecast of it, which is as well.
        let Ok(alone) = choose_among(std::slice::from_ref(&model), seasons, &history, 48) else { continue };
        let path = alone.forecast(&history, 48, &LEVELS).unwrap();
        assert!(path.point().iter().all(|&value| value <= 2.0 * 128_000.0), "{}", model.name());
    }
}
