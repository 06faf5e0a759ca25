//! The verdict on one instance, from what its probes found. A fixed size, whatever happens.

use super::policy::FINDINGS_MAX;
use super::{Fault, Finding, Health, HealthReason, Probe, Probing};
use crate::model::Timestamp;

/// One that was down is calm again when it has been up for this long: then it counts as one fall less.
pub const CALM_MS: u64 = 300_000;
/// Beyond so many falls one more does not make it wait for longer.
const FALLS_MAX: u8 = 3;
/// Nothing certain for so many slow paces in a row leaves nobody judged.
const QUIETS_UNHEARD_MAX: u64 = 3;
/// A new latency counts for this part of the moving average: an eighth, as for a round trip (RFC 6298 §2).
const LATENCY_SHIFT: u32 = 3;

/// The last findings of one probe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Findings {
    /// The newest is the lowest bit; 1 failed.
    failed: u16,
    count: u8,
    /// Of these, since the verdict changed: older ones count for no other.
    fresh: u8,
    fault: Option<Fault>,
    /// Moving average of answers, in microseconds.
    latency_us: Option<u32>,
}

impl Findings {
    fn push(&mut self, failed: bool) {
        self.failed = (self.failed << 1) | u16::from(failed);
        self.count = (self.count + 1).min(FINDINGS_MAX);
        self.fresh = (self.fresh + 1).min(FINDINGS_MAX);
    }

    /// How many of the last `of` failed, and how many there are.
    fn failed_of(&self, of: u8) -> (u8, u8) {
        let of = of.min(self.count);
        let mask = 1_u32.checked_shl(of.into()).map_or(u32::MAX, |bit| bit - 1);
        let failed = (u32::from(self.failed) & mask).count_ones();
        (u8::try_from(failed).unwrap_or(FINDINGS_MAX), of)
    }

    fn newest_failed(&self) -> bool {
        self.count > 0 && self.failed & 1 == 1
    }

    /// So many of the last `of` failed, the newest among them.
    fn has_failed(&self, down: u8, of: u8) -> bool {
        self.newest_failed() && self.failed_of(of.min(self.fresh)).0 >= down
    }

    /// So many of the last `of` were answered, the newest among them.
    fn has_answered(&self, up: u8, of: u8) -> bool {
        let (failed, of) = self.failed_of(of.min(self.fresh));
        of > 0 && !self.newest_failed() && of - failed >= up
    }
}

/// What is shown of one probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Which.
    pub probe: Probe,
    /// The last findings, the oldest first: `+` answered, `-` failed.
    pub findings: String,
    /// What the last failure was, if any was since the instance runs.
    pub fault: Option<Fault>,
    /// Moving average of the time to an answer, in microseconds.
    pub latency_us: Option<u32>,
}

/// Judges one instance while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judge {
    health: Health,
    of: [Findings; 3],
    /// When it began to be watched.
    began: Timestamp,
    probed_at: Option<Timestamp>,
    /// When something certain was found last.
    heard_at: Option<Timestamp>,
    /// How often it fell of late.
    falls: u8,
    /// When it fell, came up, or one fall was forgiven.
    falls_since: Timestamp,
}

impl Judge {
    /// Nothing is known of it yet.
    pub const fn new(now: Timestamp) -> Self {
        let none = Findings { failed: 0, count: 0, fresh: 0, fault: None, latency_us: None };
        Self {
            health: Health::Unknown,
            of: [none; 3],
            began: now,
            probed_at: None,
            heard_at: None,
            falls: 0,
            falls_since: now,
        }
    }

    /// It runs again, or is watched again. What it found before says nothing; how often it fell does.
    pub fn begin(&mut self, now: Timestamp) {
        *self = Self { falls: self.falls, falls_since: self.falls_since, ..Self::new(now) };
    }

    /// The instance was lost while it ran.
    pub fn lost(&mut self, now: Timestamp) {
        self.fall(now);
    }

    /// The verdict.
    pub const fn health(&self) -> Health {
        self.health
    }

    /// Whether it fell several times of late, so that it has to answer for longer before it is up again.
    pub const fn is_flapping(&self) -> bool {
        self.falls > 1
    }

    /// Takes in what a probe has found; the reason, if that changes the verdict.
    pub fn note(
        &mut self,
        probe: Probe,
        finding: Finding,
        probing: &Probing,
        now: Timestamp,
    ) -> Option<HealthReason> {
        self.forgive(now);
        let of = self.findings_mut(probe);
        match finding {
            Finding::Answered { after_us } => {
                of.push(false);
                of.latency_us = Some(of.latency_us.map_or(after_us, |before| averaged(before, after_us)));
            }
            Finding::Failed(fault) => {
                of.push(true);
                of.fault = Some(fault);
            }
            Finding::Unclear => return self.look(probing, now),
        }
        if probing.deciding().any(|deciding| deciding == probe) {
            self.heard_at = Some(now);
        }
        self.judge(probe, probing, now)
    }

    /// Probes begin.
    pub fn probed(&mut self, now: Timestamp) {
        self.probed_at = Some(now);
    }

    /// Looks whether anything certain was found of late; the reason, if that changes the verdict.
    pub fn look(&mut self, probing: &Probing, now: Timestamp) -> Option<HealthReason> {
        // After a jump of the clock to the past it was as good as now.
        let heard_at = self.heard_at?.min(now);
        self.heard_at = Some(heard_at);
        let for_ms = now.ms_since(heard_at);
        if self.health == Health::Unknown || for_ms <= unheard_ms(probing) {
            return None;
        }
        self.begin(now);
        Some(HealthReason::Unheard { for_ms })
    }

    /// In how many milliseconds the next probes are due; `used`: somebody uses the service. 0: now.
    pub fn next_ms(&self, probing: &Probing, used: bool, now: Timestamp) -> u64 {
        let policy = &probing.policy;
        let pace_ms = if self.is_in_doubt(probing) {
            policy.doubt_ms.min(policy.interval_ms)
        } else if used || self.health == Health::Down {
            policy.interval_ms
        } else {
            policy.quiet_ms.max(policy.interval_ms)
        };
        let since = self.probed_at.unwrap_or(self.began);
        if now < since {
            // The clock has jumped back: nobody knows how long ago that was.
            return 0;
        }
        u64::from(pace_ms).saturating_sub(now.ms_since(since))
    }

    /// Why the verdict is as it is, by the findings of now.
    pub fn reason(&self, probing: &Probing) -> HealthReason {
        if probing.is_empty() {
            return HealthReason::NotAsked;
        }
        match self.health {
            Health::Unknown => HealthReason::NotProbed,
            Health::Up => probing.deciding().next().map_or(HealthReason::NotAsked, |probe| {
                let (failed, of) = self.findings(probe).failed_of(probing.policy.up_of);
                HealthReason::Answers { probe, answered: of - failed, of }
            }),
            Health::Down => self.failing(probing),
        }
    }

    /// What is known of each probe of the probing.
    pub fn seen(&self, probing: &Probing) -> Vec<Seen> {
        let asked = |probe: &Probe| match probe {
            Probe::Heartbeat => probing.policy.heartbeat,
            Probe::Tcp => probing.tcp.is_some(),
            Probe::Http => probing.http.is_some(),
        };
        let seen = |probe| {
            let of = self.findings(probe);
            let mark = |place| if (of.failed >> place) & 1 == 1 { '-' } else { '+' };
            let findings = (0..of.count).rev().map(mark).collect();
            Seen { probe, findings, fault: of.fault, latency_us: of.latency_us }
        };
        Probe::ALL.into_iter().filter(|_| probing.policy.enabled).filter(asked).map(seen).collect()
    }

    fn judge(&mut self, probe: Probe, probing: &Probing, now: Timestamp) -> Option<HealthReason> {
        let policy = &probing.policy;
        if probing.deciding().any(|probe| self.findings(probe).has_failed(policy.down, policy.down_of)) {
            if self.health == Health::Down {
                return None;
            }
            let reason = self.failing(probing);
            self.fall(now);
            return Some(reason);
        }
        let (up, up_of) = self.needed(probing);
        let answered = |probe| self.findings(probe).has_answered(up, up_of);
        let is_up = !probing.is_empty() && probing.deciding().all(answered);
        if !is_up || self.health == Health::Up {
            return None;
        }
        self.turn(Health::Up, now);
        let probe =
            probing.deciding().find(|deciding| *deciding == probe).or_else(|| probing.deciding().next())?;
        let (failed, of) = self.findings(probe).failed_of(up_of);
        Some(HealthReason::Answers { probe, answered: of - failed, of })
    }

    /// How many answers of how many probes it takes to be up.
    fn needed(&self, probing: &Probing) -> (u8, u8) {
        if self.health == Health::Unknown && self.falls == 0 {
            // It passed its readiness check, and nothing is held against it.
            return (1, 1);
        }
        let times = 1 << self.falls.saturating_sub(1);
        let times_of = |count: u8| count.saturating_mul(times).min(FINDINGS_MAX);
        (times_of(probing.policy.up), times_of(probing.policy.up_of))
    }

    fn failing(&self, probing: &Probing) -> HealthReason {
        let worst = probing.deciding().max_by_key(|probe| {
            let of = self.findings(*probe);
            (of.newest_failed(), of.failed_of(probing.policy.down_of).0)
        });
        let Some(probe) = worst else { return HealthReason::NotAsked };
        let (failed, of) = self.findings(probe).failed_of(probing.policy.down_of);
        let fault = self.findings(probe).fault.unwrap_or(Fault::Unreachable);
        let heartbeat = self.findings(Probe::Heartbeat);
        let guest_answers =
            (probe != Probe::Heartbeat && heartbeat.count > 0).then(|| !heartbeat.newest_failed());
        HealthReason::Fails { probe, failed, of, fault, guest_answers }
    }

    /// A finding contradicts the verdict, or there is none.
    fn is_in_doubt(&self, probing: &Probing) -> bool {
        let policy = &probing.policy;
        let (_, up_of) = self.needed(probing);
        match self.health {
            Health::Unknown => true,
            Health::Up => probing.deciding().any(|probe| {
                let findings = self.findings(probe);
                findings.failed_of(policy.down_of.min(findings.fresh)).0 > 0
            }),
            Health::Down => probing.deciding().any(|probe| {
                let findings = self.findings(probe);
                let (failed, of) = findings.failed_of(up_of.min(findings.fresh));
                failed < of
            }),
        }
    }

    fn fall(&mut self, now: Timestamp) {
        if self.health != Health::Down {
            self.falls = (self.falls + 1).min(FALLS_MAX);
        }
        self.turn(Health::Down, now);
    }

    fn turn(&mut self, health: Health, now: Timestamp) {
        self.health = health;
        self.falls_since = now;
        self.of.iter_mut().for_each(|findings| findings.fresh = 0);
    }

    fn forgive(&mut self, now: Timestamp) {
        if self.falls > 0 && self.health == Health::Up && now.ms_since(self.falls_since) >= CALM_MS {
            self.falls -= 1;
            self.falls_since = now;
        }
    }

    fn findings(&self, probe: Probe) -> &Findings {
        let [heartbeat, tcp, http] = &self.of;
        match probe {
            Probe::Heartbeat => heartbeat,
            Probe::Tcp => tcp,
            Probe::Http => http,
        }
    }

    fn findings_mut(&mut self, probe: Probe) -> &mut Findings {
        let [heartbeat, tcp, http] = &mut self.of;
        match probe {
            Probe::Heartbeat => heartbeat,
            Probe::Tcp => tcp,
            Probe::Http => http,
        }
    }
}

fn unheard_ms(probing: &Probing) -> u64 {
    QUIETS_UNHEARD_MAX * u64::from(probing.policy.quiet_ms.max(probing.policy.interval_ms))
}

fn averaged(before: u32, new: u32) -> u32 {
    before - (before >> LATENCY_SHIFT) + (new >> LATENCY_SHIFT)
}
