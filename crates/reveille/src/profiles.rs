//! Warm-up profiles: those that are built in (`etc/profiles/`) and those of a directory of the user's, read and checked.
//!
//! A profile is a TOML file `NAME.toml`:
//!
//! ```toml
//! about = "…"
//! [boot]
//! total_ms_max = 30000
//! [[boot.step]]
//! wait_for = { ready = true }
//! [[boot.step]]
//! http = { list = "/.well-known/warm-up.txt", parallel = 8 }
//! on_failure = "fail"
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use reveille_api::types::{ProfileReport, WarmUpTime};
use reveille_core::model::{ServiceSpec, SpecFault};
use reveille_core::warm_up::{
    AUTO, Exec, Fitting, Http, Prefetch, StepSet, StepSpec, Tcp, WaitFor, WarmUpProfile, WarmUpSet,
    check_about, check_name, check_set, fitting,
};
use reveille_dns::named_file;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::config::quote;

/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 256 << 10;
/// Most files in a user's directory.
const FILES_MAX: usize = 1_024;
/// Longest time of a boot set unless it says otherwise.
const BOOT_MS: u64 = 30_000;
/// The same of a restore set.
const RESTORE_MS: u64 = 2_000;
/// What a file of profiles is called.
const EXTENSION: &str = "toml";

/// The profiles that every daemon has.
pub const BUILT_IN: [(&str, &str); 3] = [
    ("cache-heavy", include_str!("../../../etc/profiles/cache-heavy.toml")),
    ("database-heavy", include_str!("../../../etc/profiles/database-heavy.toml")),
    ("compute-heavy", include_str!("../../../etc/profiles/compute-heavy.toml")),
];

/// Where a profile comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// It is compiled in.
    BuiltIn,
    /// It is in the user's directory.
    User,
}

/// A profile with what it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Where it comes from.
    pub source: Source,
    /// The file's text.
    pub text: String,
    /// What it says.
    pub profile: WarmUpProfile,
}

/// All profiles, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profiles(BTreeMap<String, Known>);

impl Default for Profiles {
    /// Those that are built in.
    fn default() -> Self {
        let known = |(name, text): (&str, &str)| {
            // A test shows that they have no faults.
            let (profile, _) = read(text);
            (name.to_owned(), Known { source: Source::BuiltIn, text: text.to_owned(), profile })
        };
        Self(BUILT_IN.into_iter().map(known).collect())
    }
}

impl Profiles {
    /// Those that are built in, and those of the directory.
    ///
    /// # Errors
    /// Every fault of every file, each with the file's path in its key.
    pub fn load(dir: &Path) -> Result<Self, Vec<SpecFault>> {
        let (mut all, mut faults) = (Self::default(), Vec::new());
        let unreadable = |error: &io::Error| {
            let allowed = format!("a directory with profiles, or \"\": {error}");
            SpecFault::new("warm_up.profiles_dir", dir.display(), allowed)
        };
        let mut paths = Vec::new();
        for entry in fs::read_dir(dir).map_err(|error| vec![unreadable(&error)])? {
            let path = entry.map_err(|error| vec![unreadable(&error)])?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                paths.push(path);
            }
            if paths.len() > FILES_MAX {
                let allowed = format!("up to {FILES_MAX} profiles");
                return Err(vec![SpecFault::new("warm_up.profiles_dir", dir.display(), allowed)]);
            }
        }
        paths.sort();
        for path in paths {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            match Known::of_file(&path, &name) {
                Ok(known) => {
                    all.0.insert(name, known);
                }
                Err(of_file) => faults.extend(of_file),
            }
        }
        if faults.is_empty() { Ok(all) } else { Err(faults) }
    }

    /// These and one more, of the user's; what is faulty in it is left out.
    #[must_use]
    pub fn with(mut self, name: &str, text: &str) -> Self {
        let (profile, _) = read(text);
        self.0.insert(name.to_owned(), Known { source: Source::User, text: text.to_owned(), profile });
        self
    }

    /// What is wrong with the profile that a service names.
    pub fn fault_of(&self, spec: &ServiceSpec) -> Option<SpecFault> {
        let name = spec.profile.as_deref()?;
        // What is no name at all is told elsewhere.
        if name == AUTO || self.0.contains_key(name) || check_name(name).is_err() {
            return None;
        }
        let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
        Some(SpecFault::new("profile", name, format!("{AUTO}, {}", known.join(", "))))
    }

    /// How long each set of the service's profile may take, those without steps left out; empty if it has no profile, or there
    /// is none of that name.
    pub fn times_of(&self, spec: &ServiceSpec) -> Vec<WarmUpTime> {
        let Some(known) = Self::of(spec).and_then(|(name, _)| self.get(&name)) else { return Vec::new() };
        let sets = [WarmUpSet::Boot, WarmUpSet::Restore].map(|set| (set, known.profile.set(set)));
        let sets = sets.into_iter().filter(|(_, steps)| !steps.steps.is_empty());
        let times = sets.map(|(set, steps)| WarmUpTime {
            set,
            total_ms_max: steps.total_ms_max,
            effective_ms_max: steps.total_ms_max.min(set.left_ms(&spec.policy)),
        });
        times.collect()
    }

    /// Each set of the service's profile that is longer than its policy leaves.
    pub fn too_long(&self, spec: &ServiceSpec) -> Vec<SpecFault> {
        let name = Self::of(spec).map(|(name, _)| name).unwrap_or_default();
        let times = self.times_of(spec).into_iter();
        let cut = times.filter(|time| time.effective_ms_max < time.total_ms_max).map(|time| {
            let WarmUpTime { set, total_ms_max, effective_ms_max } = time;
            let (word, setting) = (set.word(), set.setting());
            let allowed = format!(
                "a profile whose {word} set takes {effective_ms_max} ms at most, which is what policy.{setting} leaves: of \
                 its {total_ms_max} ms it gets no more"
            );
            SpecFault::new("profile", &name, allowed)
        });
        cut.collect()
    }

    /// The profile of that name.
    pub fn get(&self, name: &str) -> Option<&Known> {
        self.0.get(name)
    }

    /// What there is to say of all of them, by name.
    pub fn reports(&self) -> Vec<ProfileReport> {
        self.iter().map(|(name, known)| known.report(name)).collect()
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Known)> {
        self.0.iter().map(|(name, known)| (name.as_str(), known))
    }

    /// The profile of a service: its name, and why that one if it was chosen. `None` if the service has none.
    pub fn of(spec: &ServiceSpec) -> Option<(String, Option<String>)> {
        match spec.profile.as_deref()? {
            AUTO => {
                let Fitting { profile, why } = fitting(spec);
                Some((profile.to_owned(), Some(why)))
            }
            named => Some((named.to_owned(), None)),
        }
    }
}

impl Known {
    /// What there is to say of it under that name.
    pub fn report(&self, name: &str) -> ProfileReport {
        ProfileReport::of(name, self.source == Source::BuiltIn, &self.profile)
    }

    /// Reads and checks a file of the user's that is to be called `name`.
    ///
    /// # Errors
    /// Every fault, each with the file's path in its key.
    pub fn of_file(path: &Path, name: &str) -> Result<Self, Vec<SpecFault>> {
        let place = path.display();
        let mut faults = Vec::new();
        if let Err(allowed) = check_name(name) {
            faults.push(SpecFault::new(&format!("{place}: the name"), format!("{name:?}"), allowed));
        }
        if BUILT_IN.iter().any(|(built_in, _)| *built_in == name) {
            let allowed = "another name: this one is built in; copy it under your own";
            faults.push(SpecFault::new(&format!("{place}: the name"), name, allowed));
        }
        let text = named_file::read_text(path, FILE_BYTES_MAX)
            .map_err(|error| vec![SpecFault::new(&place.to_string(), "(not read)", error.to_string())])?;
        let (profile, of_text) = read(&text);
        let named = |fault: SpecFault| SpecFault { key: format!("{place}: {}", fault.key), ..fault };
        faults.extend(of_text.into_iter().map(named));
        if faults.is_empty() { Ok(Self { source: Source::User, text, profile }) } else { Err(faults) }
    }
}

/// The profile that a text describes, and all its faults; what is faulty is left out.
pub fn read(text: &str) -> (WarmUpProfile, Vec<SpecFault>) {
    let table: Table = match text.parse() {
        Ok(table) => table,
        Err(error) => {
            let fault = SpecFault::new("the text", "no TOML", quote::syntax(text, &error));
            return (WarmUpProfile::default(), vec![fault]);
        }
    };
    let (mut profile, mut faults) = (WarmUpProfile::default(), Vec::new());
    for (key, value) in table {
        match (key.as_str(), value) {
            ("about", Value::String(about)) => {
                faults.extend(check_about(&about));
                profile.about = about;
            }
            ("boot", Value::Table(set)) => profile.boot = read_set("boot", set, BOOT_MS, &mut faults),
            ("restore", Value::Table(set)) => {
                profile.restore = read_set("restore", set, RESTORE_MS, &mut faults);
            }
            (key, value) => {
                let allowed = "about = \"…\", [boot] or [restore]";
                faults.push(SpecFault::new(key, quote::value(key, &value), allowed));
            }
        }
    }
    (profile, faults)
}

fn read_set(place: &str, table: Table, total_ms: u64, faults: &mut Vec<SpecFault>) -> StepSet {
    let (mut total_ms, mut specs) = (total_ms, Vec::new());
    for (key, value) in table {
        let at = format!("{place}.{key}");
        match (key.as_str(), value) {
            ("total_ms_max", Value::Integer(ms)) if ms >= 0 => total_ms = ms.unsigned_abs(),
            ("step", Value::Array(values)) => {
                for (index, value) in values.into_iter().enumerate() {
                    specs.push(read_step(&format!("{at}[{index}]"), value, faults));
                }
            }
            (_, value) => {
                let allowed = format!("total_ms_max, in milliseconds, or [[{place}.step]]");
                faults.push(SpecFault::new(&at, quote::value(&at, &value), allowed));
            }
        }
    }
    check_set(place, total_ms, specs, faults)
}

/// A step whose keys are each tried by themselves, so that every faulty one is found.
fn read_step(place: &str, value: Value, faults: &mut Vec<SpecFault>) -> Option<StepSpec> {
    let Value::Table(table) = value else {
        faults.push(SpecFault::new(place, quote::value(place, &value), "a table"));
        return None;
    };
    let (mut good, before) = (Table::new(), faults.len());
    for (key, value) in table {
        let at = format!("{place}.{key}");
        let fits = match key.as_str() {
            "exec" => fits::<Exec>(&at, &value, faults),
            "http" => fits::<Http>(&at, &value, faults),
            "tcp" => fits::<Tcp>(&at, &value, faults),
            "prefetch" => fits::<Prefetch>(&at, &value, faults),
            "wait_for" => fits::<WaitFor>(&at, &value, faults),
            _ => {
                let alone = Value::Table(Table::from_iter([(key.clone(), value.clone())]));
                let read = alone.try_into::<StepSpec>().map(drop);
                told(&at, &value, read, faults)
            }
        };
        if fits {
            good.insert(key, value);
        }
    }
    let spec = good.try_into::<StepSpec>().ok();
    spec.filter(|_| faults.len() == before)
}

/// Whether the value is a `T`; each of its keys that is not is a fault.
fn fits<T: DeserializeOwned>(place: &str, value: &Value, faults: &mut Vec<SpecFault>) -> bool {
    told(place, value, value.clone().try_into::<T>().map(drop), faults)
}

fn told(place: &str, value: &Value, read: Result<(), toml::de::Error>, faults: &mut Vec<SpecFault>) -> bool {
    let Err(error) = read else { return true };
    let said = error.message().trim().replace('\n', "; ");
    faults.push(SpecFault::new(place, quote::value(place, value), said));
    false
}

#[cfg(test)]
mod tests;
