//! How likely it is that a client of the next hour finds a service failing (F4), from what is foreseen, its health and its past.
//!
//! ```text
//!   score = demand × (1 − (1 − failure) × (1 − health) × (1 − load))
//!
//!   demand   somebody comes within the hour                       1 − exp(−expected arrivals)
//!   failure  its wake fails, if it sleeps; it is lost, if it runs  (failed + ½) ÷ (wakes + 1); 1 − exp(−losses an hour)
//!   health   it is down now                                       by the verdict of its probes
//!   load     more is wanted than it is used to                    1 − threshold ÷ deviation, beyond the threshold
//! ```
//!
//! Each part is a probability, or is read as one, and is shown beside the score. Failures are counted with half a failure and half a success
//! more (Jeffreys' prior; Brown, Cai and DasGupta, Statistica Sinica 13, 2003): a service without a past is neither sure nor
//! lost. That a load beyond the usual is too much is not known of any one service: what is said is how far beyond it is.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::health::Health;

/// For how long ahead risk is told, in hours.
pub const AHEAD_HOURS: f64 = 1.0;

/// Wakes and losses of a time that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Past {
    /// Wakes that have ended.
    pub wakes: u64,
    /// Of these the failed ones.
    pub failed: u64,
    /// Times that it was lost while it ran.
    pub losses: u64,
    /// Hours that it ran in that time.
    pub hours: f64,
}

/// What risk rests on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Inputs {
    /// Arrivals that are expected within [`AHEAD_HOURS`]; `None` if nothing is foreseen.
    pub arrivals: Option<f64>,
    /// Somebody uses it now.
    pub in_use: bool,
    /// It runs; otherwise a client has to wait for a wake.
    pub runs: bool,
    /// The verdict of its probes; down also if starting it was given up.
    pub health: Health,
    /// Its past.
    pub past: Past,
    /// How far its load is above what is usual, in standard deviations, while an anomaly is under way.
    pub deviation_sd: Option<f64>,
    /// From where on that is an anomaly.
    pub threshold_sd: f64,
}

/// What is said of a service.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Risk {
    /// In [0, 1].
    pub score: f64,
    /// Of what.
    pub parts: [Part; 4],
}

/// A part of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// Which one.
    pub what: What,
    /// In [0, 1].
    pub probability: f64,
    /// By which numbers.
    pub because: Because,
}

/// Which part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Somebody comes.
    Demand,
    /// A wake fails, or it is lost.
    Failure,
    /// It is down.
    Health,
    /// More is wanted than usual.
    Load,
}

/// The numbers of a part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Because {
    /// It is used now.
    InUse,
    /// So many arrivals are expected.
    Expected(f64),
    /// Nothing is foreseen, so somebody may come at any time.
    NotForeseen,
    /// So many of its wakes failed.
    Wakes {
        /// These.
        failed: u64,
        /// Of these.
        wakes: u64,
    },
    /// So often it was lost while it ran.
    Losses {
        /// Times.
        losses: u64,
        /// In so many hours that it ran.
        hours: f64,
    },
    /// The verdict on it.
    Seen(Health),
    /// The load beside the usual, in standard deviations, and what is an anomaly.
    Beyond {
        /// Above what is usual.
        deviation_sd: f64,
        /// From where on it is an anomaly.
        threshold_sd: f64,
    },
    /// No anomaly is under way.
    Usual,
}

/// The risk of a service. What is no number counts as nothing known.
#[must_use]
pub fn risk(inputs: &Inputs) -> Risk {
    let parts = [demand(inputs), failure(inputs), health(inputs), load(inputs)];
    let [demand, failing @ ..] = parts.map(|part| part.probability);
    let holds: f64 = failing.iter().map(|probability| 1.0 - probability).product();
    Risk { score: demand * (1.0 - holds), parts }
}

fn part(what: What, probability: f64, because: Because) -> Part {
    let probability = if probability.is_nan() { 0.0 } else { probability.clamp(0.0, 1.0) };
    Part { what, probability, because }
}

fn demand(inputs: &Inputs) -> Part {
    let (probability, because) = match inputs.arrivals.filter(|arrivals| *arrivals >= 0.0) {
        _ if inputs.in_use => (1.0, Because::InUse),
        Some(arrivals) => (1.0 - (-arrivals).exp(), Because::Expected(arrivals)),
        None => (1.0, Because::NotForeseen),
    };
    part(What::Demand, probability, because)
}

fn failure(inputs: &Inputs) -> Part {
    let Past { wakes, failed, losses, hours } = inputs.past;
    if inputs.runs {
        let per_hour = (losses as f64 + 0.5) / (hours.max(0.0) + AHEAD_HOURS);
        let because = Because::Losses { losses, hours };
        // Half a loss more is too much to say of a service that never was lost and ran for minutes only.
        let per_hour = if losses == 0 { per_hour.min(0.5 / (24.0 * AHEAD_HOURS)) } else { per_hour };
        return part(What::Failure, 1.0 - (-per_hour * AHEAD_HOURS).exp(), because);
    }
    let share = (failed.min(wakes) as f64 + 0.5) / (wakes as f64 + 1.0);
    // Without a past it is taken to be as sure as one with ten wakes and no failure.
    let share = if wakes == 0 { 0.5 / 11.0 } else { share };
    part(What::Failure, share, Because::Wakes { failed, wakes })
}

fn health(inputs: &Inputs) -> Part {
    let probability = match inputs.health {
        Health::Up | Health::Unknown => 0.0,
        Health::Down => 1.0,
    };
    part(What::Health, probability, Because::Seen(inputs.health))
}

fn load(inputs: &Inputs) -> Part {
    let threshold_sd = inputs.threshold_sd;
    match inputs.deviation_sd {
        None => part(What::Load, 0.0, Because::Usual),
        Some(deviation_sd) => {
            let beyond = if deviation_sd > threshold_sd { 1.0 - threshold_sd / deviation_sd } else { 0.0 };
            part(What::Load, beyond, Because::Beyond { deviation_sd, threshold_sd })
        }
    }
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse => f.write_str("it is in use"),
            Self::Expected(arrivals) => write!(f, "{arrivals:.2} arrivals are expected within the hour"),
            Self::NotForeseen => f.write_str("nothing is foreseen of it, so somebody may come at any time"),
            Self::Wakes { failed, wakes } => write!(f, "{failed} of its last {wakes} wakes failed"),
            Self::Losses { losses, hours } => {
                write!(f, "it was lost {losses} times in {hours:.1} h that it ran")
            }
            Self::Seen(Health::Up) => f.write_str("nothing is wrong with it"),
            Self::Seen(Health::Unknown) => f.write_str("it sleeps, or nobody has judged whether it serves"),
            Self::Seen(Health::Down) => f.write_str("it is down, or cannot be started"),
            Self::Beyond { deviation_sd, threshold_sd } => write!(
                f,
                "its load is {deviation_sd:.1} standard deviations beside the usual; {threshold_sd} are an anomaly"
            ),
            Self::Usual => f.write_str("no anomaly of its load is under way"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs() -> Inputs {
        Inputs {
            arrivals: Some(0.5),
            in_use: false,
            runs: false,
            health: Health::Up,
            past: Past { wakes: 40, failed: 1, losses: 0, hours: 0.0 },
            deviation_sd: Some(0.4),
            threshold_sd: 3.0,
        }
    }

    fn score(inputs: Inputs) -> f64 {
        let found = risk(&inputs);
        assert!((0.0..=1.0).contains(&found.score), "{found:?}");
        assert!(found.parts.iter().all(|part| (0.0..=1.0).contains(&part.probability)), "{found:?}");
        found.score
    }

    #[test]
    fn the_score_is_that_somebody_comes_and_something_fails() {
        let found = risk(&inputs());
        let (demand, failure) = (1.0 - (-0.5_f64).exp(), 1.5 / 41.0);
        assert!((found.score - demand * failure).abs() < 1e-12, "{found:?}");
        let told: Vec<String> = found.parts.iter().map(|part| part.because.to_string()).collect();
        assert_eq!(
            told,
            [
                "0.50 arrivals are expected within the hour",
                "1 of its last 40 wakes failed",
                "nothing is wrong with it",
                "its load is 0.4 standard deviations beside the usual; 3 are an anomaly",
            ]
        );
    }

    #[test]
    fn each_input_moves_it_the_right_way() {
        let usual = score(inputs());
        let past = |wakes, failed| Past { wakes, failed, ..Past::default() };
        for (what, worse) in [
            ("more demand", Inputs { arrivals: Some(3.0), ..inputs() }),
            ("use", Inputs { in_use: true, ..inputs() }),
            ("more failures", Inputs { past: past(40, 20), ..inputs() }),
            ("down", Inputs { health: Health::Down, ..inputs() }),
            ("more load", Inputs { deviation_sd: Some(9.0), ..inputs() }),
        ] {
            assert!(score(worse) > 1.5 * usual, "{what}");
        }
        assert!(score(Inputs { arrivals: Some(0.0), ..inputs() }) == 0.0, "nobody comes");
        assert!(score(Inputs { deviation_sd: Some(-20.0), ..inputs() }) == usual, "silence is no load");
        // What is down fails whoever comes.
        let down = Inputs { health: Health::Down, in_use: true, ..inputs() };
        assert!(score(down) == 1.0);
    }

    #[test]
    fn who_has_no_past_is_neither_sure_nor_lost() {
        let new = score(Inputs { past: Past::default(), in_use: true, ..inputs() });
        assert!((0.01..0.1).contains(&new), "{new}");
        let runs = Inputs { runs: true, in_use: true, past: Past::default(), ..inputs() };
        assert!((0.001..0.05).contains(&score(runs)), "{}", score(runs));
        let lost = Inputs { past: Past { losses: 5, hours: 10.0, ..Past::default() }, ..runs };
        assert!(score(lost) > 0.3);
        let odd = Inputs { arrivals: Some(f64::NAN), deviation_sd: Some(f64::NAN), ..inputs() };
        assert!(score(odd) > 0.0, "what is no number is not known");
    }
}
