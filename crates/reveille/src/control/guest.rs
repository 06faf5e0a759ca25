//! What a guest is told when it wakes, and asked before it sleeps.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reveille_api::Time;
use reveille_core::model::{Cause, InstanceId, Stage, Timestamp};
use reveille_vm::driver::{Abandon, AgentState, BeforeSleep, Driver, Refreshed};

use super::Message;
use super::executor::{Order, Tools};

/// Longest that a wake waits until the guest has the right time and random bytes of its own.
const REFRESH_MAX: Duration = Duration::from_millis(500);
/// Longest that it is gone on with when the wake did not wait for it any more.
const LATE_REFRESH_MAX: Duration = Duration::from_secs(30);
/// Longest that a program in the guest may take to get ready for sleep, or to refuse it.
const BEFORE_SLEEP_MAX: Duration = Duration::from_secs(10);

/// What was last known of guests' agents.
#[derive(Debug, Default)]
pub struct Agents(Mutex<BTreeMap<InstanceId, AgentState>>);

impl Agents {
    /// Asks the agent who it is.
    pub async fn look(&self, driver: &dyn Driver, instance: InstanceId) {
        let state = driver.agent(instance).await;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(instance, state);
    }

    /// What is known, as words.
    pub fn told(&self, instance: InstanceId) -> Option<String> {
        let agents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Some(match agents.get(&instance)? {
            AgentState::None => "none".to_owned(),
            AgentState::Silent => "silent".to_owned(),
            AgentState::Answers { version } => format!("qemu-ga {version}"),
        })
    }

    /// Whether it answered when it was last asked who it is.
    pub fn answered(&self, instance: InstanceId) -> bool {
        let agents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(agents.get(&instance), Some(AgentState::Answers { .. }))
    }

    /// Forgets what is of no instance any more.
    pub fn keep(&self, known: impl Fn(InstanceId) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|instance, _| known(*instance));
    }
}

/// Tells a guest that was restored what it missed; a wake does not wait for it longer than [`REFRESH_MAX`].
pub async fn refresh(tools: &Arc<Tools>, order: &Order) {
    match tools.driver.refresh(order.instance, REFRESH_MAX).await {
        Refreshed::Done => tools.stage(order, Stage::Refreshed),
        Refreshed::NoAgent => {}
        Refreshed::Missed(reason) => {
            tracing::warn!(service = %order.spec.name, reason, "woken with a clock or random numbers of before");
            let (driver, instance) = (Arc::clone(&tools.driver), order.instance);
            tokio::spawn(async move { driver.refresh(instance, LATE_REFRESH_MAX).await });
        }
    }
}

/// Asks the guest whether it may sleep; gives why it may not.
pub async fn veto(tools: &Arc<Tools>, order: &Order, abandon: &Abandon) -> Option<Cause> {
    let asked = tokio::select! {
        asked = tools.driver.before_sleep(order.instance, BEFORE_SLEEP_MAX) => asked,
        // What comes of it does not matter: the capture will be given up.
        () = abandon.raised() => return None,
    };
    match asked {
        BeforeSleep::Veto { reason } => Some(Cause::Vetoed { reason }),
        BeforeSleep::Ready { wake_at: None } => None,
        BeforeSleep::Ready { wake_at: Some(text) } => {
            match wake_at(&text, tools.clock.now()) {
                Some(at) => {
                    // The receiver is gone only when the daemon ends.
                    let _ = tools.inbox.send(Message::WakeAt { instance: order.instance, at }).await;
                }
                None => {
                    tracing::warn!(service = %order.spec.name, text, "the guest asks to be woken at no time");
                }
            }
            None
        }
    }
}

/// `+SECONDS` from `now`, or a time of RFC 3339 in UTC, with or without milliseconds.
fn wake_at(text: &str, now: Timestamp) -> Option<Timestamp> {
    match text.strip_prefix('+') {
        Some(seconds) => Some(now.plus_ms(seconds.parse::<u32>().ok().map(|s| u64::from(s) * 1_000)?)),
        None => {
            let whole_seconds = text.strip_suffix('Z').and_then(|text| format!("{text}.000Z").parse().ok());
            text.parse::<Time>().ok().or(whole_seconds).map(|time| time.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_names_its_time_in_two_ways() {
        let now = Timestamp::from_ms(1_000);
        assert_eq!(wake_at("+60", now), Some(Timestamp::from_ms(61_000)));
        assert_eq!(wake_at("1970-01-01T00:02:00Z", now), Some(Timestamp::from_ms(120_000)));
        for nonsense in ["60", "+-1", "+99999999999", "tomorrow", ""] {
            assert_eq!(wake_at(nonsense, now), None, "{nonsense}");
        }
    }
}
