//! What was last done to warm a service's guest up.

use reveille_core::warm_up::WarmUpSet;
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
