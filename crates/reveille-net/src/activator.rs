//! The activator as the control loop sees it, in either mode.

use std::sync::Arc;

use reveille_core::model::{DomainName, Gate, InstanceId};

use crate::binding::{BindError, Binding};
use crate::counters::{Replies, Traffic};
use crate::guest::Link;
use crate::relay::{Busy, Relay};
use crate::tap::{Echo, TapAddresses, TapBinding, TapError, Taps};
use crate::upstream::Backend;

/// What holds clients' first packets while an instance wakes. Cheap to clone. Its verbs mean the same in both modes:
/// those of [`Relay`].
#[derive(Clone)]
pub enum Activator {
    /// Accepts connections and passes on what is said on them.
    Relay(Relay),
    /// Holds frames, and is out of the way afterwards.
    Tap(Taps),
}

/// Why a service cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ActivatorError {
    /// In relay mode.
    #[error(transparent)]
    Relay(#[from] BindError),
    /// In tap mode.
    #[error(transparent)]
    Tap(#[from] TapError),
}

impl Activator {
    /// Takes a service's addresses, with the gate on [`Gate::Hold`].
    ///
    /// # Errors
    /// What is missing and what to do. Nothing is bound then.
    pub async fn bind(&self, binding: Binding) -> Result<(), ActivatorError> {
        match self {
            Self::Relay(relay) => Ok(relay.bind(binding).await?),
            Self::Tap(taps) => {
                let Binding { service, stable, ports, held_clients_max, held_ms_max, egress, .. } = binding;
                let addresses =
                    TapAddresses::among(&stable).ok_or_else(|| TapError::NoAddress(service.clone()))?;
                let echo = Echo::default();
                let binding =
                    TapBinding { service, addresses, ports, held_clients_max, held_ms_max, echo, egress };
                Ok(taps.bind(&binding)?)
            }
        }
    }

    /// The taps, in tap mode.
    pub fn taps(&self) -> Option<Taps> {
        match self {
            Self::Relay(_) => None,
            Self::Tap(taps) => Some(taps.clone()),
        }
    }

    /// Gives a service's addresses back.
    pub async fn unbind(&self, service: &DomainName) {
        match self {
            Self::Relay(relay) => relay.unbind(service).await,
            Self::Tap(taps) => taps.unbind(service).await,
        }
    }

    /// See [`Relay::set_gate`].
    pub fn set_gate(&self, service: &DomainName, gate: Gate) {
        match self {
            Self::Relay(relay) => relay.set_gate(service, gate),
            Self::Tap(taps) => taps.set_gate(service, gate),
        }
    }

    /// See [`Relay::set_member`]; without meaning in tap mode, in which a service has one instance.
    pub fn set_link(&self, service: &DomainName, member: InstanceId, link: Option<Arc<Link>>, takes: bool) {
        match self {
            Self::Relay(relay) => {
                relay.set_member(service, member, link.map_or(Backend::None, Backend::Guest), takes);
            }
            Self::Tap(_) => {}
        }
    }

    /// The process of the instance is gone: in tap mode another one may have the service's device.
    pub fn release(&self, service: &DomainName, member: InstanceId) {
        match self {
            Self::Relay(_) => {}
            Self::Tap(taps) => taps.release(service, member),
        }
    }

    /// See [`Relay::lead_to`]; without meaning in tap mode.
    pub fn lead_to(&self, service: &DomainName, member: InstanceId, takes: bool) {
        match self {
            Self::Relay(relay) => relay.lead_to(service, member, takes),
            Self::Tap(_) => {}
        }
    }

    /// See [`Relay::in_use`]; in tap mode the service's one instance has all.
    pub fn in_use(&self, service: &DomainName, member: InstanceId) -> u32 {
        match self {
            Self::Relay(relay) => relay.in_use(service, member),
            Self::Tap(taps) => taps.traffic(service).map_or(0, |traffic| traffic.open_connections),
        }
    }

    /// See [`Relay::replies`]; in tap mode nobody sees them.
    pub fn replies(&self, service: &DomainName, member: InstanceId) -> Option<Replies> {
        match self {
            Self::Relay(relay) => Some(relay.replies(service, member)),
            Self::Tap(_) => None,
        }
    }

    /// See [`Relay::close_if_idle`].
    ///
    /// # Errors
    /// [`Busy`] if the service is used; then the gate is as it was.
    pub fn close_if_idle(&self, service: &DomainName, idle_ms: u64, force: bool) -> Result<(), Busy> {
        match self {
            Self::Relay(relay) => relay.close_if_idle(service, idle_ms, force),
            Self::Tap(taps) => taps.close_if_idle(service, idle_ms, force),
        }
    }

    /// See [`Relay::cut_member`].
    pub fn cut(&self, service: &DomainName, member: InstanceId) {
        match self {
            Self::Relay(relay) => relay.cut_member(service, member),
            Self::Tap(taps) => taps.cut(service),
        }
    }

    /// See [`Relay::traffic`].
    pub fn traffic(&self, service: &DomainName) -> Option<Traffic> {
        match self {
            Self::Relay(relay) => relay.traffic(service),
            Self::Tap(taps) => taps.traffic(service),
        }
    }
}
