//! The keys of signed zones in a running daemon: opened before anybody is answered, looked at from then on.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use reveille_core::answer::Zone;
use reveille_core::model::Timestamp;
use reveille_dns::sign::{Signing, SigningLimits};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;

use crate::clock::Clock;
use crate::config::{Config, Dnssec};

/// Longest time between two looks, for the sake of a host's clock that is set.
const LOOK_MS_MAX: u64 = 10_000;
/// Shortest time between two looks, should a step fail.
const LOOK_MS_MIN: u64 = 200;

/// Opens the keys of the zones that are to be signed; gives the zones with their signers.
///
/// # Errors
/// Everything that keeps a zone from being served as the config says.
pub fn open(config: &Config, zones: Vec<Zone>, now: Timestamp) -> anyhow::Result<(Arc<Signing>, Vec<Zone>)> {
    let state_dir = &config.daemon.state_dir;
    let wants = |apex: &_| config.zone.iter().any(|zone| zone.name == *apex && zone.dnssec == Dnssec::On);
    let (signed, others): (Vec<&Zone>, Vec<&Zone>) = zones.iter().partition(|zone| wants(zone.apex()));
    let unsigned = others.iter().filter_map(|zone| Signing::leave_unsigned(state_dir, zone.apex()).err());
    let mut faults: Vec<String> = unsigned.map(|error| error.to_string()).collect();
    let limits = SigningLimits::default();
    let signing = match Signing::open(state_dir, signed, config.dnssec, &limits, now.min(Clock::wall())) {
        Ok(signing) => signing,
        Err(errors) => {
            faults.extend(errors.iter().map(ToString::to_string));
            bail!("the keys of the zones have faults:\n  {}", faults.join("\n  "));
        }
    };
    if !faults.is_empty() {
        bail!("the keys of the zones have faults:\n  {}", faults.join("\n  "));
    }
    let zones = zones.into_iter().map(|zone| signing.sign(zone)).collect();
    Ok((Arc::new(signing), zones))
}

/// Makes the next look at the keys come at once. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Looks(Arc<Notify>);

impl Looks {
    /// An operator has changed something.
    pub fn hurry(&self) {
        self.0.notify_one();
    }
}

/// Looks at the keys from now on, whenever something is due.
pub fn keep(signing: Arc<Signing>, looks: Looks, clock: Clock) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let now = clock.now();
            let looking = Arc::clone(&signing);
            // It waits for the disk.
            let Ok(look) = spawn_blocking(move || looking.step(now, Clock::wall())).await else { return };
            for (zone, change) in look.changes {
                tracing::info!(%zone, key = change.tag, state = change.to.word(), reason = change.reason, "key");
            }
            for (zone, error) in look.errors {
                tracing::error!(%zone, %error, "keys stay as they are");
            }
            let pause = look.next.map_or(LOOK_MS_MAX, |next| next.ms_since(clock.now()));
            tokio::select! {
                () = sleep(Duration::from_millis(pause.clamp(LOOK_MS_MIN, LOOK_MS_MAX))) => {}
                () = looks.0.notified() => {}
            }
        }
    })
}
