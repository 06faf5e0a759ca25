//! What services have in common: those of one image, and all of the host. What a service that is new is taken to do.
//!
//! What was made of a group is in the file `groups`, so that a restart keeps it, and that of services that are gone as well.
//! It is made anew from the history of those that were in use since the start, once they say as much.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use reveille_core::forecast::volume::{GROUP_MEMBERS_MAX, GROUP_MEMBERS_MIN, Group, Series};
use reveille_core::model::DomainName;
use reveille_store::history::Reader;

use super::ahead::{STEP_S, past};
use super::replace;

/// After so long what is known of a group is made anew.
const MADE_FOR_S: u64 = 6 * 3_600;
/// One of which nothing is known is tried again after so long.
const TRIED_AFTER_S: u64 = 300;
/// Groups that are known: all of the host, and images.
const GROUPS_MAX: usize = 257;
/// Largest file that is read, in bytes; what is known of one group takes some 6 kB.
const FILE_BYTES_MAX: usize = 4 << 20;
/// The group of all services of the host.
const HOST: &str = "";

/// The groups of a host.
pub struct Groups {
    path: PathBuf,
    groups: BTreeMap<String, Known>,
    unsaved: bool,
}

/// One group.
#[derive(Default)]
struct Known {
    /// When it was last tried to make it, in seconds since the Unix epoch; of one that was read, never.
    tried_s: Option<u64>,
    group: Option<Group>,
    /// Services that were in use since the start, and when.
    members: BTreeMap<DomainName, u64>,
}

impl Groups {
    /// As they were saved below the state directory `dir`. What is damaged there is told, and made anew.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("groups");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let groups = parse(&bytes).unwrap_or_else(|why| {
            tracing::warn!(path = %path.display(), why, "what was known of groups is lost; it is made anew");
            BTreeMap::new()
        });
        Ok(Self { path, groups, unsaved: false })
    }

    /// A service of the image is in use.
    pub fn used(&mut self, service: &DomainName, image: &str, now_s: u64) {
        for name in [HOST, image] {
            if !self.groups.contains_key(name) && self.groups.len() >= GROUPS_MAX {
                continue;
            }
            let members = &mut self.groups.entry(name.to_owned()).or_default().members;
            members.insert(service.clone(), now_s);
            if members.len() > GROUP_MEMBERS_MAX {
                let longest = members.iter().min_by_key(|(_, used_s)| **used_s).map(|(name, _)| name.clone());
                longest.and_then(|name| members.remove(&name));
            }
        }
    }

    /// The service is gone. What was made of it stays in what is known of its groups until they are made anew.
    pub fn forget(&mut self, service: &DomainName) {
        self.groups.values_mut().for_each(|known| {
            known.members.remove(service);
        });
    }

    /// What services of the image do, or, where too little is known of these, all services.
    pub fn of(&self, image: &str) -> Option<&Group> {
        [image, HOST].into_iter().find_map(|name| self.groups.get(name)?.group.as_ref())
    }

    /// Makes one group anew, if it is time for one. Who has a history is a member of its own groups as well, which matters little:
    /// by then it is forecast by its own models.
    pub fn renew(&mut self, reader: &Reader, now_s: u64) {
        let due = |known: &Known| {
            let lasts_s = if known.group.is_some() { MADE_FOR_S } else { TRIED_AFTER_S };
            known.tried_s.is_none_or(|at_s| at_s.saturating_add(lasts_s) <= now_s)
                && known.members.len() >= GROUP_MEMBERS_MIN
        };
        let Some((name, known)) = self.groups.iter_mut().find(|(_, known)| due(known)) else { return };
        known.tried_s = Some(now_s);
        let mut histories = Vec::new();
        for service in known.members.keys() {
            match past(reader, service, now_s) {
                Ok(Ok(series)) => histories.push(series),
                Ok(Err(_)) => {}
                Err(error) => tracing::warn!(%service, %error, "its history cannot be read for its group"),
            }
        }
        // Those that were seen longest say most.
        histories.sort_by_key(|series: &Series| std::cmp::Reverse(series.values().len()));
        match Group::of(&histories) {
            // Soon after a start few members were in use again: what is known of more says more.
            Ok(group) if 2 * group.members() >= known.group.as_ref().map_or(0, Group::members) => {
                known.group = Some(group);
                self.unsaved = true;
            }
            Ok(_) => {}
            Err(fault) => tracing::debug!(group = %name, %fault, "nothing is known of it yet"),
        }
    }

    /// Writes what is new.
    pub fn save(&mut self) {
        if !self.unsaved {
            return;
        }
        match replace(&self.path, &self.bytes()) {
            Ok(()) => self.unsaved = false,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "what is known of groups is not saved");
            }
        }
    }

    /// Of each group its name and what is known of it, each behind its length in 4 bytes.
    fn bytes(&self) -> Vec<u8> {
        let known = self.groups.iter().filter_map(|(name, known)| Some((name, known.group.as_ref()?)));
        let parts = known.flat_map(|(name, group)| [name.as_bytes().to_vec(), group.to_bytes()]);
        parts.fold(Vec::new(), |mut all, part| {
            all.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
            all.extend(part);
            all
        })
    }
}

/// The reverse of [`Groups::bytes`], or what is wrong.
fn parse(mut bytes: &[u8]) -> Result<BTreeMap<String, Known>, String> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(format!("{} bytes, at most {FILE_BYTES_MAX} are read", bytes.len()));
    }
    let mut groups = BTreeMap::new();
    let all = bytes.len();
    while !bytes.is_empty() && groups.len() < GROUPS_MAX {
        let at = all - bytes.len();
        let cut = || format!("the group at byte {at} is cut off");
        let name = part(&mut bytes).ok_or_else(cut)?;
        let name = std::str::from_utf8(name).map_err(|_| format!("the name at byte {at} is no text"))?;
        let group = Group::from_bytes(part(&mut bytes).ok_or_else(cut)?);
        let group = group.map_err(|damaged| format!("the group `{name}`: {damaged}"))?;
        if group.step_s().unsigned_abs() == STEP_S {
            groups.insert(name.to_owned(), Known { group: Some(group), ..Known::default() });
        }
    }
    Ok(groups)
}

/// Takes one part off the front.
fn part<'b>(bytes: &mut &'b [u8]) -> Option<&'b [u8]> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (part, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    *bytes = rest;
    Some(part)
}

#[cfg(test)]
mod tests {
    use reveille_store::history::{Batch, History, Kind, KindSet, Limits, Point, Seen};

    use super::*;
    use crate::forecasts::ahead::Ahead;

    const DAY_S: u64 = 86_400;

    fn name(text: &str) -> DomainName {
        text.parse().unwrap()
    }

    /// Of services that are used by so many at noon, and by a tenth of that at other times.
    fn group(levels: &[f64]) -> Group {
        let steps = 0..3 * DAY_S / STEP_S;
        let value = |step: u64| if step * STEP_S / 3_600 % 24 == 12 { 1.0 } else { 0.1 };
        let series = |level: &f64| {
            let values = steps.clone().map(|step| level * value(step)).collect();
            Series::new(0, STEP_S.cast_signed(), values).unwrap()
        };
        Group::of(&levels.iter().map(series).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn what_is_known_of_groups_outlives_a_restart_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut groups = Groups::open(dir.path()).unwrap();
        assert!(groups.of("web").is_none());
        for (image, levels) in [(HOST, [5.0, 6.0, 50.0]), ("web", [40.0, 50.0, 60.0])] {
            groups.groups.insert(image.to_owned(), Known { group: Some(group(&levels)), ..Known::default() });
        }
        groups.unsaved = true;
        groups.save();
        let again = Groups::open(dir.path()).unwrap();
        assert_eq!(again.of("web"), Some(&group(&[40.0, 50.0, 60.0])));
        assert_eq!(again.of("other"), Some(&group(&[5.0, 6.0, 50.0])), "what all services of the host do");
        let bytes = fs::read(dir.path().join("groups")).unwrap();
        let whole: Vec<usize> = (1..bytes.len()).filter(|at| parse(&bytes[..*at]).is_ok()).collect();
        assert_eq!(whole.len(), 1, "but behind the first group: {whole:?}");
        let mut flipped = bytes;
        flipped[900] ^= 4;
        assert!(parse(&flipped).err().unwrap().starts_with("the group ``: it is damaged"));
        fs::write(dir.path().join("groups"), flipped).unwrap();
        assert!(Groups::open(dir.path()).unwrap().of("web").is_none());
    }

    #[test]
    fn what_the_history_says_of_an_image_is_foreseen_of_a_new_service_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first_s = 20_000 * DAY_S;
        let open = || History::open(&dir.path().join("history"), Limits::default()).unwrap().0;
        let history = open();
        // One second of each step was watched, for three days.
        for at_s in (first_s..first_s + 3 * DAY_S).step_by(300) {
            let in_use_ms = if at_s / 3_600 % 24 == 8 { 40_000 } else { 2_000 };
            let point = |n: u64| Point {
                name: format!("s{n}.vm.test").into_bytes().into(),
                kind: Kind::ExecutionMs,
                at_s,
                amount: in_use_ms * (n + 2) / 4,
            };
            let seen = Some(Seen { at_s, kinds: KindSet::NONE.with(Kind::ExecutionMs) });
            let batch = Batch { now_s: at_s, seen, points: (1..=3).map(point).collect() };
            while !history.recorder().record(batch.clone()) {
                std::thread::yield_now();
            }
        }
        drop(history);
        let (history, now_s) = (open(), first_s + 3 * DAY_S + 8 * 3_600);
        let mut groups = Groups::open(dir.path()).unwrap();
        (1..=3).for_each(|n| groups.used(&name(&format!("s{n}.vm.test")), "web", now_s));
        (0..2).for_each(|_| groups.renew(&history.reader(), now_s));
        assert_eq!(groups.of("web").unwrap().members(), 3);
        groups.save();
        // The members are gone, and nothing but the file is left of them.
        let groups = Groups::open(dir.path()).unwrap();
        let (mut ahead, new) = (Ahead::default(), name("new.vm.test"));
        ahead.used(&new, "web", now_s);
        let foreseen = ahead.due(&history.reader(), &groups, now_s);
        assert_eq!(foreseen.len(), 1);
        for span in &foreseen[0].1 {
            assert!(span.in_use > 20.0 && span.of_group_percent == 100, "{span:?}");
        }
    }

    #[test]
    fn members_are_those_in_use_of_late_up_to_a_limit_and_who_is_gone_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut groups = Groups::open(dir.path()).unwrap();
        for n in 0..=GROUP_MEMBERS_MAX as u64 {
            groups.used(&name(&format!("s{n}.vm.test")), "web", 1_000 + n);
        }
        groups.forget(&name("s7.vm.test"));
        for of in [HOST, "web"] {
            let members = &groups.groups[of].members;
            assert_eq!(members.len(), GROUP_MEMBERS_MAX - 1);
            assert!(!members.contains_key(&name("s0.vm.test")) && !members.contains_key(&name("s7.vm.test")));
        }
        for n in 0..2 * GROUPS_MAX {
            groups.used(&name("a.vm.test"), &format!("image{n}"), 5_000);
        }
        assert_eq!(groups.groups.len(), GROUPS_MAX);
    }
}
