//! The gate itself: rules that can be exchanged, buckets that stay, secrets, counters.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use reveille_core::answer::{NameKey, Zones};
use reveille_core::model::{DomainName, SpecFault, Timestamp};

use super::bucket::{BucketTable, Micros};
use super::budget::{WakeBudgets, WakeLimits};
use super::client::{NetworkBits, NetworkHash};
use super::config::{GateConfig, WakeMode};
use super::cookie::{CookieSecrets, Secret, SecretError};
use super::judge::Judge;
use super::list::Lists;
use super::rate::RateLimits;
use super::tally::{GateCounts, GateTally, Writers};

/// Why there is no gate, or why it stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The configuration has faults.
    #[error("the configuration of the gate has faults: {}", listed(.0))]
    Faults(Vec<SpecFault>),
    /// No secrets for cookies.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

fn listed(faults: &[SpecFault]) -> String {
    let one =
        |SpecFault { key, value, allowed }: &SpecFault| format!("gate.{key} = {value} (allowed: {allowed})");
    faults.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// The gate of a server: rules that can be exchanged, buckets that stay, counters.
#[derive(Debug)]
pub struct Gate {
    rules: ArcSwap<Rules>,
    pub(super) secrets: ArcSwap<CookieSecrets>,
    pub(super) hash: NetworkHash,
    pub(super) budgets: WakeBudgets,
    /// Buckets count microseconds from here.
    start: Timestamp,
    pub(super) tallies: Mutex<Tallies>,
}

/// Rules and secrets that are not in force yet.
#[derive(Debug)]
pub struct PreparedRules {
    rules: Rules,
    secrets: Option<CookieSecrets>,
}

/// What the configuration comes to. Never changed once it is in force.
#[derive(Debug)]
pub(super) struct Rules {
    pub dry_run: bool,
    pub bits: NetworkBits,
    pub rate: Option<RateLimits>,
    /// Handed on from rules to rules while its size stays the same.
    pub rate_table: Arc<BucketTable>,
    pub wake_mode: WakeMode,
    pub wake: WakeLimits,
    pub cookies: Cookies,
    /// Age in milliseconds at which a secret is replaced; none: it comes from a file.
    rotate_ms: Option<u64>,
    pub lists: Lists,
    /// Of which view the rules know the zones' numbers: its [`Zones::numbering`].
    numbering: u64,
    /// The rules before, for views with other numbers that are still answered from. They have none before them.
    before: ArcSwapOption<Rules>,
}

/// What cookies are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cookies {
    Off,
    On,
    Required,
}

/// Counters of all threads, also of those that have ended.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    pub threads: Vec<Arc<GateTally>>,
    ended: GateCounts,
}

impl Gate {
    /// A gate for the zones with these apexes, numbered from 0: those of the view in its order,
    /// `view.zones().iter().map(|zone| zone.apex())`, so that the number is what a name's slot says. `now` is the
    /// daemon's clock, from which all later times come too.
    ///
    /// # Errors
    /// Every fault of the configuration, or why there are no secrets.
    pub fn new<'z>(
        config: &GateConfig,
        zones: impl IntoIterator<Item = &'z DomainName>,
        now: Timestamp,
    ) -> Result<Self, GateError> {
        let rules = Rules::new(config, zones, None)?;
        let secrets = match &config.cookies.secret_file {
            Some(path) if config.cookies.enabled => CookieSecrets::from_file(path, now)?,
            Some(_) | None => CookieSecrets::new(&Secret::random()?, now),
        };
        Ok(Self {
            rules: ArcSwap::from_pointee(rules),
            secrets: ArcSwap::from_pointee(secrets),
            hash: NetworkHash::new(Secret::random()?.bytes()),
            budgets: WakeBudgets::default(),
            start: now,
            tallies: Mutex::default(),
        })
    }

    /// Other rules, to be put in force with [`Gate::take`], and the secret file as it is now. To be called with a changed
    /// configuration, and with the same one when the set of zones has changed.
    ///
    /// # Errors
    /// As of [`Gate::new`].
    pub fn prepare<'z>(
        &self,
        config: &GateConfig,
        zones: impl IntoIterator<Item = &'z DomainName>,
        now: Timestamp,
    ) -> Result<PreparedRules, GateError> {
        let old = self.rules.load_full();
        let rules = Rules::new(config, zones, Some(&old.rate_table))?;
        let secrets = match &config.cookies.secret_file {
            Some(path) if config.cookies.enabled => Some(CookieSecrets::from_file(path, now)?),
            // What was shared with others is not used any longer.
            Some(_) | None if old.rotate_ms.is_none() => Some(CookieSecrets::new(&Secret::random()?, now)),
            Some(_) | None => None,
        };
        Ok(PreparedRules { rules, secrets })
    }

    /// Puts what was prepared in force. Views whose zones have other numbers are judged by the rules of now until
    /// one with the new numbers takes their place ([`Gate::judge_for`]), so it is to be called before that. Buckets keep
    /// what they hold, unless `rate.table_kib` has changed; those of zones go by number, so a zone whose number has
    /// changed finds another's, which refill within minutes. Judges that are at work go on with the old rules.
    pub fn take(&self, prepared: PreparedRules) {
        if let Some(secrets) = prepared.secrets {
            self.secrets.store(Arc::new(secrets));
        }
        let before = self.rules.load_full();
        let rules = Arc::new(prepared.rules);
        rules.before.store(Some(Arc::clone(&before)));
        self.rules.store(rules);
        // Rules of two reloads ago are of no view any more.
        before.before.store(None);
    }

    /// Replaces the secret of cookies if it is time; to be called every few minutes. Tells whether it was.
    ///
    /// # Errors
    /// There are no random numbers; the old secret stays.
    pub fn tend(&self, now: Timestamp) -> Result<bool, SecretError> {
        let secrets = self.secrets.load();
        let due = |age_ms: u64| now.ms_since(secrets.since()) >= age_ms;
        if !self.rules.load().rotate_ms.is_some_and(due) {
            return Ok(false);
        }
        self.rotate(&secrets, now)
    }

    /// Replaces these secrets by their successors, unless others were put in force since they were looked at: what a
    /// reload has brought stays, and a secret that was shared until then does not come back.
    pub(super) fn rotate(&self, secrets: &Arc<CookieSecrets>, now: Timestamp) -> Result<bool, SecretError> {
        let next = Arc::new(secrets.rotated(&Secret::random()?, now));
        let was = self.secrets.compare_and_swap(secrets, next);
        Ok(Arc::ptr_eq(&was, secrets))
    }

    /// Counters for a thread, to be kept as long as it runs.
    pub fn tally(&self, writers: Writers) -> Arc<GateTally> {
        let tally = Arc::new(GateTally::new(writers));
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        let Tallies { threads, ended } = &mut *tallies;
        threads.retain(|tally| {
            // Nobody else has it, so nobody counts into it any more.
            let runs = Arc::strong_count(tally) > 1;
            if !runs {
                tally.add_to(ended);
            }
            runs
        });
        threads.push(Arc::clone(&tally));
        tally
    }

    /// What was counted since the start.
    pub fn counts(&self) -> GateCounts {
        let tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sum = tallies.ended;
        for tally in &tallies.threads {
            tally.add_to(&mut sum);
        }
        sum
    }

    /// A look at the gate for a batch of questions: the newest rules, and the time that holds for it. The numbers of
    /// zones are those that the rules were made with.
    pub fn judge<'g>(&'g self, now: Timestamp, tally: &'g GateTally) -> Judge<'g> {
        self.judge_by(self.rules.load(), true, now, tally)
    }

    /// A look at the gate for questions that are answered from a view with that [`Zones::numbering`], by rules that
    /// mean the same zones by their numbers: a reload brings rules and view one after the other. The view is to be
    /// loaded first.
    pub fn judge_for<'g>(&'g self, numbering: u64, now: Timestamp, tally: &'g GateTally) -> Judge<'g> {
        let rules = self.rules.load();
        if rules.numbering == numbering {
            return self.judge_by(rules, true, now, tally);
        }
        self.judge_before(&rules, numbering, now, tally)
    }

    /// For a view with other numbers than the newest rules have.
    #[cold]
    fn judge_before<'g>(
        &'g self,
        rules: &Arc<Rules>,
        numbering: u64,
        now: Timestamp,
        tally: &'g GateTally,
    ) -> Judge<'g> {
        let before = rules.before.load_full().filter(|before| before.numbering == numbering);
        let knows_zones = before.is_some();
        let rules = before.unwrap_or_else(|| Arc::clone(rules));
        self.judge_by(Guard::from_inner(rules), knows_zones, now, tally)
    }

    fn judge_by<'g>(
        &'g self,
        rules: Guard<Arc<Rules>>,
        knows_zones: bool,
        now: Timestamp,
        tally: &'g GateTally,
    ) -> Judge<'g> {
        Judge {
            gate: self,
            rules,
            knows_zones,
            secrets: self.secrets.load(),
            now,
            now_us: Micros::from_ms(now.ms_since(self.start)),
            tally,
        }
    }
}

impl Rules {
    fn new<'z>(
        config: &GateConfig,
        zones: impl IntoIterator<Item = &'z DomainName>,
        table: Option<&Arc<BucketTable>>,
    ) -> Result<Self, GateError> {
        let faults = config.faults();
        if !faults.is_empty() {
            return Err(GateError::Faults(faults));
        }
        let apexes: Vec<NameKey> = zones.into_iter().map(NameKey::from).collect();
        let numbering = Zones::numbering_of(apexes.iter().cloned());
        let zones: BTreeMap<NameKey, u16> = apexes.into_iter().zip(0u16..).collect();
        let number = |apex: &DomainName| zones.get(NameKey::from(apex).as_ref()).copied();
        let lists = Lists::new(&config.rule, number).map_err(|fault| GateError::Faults(vec![fault]))?;
        let sets = config.rate_sets();
        let fits = |table: &&Arc<BucketTable>| table.sets() == sets.next_power_of_two();
        let cookies = match (config.cookies.enabled, config.cookies.require) {
            (false, _) => Cookies::Off,
            (true, false) => Cookies::On,
            (true, true) => Cookies::Required,
        };
        Ok(Self {
            dry_run: config.dry_run,
            bits: NetworkBits::new(config.ipv4_prefix, config.ipv6_prefix),
            rate: config.rate_limits(),
            rate_table: table.filter(fits).map_or_else(|| Arc::new(BucketTable::new(sets)), Arc::clone),
            wake_mode: config.wake.mode,
            wake: config.wake_limits(),
            cookies,
            rotate_ms: match config.cookies.secret_file {
                Some(_) if config.cookies.enabled => None,
                Some(_) | None => Some(config.cookies.rotate_s.saturating_mul(1_000)),
            },
            lists,
            numbering,
            before: ArcSwapOption::empty(),
        })
    }
}
