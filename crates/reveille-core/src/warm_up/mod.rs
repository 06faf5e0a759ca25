//! Warm-up profiles: what is done in a guest between "its vCPUs run" and "its clients are let in".
//!
//! A profile has two sets of ordered steps: `boot` for a guest that has just booted, and a lighter one, `restore`, for
//! one that goes on from a version, which was taken of a warmed guest. What users write ([`StepSpec`]) is checked once
//! ([`check_set`]) into steps that cannot be wrong. Steps may be run more than once.
//!
//! These are not the behaviour profiles of users and groups (`forecast::profile`).

mod auto;
mod check;

use serde::{Deserialize, Serialize};

use crate::model::Policy;

pub use auto::{AUTO, Fitting, fitting, takes_restore_set};
pub use check::{check_about, check_name, check_set};

/// Longest name of a profile or a step, in bytes.
pub const NAME_BYTES_MAX: usize = 63;
/// Longest text about a profile, in bytes.
pub const ABOUT_BYTES_MAX: usize = 500;
/// Most steps of one set.
pub const STEPS_MAX: usize = 32;
/// Longest time of a step's try, or of a whole set.
pub const TIME_MS_MAX: u64 = 600_000;
/// Most further tries of one step.
pub const RETRIES_MAX: u32 = 10;
/// How often a set is begun from its first step in one start, the first time included.
pub const SET_RUNS_MAX: u32 = 3;
/// Most arguments of a program.
pub const ARGUMENTS_MAX: usize = 32;
/// Longest text of any kind in a step, in bytes.
pub const TEXT_BYTES_MAX: usize = 4_096;
/// Most paths that one HTTP step names.
pub const PATHS_MAX: usize = 256;
/// Most paths that one HTTP step takes from the guest's own list.
pub const LISTED_MAX: usize = 4_096;
/// How often one HTTP step may ask for each path.
pub const TIMES_MAX: u32 = 100;
/// Most requests or connections of one step at a time.
pub const PARALLEL_MAX: u32 = 64;
/// Most MiB that one step reads, of answers or of files.
pub const READ_MIB_MAX: u64 = 65_536;
/// Most file patterns of one step.
pub const FILES_MAX: usize = 64;

/// The part of a start's time, as a divisor, that a set may take at most: the rest is for the start itself.
const SHARE: u64 = 2;

/// Which of a profile's two sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WarmUpSet {
    /// After a boot.
    Boot,
    /// After a restore.
    Restore,
}

impl WarmUpSet {
    /// The word for people, scripts and programs in the guest.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Restore => "restore",
        }
    }

    /// The setting of a policy that bounds the set.
    pub const fn setting(self) -> &'static str {
        match self {
            Self::Boot => "boot_ms_max",
            Self::Restore => "restore_ms_max",
        }
    }

    /// Milliseconds that a policy leaves for the set: its share of what the start may take.
    pub const fn left_ms(self, policy: &Policy) -> u64 {
        let start_ms = match self {
            Self::Boot => policy.boot_ms_max,
            Self::Restore => policy.restore_ms_max,
        };
        start_ms / SHARE
    }
}

/// What is done to warm a guest up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WarmUpProfile {
    /// For whom it is, in a sentence or two.
    pub about: String,
    /// After a boot.
    pub boot: StepSet,
    /// After a restore.
    pub restore: StepSet,
}

impl WarmUpProfile {
    /// The steps of one set.
    pub const fn set(&self, set: WarmUpSet) -> &StepSet {
        match set {
            WarmUpSet::Boot => &self.boot,
            WarmUpSet::Restore => &self.restore,
        }
    }
}

/// Steps, one after another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StepSet {
    /// Longest time that all of them may take together. What is not done by then has failed.
    pub total_ms_max: u64,
    /// The steps.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What it is called in reports.
    pub name: String,
    /// What is done.
    pub work: Work,
    /// Longest time of one try.
    pub timeout_ms: u64,
    /// Further tries before it counts as failed.
    pub retries: u32,
    /// What follows then.
    pub on_failure: OnFailure,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Runs a program in the guest, through its agent.
    Exec(Exec),
    /// Asks the service over HTTP.
    Http(Http),
    /// Opens connections.
    Tcp(Tcp),
    /// Has the guest read files, so that they are in its page cache.
    Prefetch(Prefetch),
    /// Waits until something is so.
    WaitFor(Condition),
}

impl Work {
    /// The word by which it is written.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Http(_) => "http",
            Self::Tcp(_) => "tcp",
            Self::Prefetch(_) => "prefetch",
            Self::WaitFor(_) => "wait_for",
        }
    }
}

/// What a step waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The service's own readiness check passes.
    Ready,
    /// A port completes a handshake.
    Port(u16),
    /// A path is answered with this status, or with any below 400.
    Http {
        /// The port; the service's first TCP port if none is named.
        port: Option<u16>,
        /// Begins with `/`.
        path: String,
        /// The status.
        status: Option<u16>,
    },
    /// A program in the guest ends with status 0.
    Exec(Exec),
}

/// What follows when a step has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The next step.
    #[default]
    Continue,
    /// The start has failed, as if the service had not answered.
    Fail,
    /// The set is begun again from its first step, [`SET_RUNS_MAX`] times in all; then as `fail`.
    Retry,
}

/// A program in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Absolute path.
    pub path: String,
    /// Its arguments; everybody in the guest can read them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
}

/// Requests to the service, each answered with a status below 400.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// The port; the service's first TCP port if none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// What is asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// Where the service lists further paths, one a line; lines that do not begin with `/` are passed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
    /// How often each is asked for.
    pub times: u32,
    /// Requests at a time.
    pub parallel: u32,
    /// Most MiB of answers that are read; what is beyond is not asked for.
    pub mib_max: u64,
}

impl Default for Http {
    fn default() -> Self {
        Self { port: None, paths: Vec::new(), list: None, times: 1, parallel: 4, mib_max: 64 }
    }
}

/// Connections that are open together, and ended in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tcp {
    /// The port; the service's first TCP port if none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// How many.
    pub connections: u32,
    /// Text that is sent over each; it has to be answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send: Option<String>,
    /// The same as hexadecimal bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send_hex: Option<String>,
    /// What has to occur in the answer; without it any byte is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect: Option<String>,
}

impl Default for Tcp {
    fn default() -> Self {
        Self { port: None, connections: 1, send: None, send_hex: None, expect: None }
    }
}

impl Tcp {
    /// The bytes that are sent over each connection.
    pub fn sent(&self) -> Vec<u8> {
        match (&self.send, &self.send_hex) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(hex)) => check::bytes_of_hex(hex).unwrap_or_default(),
            (None, None) => Vec::new(),
        }
    }
}

/// Files that the guest reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prefetch {
    /// Absolute paths; `*`, `?` and `[…]` as the shell has them. What does not exist is passed over.
    pub files: Vec<String>,
    /// Most MiB that are read, in the order of `files`.
    pub mib_max: u64,
}

impl Default for Prefetch {
    fn default() -> Self {
        Self { files: Vec::new(), mib_max: 256 }
    }
}

/// What to wait for, as it is written: exactly one of `ready`, `exec`, and `port` or `path` or both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct WaitFor {
    /// Whether for the service's own readiness check.
    pub ready: bool,
    /// For this port; with `path`, for its answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// For an answer to this path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// With this status; default any below 400.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// For a program that ends with status 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<Exec>,
}

/// A step as it is written: exactly one of `exec`, `http`, `tcp`, `prefetch` and `wait_for`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct StepSpec {
    /// What it is called in reports; default what it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Runs a program in the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<Exec>,
    /// Asks the service over HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
    /// Opens connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Tcp>,
    /// Reads files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefetch: Option<Prefetch>,
    /// Waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_for: Option<WaitFor>,
    /// Longest time of one try; default 5 s, of `wait_for` 30 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Further tries before it counts as failed.
    pub retries: u32,
    /// What follows then.
    pub on_failure: OnFailure,
}

#[cfg(test)]
mod tests;
