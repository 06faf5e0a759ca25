//! What users write of a profile, checked: every fault with its key, its value and what is allowed.

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::{
    ABOUT_BYTES_MAX, ARGUMENTS_MAX, Condition, Exec, FILES_MAX, Http, NAME_BYTES_MAX, PARALLEL_MAX,
    PATHS_MAX, Prefetch, READ_MIB_MAX, RETRIES_MAX, STEPS_MAX, Step, StepSet, StepSpec, TEXT_BYTES_MAX,
    TIME_MS_MAX, TIMES_MAX, Tcp, WaitFor, Work, auto::AUTO,
};
use crate::model::SpecFault;

/// Longest time of a try unless its step says otherwise.
const TIMEOUT_MS: u64 = 5_000;
/// The same of a step that waits.
const WAIT_TIMEOUT_MS: u64 = 30_000;
/// Shortest time that makes sense for a try.
const TIMEOUT_MS_MIN: u64 = 10;
/// Shortest time that makes sense for a set.
const TOTAL_MS_MIN: u64 = 100;

/// Whether a profile may be called so.
///
/// # Errors
/// What would be allowed.
pub fn check_name(name: &str) -> Result<(), String> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name == AUTO {
        return Err(format!("another name: `{AUTO}` has one chosen"));
    }
    let good = !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(fits);
    if good { Ok(()) } else { Err(format!("1 to {NAME_BYTES_MAX} of a to z, 0 to 9 and -")) }
}

/// Faults of what is said about a profile.
pub fn check_about(about: &str) -> Option<SpecFault> {
    let allowed = format!("up to {ABOUT_BYTES_MAX} bytes without control characters");
    let bytes = about.len();
    if bytes > ABOUT_BYTES_MAX {
        return Some(SpecFault::new("about", format!("{bytes} bytes"), allowed));
    }
    about.contains(char::is_control).then(|| SpecFault::new("about", format!("{about:?}"), allowed))
}

/// The set at `place`, such as `boot`. What is faulty is left out of it, and told; `None` are steps that were told before.
pub fn check_set(
    place: &str,
    total_ms_max: u64,
    specs: Vec<Option<StepSpec>>,
    faults: &mut Vec<SpecFault>,
) -> StepSet {
    let mut look = Look { faults };
    look.range(&format!("{place}.total_ms_max"), total_ms_max, TOTAL_MS_MIN..=TIME_MS_MAX);
    look.count(&format!("{place}.step"), specs.len(), 0, STEPS_MAX, "steps");
    let steps = specs.into_iter().take(STEPS_MAX).enumerate();
    let steps = steps.filter_map(|(index, spec)| look.step(&format!("{place}.step[{index}]"), spec?));
    StepSet { total_ms_max, steps: steps.collect() }
}

/// Two hexadecimal digits for each byte; spaces between them do not count.
pub(super) fn bytes_of_hex(hex: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> =
        hex.chars().filter(|digit| *digit != ' ').map(|digit| digit.to_digit(16)).collect();
    let pair = |pair: &[u32]| match pair {
        [high, low] => u8::try_from(high << 4 | low).ok(),
        _ => None,
    };
    digits?.chunks(2).map(pair).collect()
}

/// A look at something that a user wrote.
struct Look<'a> {
    faults: &'a mut Vec<SpecFault>,
}

impl Look<'_> {
    fn fault(&mut self, key: &str, value: impl Display, allowed: impl Into<String>) {
        self.faults.push(SpecFault::new(key, value, allowed));
    }

    fn range(&mut self, key: &str, value: u64, allowed: RangeInclusive<u64>) {
        if !allowed.contains(&value) {
            self.fault(key, value, format!("{} to {}", allowed.start(), allowed.end()));
        }
    }

    fn count(&mut self, key: &str, count: usize, least: usize, most: usize, what: &str) {
        if !(least..=most).contains(&count) {
            self.fault(key, format!("{count} {what}"), format!("{least} to {most} {what}"));
        }
    }

    fn text(&mut self, key: &str, text: &str) {
        if text.len() > TEXT_BYTES_MAX || text.contains('\0') {
            let value = format!("{} bytes", text.len());
            self.fault(key, value, format!("up to {TEXT_BYTES_MAX} bytes, none of them 0"));
        }
    }

    /// An absolute path of a file, or of a URL.
    fn path(&mut self, key: &str, path: &str, example: &str) {
        self.text(key, path);
        if !path.starts_with('/') || path.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
            self.fault(key, format!("{path:?}"), format!("a path such as {example}"));
        }
    }

    fn url(&mut self, key: &str, path: &str) {
        self.path(key, path, "/index.html");
        if path.contains(' ') {
            self.fault(key, format!("{path:?}"), "a path without spaces; write %20");
        }
    }

    fn port(&mut self, key: &str, port: Option<u16>) {
        if port == Some(0) {
            self.fault(key, 0, "1 to 65535");
        }
    }

    fn step(&mut self, place: &str, spec: StepSpec) -> Option<Step> {
        let before = self.faults.len();
        let waits = spec.wait_for.is_some();
        let timeout_ms = spec.timeout_ms.unwrap_or(if waits { WAIT_TIMEOUT_MS } else { TIMEOUT_MS });
        self.range(&format!("{place}.timeout_ms"), timeout_ms, TIMEOUT_MS_MIN..=TIME_MS_MAX);
        self.range(&format!("{place}.retries"), spec.retries.into(), 0..=RETRIES_MAX.into());
        let StepSpec { name, exec, http, tcp, prefetch, wait_for, retries, on_failure, .. } = spec;
        let mut works = Vec::new();
        works.extend(exec.map(|exec| self.exec(&format!("{place}.exec"), exec)).map(Work::Exec));
        works.extend(http.map(|http| self.http(&format!("{place}.http"), http)).map(Work::Http));
        works.extend(tcp.map(|tcp| self.tcp(&format!("{place}.tcp"), tcp)).map(Work::Tcp));
        let prefetch = prefetch.map(|files| self.prefetch(&format!("{place}.prefetch"), files));
        works.extend(prefetch.map(Work::Prefetch));
        let condition = wait_for.and_then(|wait| self.condition(&format!("{place}.wait_for"), wait));
        works.extend(condition.map(Work::WaitFor));
        if works.len() != 1 && self.faults.len() == before {
            let kinds = format!("{} of them", works.len());
            self.fault(place, kinds, "exactly one of exec, http, tcp, prefetch and wait_for");
        }
        let work = works.pop()?;
        let name = name.unwrap_or_else(|| default_name(&work));
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            self.fault(&format!("{place}.name"), format!("{name:?}"), format!("1 to {NAME_BYTES_MAX} bytes"));
        }
        let step = Step { name, work, timeout_ms, retries, on_failure };
        (self.faults.len() == before).then_some(step)
    }

    fn exec(&mut self, place: &str, exec: Exec) -> Exec {
        self.path(&format!("{place}.path"), &exec.path, "/usr/bin/psql");
        self.count(&format!("{place}.args"), exec.args.len(), 0, ARGUMENTS_MAX, "arguments");
        for (index, argument) in exec.args.iter().enumerate() {
            self.text(&format!("{place}.args[{index}]"), argument);
        }
        exec
    }

    fn http(&mut self, place: &str, http: Http) -> Http {
        self.port(&format!("{place}.port"), http.port);
        let least = usize::from(http.list.is_none());
        self.count(&format!("{place}.paths"), http.paths.len(), least, PATHS_MAX, "paths");
        for (index, path) in http.paths.iter().enumerate() {
            self.url(&format!("{place}.paths[{index}]"), path);
        }
        if let Some(list) = &http.list {
            self.url(&format!("{place}.list"), list);
        }
        self.range(&format!("{place}.times"), http.times.into(), 1..=TIMES_MAX.into());
        self.range(&format!("{place}.parallel"), http.parallel.into(), 1..=PARALLEL_MAX.into());
        self.range(&format!("{place}.mib_max"), http.mib_max, 1..=READ_MIB_MAX);
        http
    }

    fn tcp(&mut self, place: &str, tcp: Tcp) -> Tcp {
        self.port(&format!("{place}.port"), tcp.port);
        self.range(&format!("{place}.connections"), tcp.connections.into(), 1..=PARALLEL_MAX.into());
        for (key, text) in [("send", &tcp.send), ("send_hex", &tcp.send_hex), ("expect", &tcp.expect)] {
            let Some(text) = text else { continue };
            let key = format!("{place}.{key}");
            if text.is_empty() || text.len() > TEXT_BYTES_MAX {
                self.fault(&key, format!("{} bytes", text.len()), format!("1 to {TEXT_BYTES_MAX} bytes"));
            }
        }
        if tcp.send_hex.as_ref().is_some_and(|hex| bytes_of_hex(hex).is_none()) {
            let value = tcp.send_hex.as_deref().unwrap_or_default();
            self.fault(&format!("{place}.send_hex"), value, "two hexadecimal digits for each byte");
        }
        if tcp.send.is_some() && tcp.send_hex.is_some() {
            self.fault(&format!("{place}.send_hex"), "beside send", "one of send and send_hex");
        }
        tcp
    }

    fn prefetch(&mut self, place: &str, prefetch: Prefetch) -> Prefetch {
        self.count(&format!("{place}.files"), prefetch.files.len(), 1, FILES_MAX, "patterns");
        for (index, file) in prefetch.files.iter().enumerate() {
            self.path(&format!("{place}.files[{index}]"), file, "/var/cache/app/*");
        }
        self.range(&format!("{place}.mib_max"), prefetch.mib_max, 1..=READ_MIB_MAX);
        prefetch
    }

    fn condition(&mut self, place: &str, wait: WaitFor) -> Option<Condition> {
        let WaitFor { ready, port, path, status, exec } = wait;
        self.port(&format!("{place}.port"), port);
        if let Some(path) = &path {
            self.url(&format!("{place}.path"), path);
        }
        if let Some(status) = status {
            self.range(&format!("{place}.status"), status.into(), 100..=599);
            if path.is_none() {
                self.fault(&format!("{place}.status"), status, "beside a path");
            }
        }
        let exec = exec.map(|exec| self.exec(&format!("{place}.exec"), exec));
        match (ready, path, port, exec) {
            (true, None, None, None) => Some(Condition::Ready),
            (false, Some(path), port, None) => Some(Condition::Http { port, path, status }),
            (false, None, Some(port), None) => Some(Condition::Port(port)),
            (false, None, None, Some(exec)) => Some(Condition::Exec(exec)),
            (_, _, _, _) => {
                self.fault(place, "(as a whole)", "ready = true, or exec, or port or path or both");
                None
            }
        }
    }
}

/// What a step is called that has no name.
fn default_name(work: &Work) -> String {
    let mut name = match work {
        Work::Exec(exec) => format!("exec {}", exec.path),
        Work::Http(_) => "http".to_owned(),
        Work::Tcp(_) => "tcp".to_owned(),
        Work::Prefetch(_) => "prefetch".to_owned(),
        Work::WaitFor(_) => "wait".to_owned(),
    };
    while name.len() > NAME_BYTES_MAX {
        name.pop();
    }
    name
}
