//! Warm-up profiles, and what was last done by one.

use reveille_core::warm_up::{OnFailure, Step, StepSet, WarmUpProfile, WarmUpSet};
use serde::{Deserialize, Serialize};

use crate::time::Time;

/// How a set, or one of its steps, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WarmUpResult {
    /// All of it is done.
    Done,
    /// Of a set: something failed without which the start went on.
    Incomplete,
    /// It failed; of a set: and with it the start.
    Failed,
    /// Of a step: there was no time left for it.
    Skipped,
}

impl WarmUpResult {
    /// The word for people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// One run of a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmUpReport {
    /// The profile.
    pub profile: String,
    /// Why that one, if it was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Which set.
    pub set: WarmUpSet,
    /// When it began.
    pub at: Time,
    /// What it took.
    pub took_ms: u64,
    /// How often it was begun from its first step.
    pub runs: u32,
    /// How it ended.
    pub result: WarmUpResult,
    /// The steps of the last of its runs.
    pub steps: Vec<WarmUpStepReport>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmUpStepReport {
    /// What it is called.
    pub name: String,
    /// How it ended.
    pub result: WarmUpResult,
    /// How often it was tried.
    pub tries: u32,
    /// What it took.
    pub took_ms: u64,
    /// What came of it, or why it failed.
    pub detail: String,
}

/// A warm-up profile that services can name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileReport {
    /// Its name.
    pub name: String,
    /// Whether every daemon has it; otherwise it is a user's.
    pub built_in: bool,
    /// For whom it is.
    pub about: String,
    /// What is done after a boot.
    pub boot: StepSetReport,
    /// What is done after a restore.
    pub restore: StepSetReport,
}

/// How long a set of a service's profile may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmUpTime {
    /// Which one.
    pub set: WarmUpSet,
    /// As the profile has it, in ms.
    pub total_ms_max: u64,
    /// As it is for this service: not more than the service's policy leaves for it, in ms.
    pub effective_ms_max: u64,
}

/// The steps of one set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepSetReport {
    /// Longest time that they may take together.
    pub total_ms_max: u64,
    /// The steps, in order.
    pub steps: Vec<StepReport>,
}

/// One step of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepReport {
    /// What it is called.
    pub name: String,
    /// `exec`, `http`, `tcp`, `prefetch` or `wait_for`.
    pub does: String,
    /// Longest time of one try.
    pub timeout_ms: u64,
    /// Further tries before it counts as failed.
    pub retries: u32,
    /// What follows then.
    pub on_failure: OnFailure,
}

impl ProfileReport {
    /// What there is to say of a profile.
    pub fn of(name: &str, built_in: bool, profile: &WarmUpProfile) -> Self {
        let WarmUpProfile { about, boot, restore } = profile;
        let (boot, restore) = (StepSetReport::of(boot), StepSetReport::of(restore));
        Self { name: name.to_owned(), built_in, about: about.clone(), boot, restore }
    }
}

impl StepSetReport {
    fn of(set: &StepSet) -> Self {
        let step = |step: &Step| StepReport {
            name: step.name.clone(),
            does: step.work.word().to_owned(),
            timeout_ms: step.timeout_ms,
            retries: step.retries,
            on_failure: step.on_failure,
        };
        Self { total_ms_max: set.total_ms_max, steps: set.steps.iter().map(step).collect() }
    }
}
