//! The life of a zone's keys, as a pure function of their times.
//!
//! ```text
//!   Published ──────► Ready ──────► Active ──────► Retired ──────► Removed
//!       no cache has a    its DS is at   the next one   no cache has a signature of
//!       DNSKEY set        the parent     took over      it, or a DS set without the
//!       without it                                      next one's
//! ```
//!
//! A zone has one combined signing key at a time (RFC 6781 §3.1): online the key that signs must lie on the server
//! in any case, so a second one beside it would protect nothing, and would double the DNSKEY set and the number of
//! rollovers. What an operator would gain, a change of keys without the parent, is had by CDS (RFC 7344).
//!
//! What keeps every validator satisfied (RFC 6781 §4.1.2, RFC 7583 §3.3.3):
//! - A key signs data only when every DNSKEY set in a cache has it.
//! - Every key of the DNSKEY set signs that set, so that it can be trusted from the DS of either key.
//! - A DS is offered to the parent only when every DNSKEY set in a cache is signed by its key.
//! - A key leaves only when no cache can hold data that it signed, or a DS set from before the next one's.

use reveille_core::model::Timestamp;
use serde::{Deserialize, Serialize};

/// Most keys that a ledger remembers, those that were removed included; the oldest are forgotten first.
pub const KEYS_REMEMBERED_MAX: usize = 16;

/// How long things stay in caches. Seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeyPolicy {
    /// Longest TTL of an answer from a signed zone; longer ones are shortened to it. The longer, the longer old keys
    /// have to stay.
    pub ttl_s_max: u32,
    /// TTL of the DNSKEY, CDS and CDNSKEY sets.
    pub dnskey_ttl_s: u32,
    /// How long an answer may be under way until a cache has it.
    pub propagation_s: u32,
    /// TTL of the DS set at the parent.
    pub ds_ttl_s: u32,
    /// How long the parent takes until the last of its servers has a changed DS set.
    pub parent_propagation_s: u32,
    /// A new key is begun when this one has signed for so long; 0: only when an operator says so.
    pub key_life_s: u32,
}

impl Default for KeyPolicy {
    fn default() -> Self {
        Self {
            ttl_s_max: 86_400,
            dnskey_ttl_s: 3_600,
            propagation_s: 60,
            ds_ttl_s: 86_400,
            parent_propagation_s: 3_600,
            key_life_s: 0,
        }
    }
}

impl KeyPolicy {
    /// Longest [`KeyPolicy::ttl_s_max`]: a signature that is still handed out is good for longer.
    pub const TTL_S_MAX: u32 = 2 * 86_400;

    /// Every value that is out of range: the key, what it is, and what is allowed.
    pub fn faults(&self) -> Vec<(&'static str, u32, String)> {
        let ranges = [
            ("ttl_s_max", self.ttl_s_max, 1, Self::TTL_S_MAX),
            ("dnskey_ttl_s", self.dnskey_ttl_s, 1, Self::TTL_S_MAX),
            ("propagation_s", self.propagation_s, 1, 86_400),
            ("ds_ttl_s", self.ds_ttl_s, 1, 30 * 86_400),
            ("parent_propagation_s", self.parent_propagation_s, 1, 30 * 86_400),
            ("key_life_s", self.key_life_s, 0, u32::MAX),
        ];
        let outside = ranges.into_iter().filter(|(_, value, low, high)| !(low..=high).contains(&value));
        outside.map(|(key, value, low, high)| (key, value, format!("{low} to {high}"))).collect()
    }
}

/// Where a key is in its life (RFC 7583 §3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    /// In the DNSKEY set, which it signs; nothing else.
    Published,
    /// Also, its DS may be put to the parent: CDS and CDNSKEY say so.
    Ready,
    /// It signs everything.
    Active,
    /// It signs the DNSKEY set only, for the sake of caches.
    Retired,
    /// Not in the DNSKEY set any more. Its files stay.
    Removed,
}

impl KeyState {
    /// The state as one word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Ready => "ready",
            Self::Active => "active",
            Self::Retired => "retired",
            Self::Removed => "removed",
        }
    }
}

/// When what happened to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyTimes {
    /// Key tag (RFC 4034 §B); no two keys of a ledger have the same.
    pub tag: u16,
    /// It came into the DNSKEY set.
    pub published: Timestamp,
    /// Its DS may be at the parent since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<Timestamp>,
    /// Its DS was seen at the parent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ds_seen: Option<Timestamp>,
    /// It signs since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<Timestamp>,
    /// The next key has signed since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired: Option<Timestamp>,
    /// It left the DNSKEY set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<Timestamp>,
}

impl KeyTimes {
    /// Where the key is in its life, and since when.
    pub fn state(&self) -> (KeyState, Timestamp) {
        match *self {
            Self { removed: Some(since), .. } => (KeyState::Removed, since),
            Self { retired: Some(since), .. } => (KeyState::Retired, since),
            Self { active: Some(since), .. } => (KeyState::Active, since),
            Self { ready: Some(since), .. } => (KeyState::Ready, since),
            Self { published, .. } => (KeyState::Published, published),
        }
    }

    fn is(&self, state: KeyState) -> bool {
        self.state().0 == state
    }
}

/// Something that happened to a key, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyChange {
    /// Which key.
    pub tag: u16,
    /// What it came to.
    pub to: KeyState,
    /// One sentence.
    pub reason: &'static str,
}

/// What comes of a look at the keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// What changed.
    pub changes: Vec<KeyChange>,
    /// When to look again; `None`: time alone changes nothing.
    pub next_look: Option<Timestamp>,
    /// The active key is old: a new one should be begun.
    pub wants_key: bool,
}

/// Why a rollover does not go on as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RolloverError {
    /// One is under way.
    #[error("a rollover is under way: key {tag} is {}; let it come to its end first", state.word())]
    UnderWay {
        /// The key that holds it up.
        tag: u16,
        /// Where it is.
        state: KeyState,
    },
    /// Its DS must not be at the parent yet.
    #[error(
        "key {tag} is in the zone for too short a time: caches may hold the DNSKEY set without it for another \
         {wait_s} s, and a DS at the parent before then makes the zone bogus for them"
    )]
    TooEarly {
        /// The key.
        tag: u16,
        /// How long to wait.
        wait_s: u64,
    },
    /// A key with that tag is in the ledger.
    #[error("there is a key with the tag {0} already")]
    SameTag(u16),
}

/// The keys of a zone and how long caches keep what was answered with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    /// As [`KeyPolicy::ttl_s_max`], at the last look.
    ttl_s_max: u32,
    /// As [`KeyPolicy::dnskey_ttl_s`], at the last look.
    dnskey_ttl_s: u32,
    /// Until then a cache may hold what was answered with longer TTLs than these, or unsigned.
    older_gone_at: Timestamp,
    /// Oldest first.
    #[serde(rename = "key")]
    keys: Vec<KeyTimes>,
}

impl Ledger {
    /// The first key of a zone, which signs at once. Caches may hold unsigned answers for `unsigned_ttl_s`.
    pub fn first(tag: u16, unsigned_ttl_s: u32, policy: &KeyPolicy, now: Timestamp) -> Self {
        let key = KeyTimes {
            tag,
            published: now,
            ready: None,
            ds_seen: None,
            active: Some(now),
            retired: None,
            removed: None,
        };
        Self {
            ttl_s_max: policy.ttl_s_max,
            dnskey_ttl_s: policy.dnskey_ttl_s,
            older_gone_at: after(now, &[unsigned_ttl_s, policy.propagation_s]),
            keys: vec![key],
        }
    }

    /// Every key, oldest first.
    pub fn keys(&self) -> &[KeyTimes] {
        &self.keys
    }

    /// The tags of the DNSKEY set.
    pub fn published(&self) -> impl Iterator<Item = u16> + '_ {
        self.keys.iter().filter(|key| !key.is(KeyState::Removed)).map(|key| key.tag)
    }

    /// The tag of the key that signs the zone's data.
    pub fn signing(&self) -> Option<u16> {
        self.in_state(KeyState::Active).map(|key| key.tag)
    }

    /// The tag of the key whose DS the parent should have, and no other (RFC 7344 §4).
    pub fn wished(&self) -> Option<u16> {
        let ready = |key: &&KeyTimes| {
            key.ready.is_some() && matches!(key.state().0, KeyState::Ready | KeyState::Active)
        };
        self.keys.iter().rev().find(ready).map(|key| key.tag)
    }

    /// Whether the parent may have a DS of one of the keys.
    pub fn may_be_delegated(&self) -> bool {
        self.keys.iter().any(|key| key.ready.is_some() && !key.is(KeyState::Removed))
    }

    /// What is wrong with a ledger that was read; `None` if it can be gone on from.
    pub fn fault(&self) -> Option<&'static str> {
        let count = |state| self.keys.iter().filter(|key| key.is(state)).count();
        let coming = count(KeyState::Published) + count(KeyState::Ready);
        let mut tags: Vec<u16> = self.keys.iter().map(|key| key.tag).collect();
        tags.sort_unstable();
        tags.dedup();
        if tags.len() != self.keys.len() {
            return Some("two keys have the same tag");
        }
        if count(KeyState::Active) != 1 {
            return Some("not exactly one key is active");
        }
        if coming + count(KeyState::Retired) > 1 {
            return Some("more than one key is coming or going");
        }
        None
    }

    /// What time and `policy` make of the keys.
    pub fn step(&mut self, policy: &KeyPolicy, now: Timestamp) -> Step {
        self.take_policy(policy, now);
        let mut step = Step::default();
        for index in 0..self.keys.len() {
            let Some(key) = self.keys.get(index).copied() else { continue };
            let Some((due, change)) = self.due(&key, policy) else { continue };
            if due > now {
                step.next_look = Some(step.next_look.map_or(due, |look| look.min(due)));
                continue;
            }
            if let Some(key) = self.keys.get_mut(index) {
                match change.to {
                    KeyState::Removed => key.removed = Some(now),
                    KeyState::Published | KeyState::Ready | KeyState::Active | KeyState::Retired => {
                        key.ready = Some(now);
                    }
                }
            }
            step.changes.push(change);
        }
        self.look_at_age(policy, now, &mut step);
        self.forget();
        step
    }

    /// Begins a rollover to a new key.
    ///
    /// # Errors
    /// If one is under way.
    pub fn begin(&mut self, tag: u16, now: Timestamp) -> Result<KeyChange, RolloverError> {
        self.may_begin()?;
        if self.keys.iter().any(|key| key.tag == tag) {
            return Err(RolloverError::SameTag(tag));
        }
        self.keys.push(KeyTimes {
            tag,
            published: now,
            ready: None,
            ds_seen: None,
            active: None,
            retired: None,
            removed: None,
        });
        let reason = "a rollover was begun";
        Ok(KeyChange { tag, to: KeyState::Published, reason })
    }

    /// Whether a rollover may be begun.
    ///
    /// # Errors
    /// If one is under way.
    pub fn may_begin(&self) -> Result<(), RolloverError> {
        let in_the_way = |key: &&KeyTimes| match key.state().0 {
            KeyState::Published | KeyState::Ready | KeyState::Retired => true,
            KeyState::Active | KeyState::Removed => false,
        };
        match self.keys.iter().find(in_the_way) {
            Some(key) => Err(RolloverError::UnderWay { tag: key.tag, state: key.state().0 }),
            None => Ok(()),
        }
    }

    /// The DS of the key that waits for it was seen at the parent, and that of no other key: it takes over. Saying
    /// so again changes nothing.
    ///
    /// # Errors
    /// If its DS must not be there yet.
    pub fn ds_seen(&mut self, policy: &KeyPolicy, now: Timestamp) -> Result<Vec<KeyChange>, RolloverError> {
        let awaited = self.keys.iter().rposition(|key| {
            key.is(KeyState::Published) || key.is(KeyState::Ready) || key.is(KeyState::Active)
        });
        let Some((index, key)) = awaited.and_then(|index| Some((index, *self.keys.get(index)?))) else {
            return Ok(Vec::new());
        };
        if key.ready.is_none() {
            let due = self.ready_at(&key, policy);
            return Err(RolloverError::TooEarly { tag: key.tag, wait_s: due.ms_since(now).div_ceil(1_000) });
        }
        if key.is(KeyState::Active) {
            if key.ds_seen.is_none()
                && let Some(key) = self.keys.get_mut(index)
            {
                key.ds_seen = Some(now);
            }
            return Ok(Vec::new());
        }
        let mut changes = Vec::new();
        for old in self.keys.iter_mut().filter(|key| key.is(KeyState::Active)) {
            old.retired = Some(now);
            let reason = "the parent has the next key's DS";
            changes.push(KeyChange { tag: old.tag, to: KeyState::Retired, reason });
        }
        if let Some(key) = self.keys.get_mut(index) {
            key.ds_seen = Some(now);
            key.active = Some(now);
            let reason = "its DS is at the parent";
            changes.push(KeyChange { tag: key.tag, to: KeyState::Active, reason });
        }
        Ok(changes)
    }

    /// What waits for time alone: when it is due, and what happens then.
    fn due(&self, key: &KeyTimes, policy: &KeyPolicy) -> Option<(Timestamp, KeyChange)> {
        let tag = key.tag;
        let change = |to, reason| KeyChange { tag, to, reason };
        match key.state() {
            (KeyState::Published, _) => {
                let reason = "every DNSKEY set in a cache has it: its DS may be put to the parent";
                Some((self.ready_at(key, policy), change(KeyState::Ready, reason)))
            }
            (KeyState::Active, _) if key.ready.is_none() => {
                let reason = "no cache has an unsigned answer any more: its DS may be put to the parent";
                Some((self.ready_at(key, policy), change(KeyState::Active, reason)))
            }
            (KeyState::Retired, since) => {
                let signatures = after(since, &[self.ttl_s_max, policy.propagation_s]);
                let delegation = after(since, &[policy.ds_ttl_s, policy.parent_propagation_s]);
                let due = signatures.max(delegation).max(self.older_gone_at);
                let reason = "no cache has its signatures, or its DS alone, any more";
                Some((due, change(KeyState::Removed, reason)))
            }
            (KeyState::Ready | KeyState::Active | KeyState::Removed, _) => None,
        }
    }

    /// When the DS of a key may be put to the parent: all that caches hold is signed so that it can be followed
    /// from there.
    fn ready_at(&self, key: &KeyTimes, policy: &KeyPolicy) -> Timestamp {
        // The first key of a zone: not only DNSKEY sets may be without it, but everything without signatures.
        let is_first = key.active == Some(key.published);
        let ttl_s = if is_first { self.dnskey_ttl_s.max(self.ttl_s_max) } else { self.dnskey_ttl_s };
        after(key.published, &[ttl_s, policy.propagation_s]).max(self.older_gone_at)
    }

    /// Shorter TTLs count from when the last answer with the longer ones is forgotten.
    fn take_policy(&mut self, policy: &KeyPolicy, now: Timestamp) {
        if policy.ttl_s_max < self.ttl_s_max || policy.dnskey_ttl_s < self.dnskey_ttl_s {
            let longest = self.ttl_s_max.max(self.dnskey_ttl_s);
            self.older_gone_at = self.older_gone_at.max(after(now, &[longest, policy.propagation_s]));
        }
        self.ttl_s_max = policy.ttl_s_max;
        self.dnskey_ttl_s = policy.dnskey_ttl_s;
    }

    fn look_at_age(&self, policy: &KeyPolicy, now: Timestamp, step: &mut Step) {
        // A key whose DS nobody has confirmed is not rolled by itself: the next one's would not be either.
        let old = self.in_state(KeyState::Active).filter(|key| key.ds_seen.is_some());
        let Some(since) = old.and_then(|key| key.active).filter(|_| policy.key_life_s > 0) else { return };
        if self.may_begin().is_err() {
            return;
        }
        let due = after(since, &[policy.key_life_s]);
        if due <= now {
            step.wants_key = true;
        } else {
            step.next_look = Some(step.next_look.map_or(due, |look| look.min(due)));
        }
    }

    fn forget(&mut self) {
        while self.keys.len() > KEYS_REMEMBERED_MAX
            && let Some(index) = self.keys.iter().position(|key| key.is(KeyState::Removed))
        {
            self.keys.remove(index);
        }
    }

    fn in_state(&self, state: KeyState) -> Option<&KeyTimes> {
        self.keys.iter().find(|key| key.is(state))
    }
}

/// The time that many seconds later.
fn after(time: Timestamp, seconds: &[u32]) -> Timestamp {
    seconds.iter().fold(time, |time, &seconds| time.plus_ms(u64::from(seconds) * 1_000))
}

#[cfg(test)]
mod tests;
