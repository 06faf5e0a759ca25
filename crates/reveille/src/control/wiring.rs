//! The network side of the host, as the control loop sees it: where clients wait, and how guests are reached.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use reveille_core::model::{Cause, DomainName, Egress, Gate, InstanceId, Role, ServiceSpec};
use reveille_net::guest::{Link, LinkAddresses};
use reveille_net::tap::{EgressPolicy, GATEWAY, GATEWAY6, TapAddresses, Taps};
use reveille_net::{Activator, ActivatorError, Binding, Busy, Replies, Traffic};
use reveille_vm::driver::{self, Driver, DriverError, Tap, TapQueue};

use super::cable::{Cable, LinkCable, TapCable};

/// The network side of a host. The verbs of the activator are those of [`Activator`].
#[async_trait]
pub trait Wiring: Send + Sync {
    /// Takes a service's addresses, with the gate on hold.
    ///
    /// # Errors
    /// What is missing and what to do. Nothing is bound then.
    async fn bind(&self, binding: Binding) -> Result<(), ActivatorError>;

    /// Gives a service's addresses back.
    async fn unbind(&self, service: &DomainName);

    /// Whether clients of one service can be shared out among several instances.
    fn shares_out(&self) -> bool;

    /// Sets what is done with a service's clients.
    fn set_gate(&self, service: &DomainName, gate: Gate);

    /// Closes the gate if the service is not used, in one step with looking.
    ///
    /// # Errors
    /// [`Busy`] if it is used; then the gate is as it was.
    fn close_if_idle(&self, service: &DomainName, idle_ms: u64, force: bool) -> Result<(), Busy>;

    /// The instance is lost: its connections end, or are led to other instances of the service.
    fn cut(&self, instance: InstanceId, service: &DomainName);

    /// Whether new clients are led to the instance from now on; those that are open stay with it.
    fn lead_to(&self, instance: InstanceId, service: &DomainName, takes: bool);

    /// Connections and sessions that lead to the instance.
    fn in_use(&self, instance: InstanceId, service: &DomainName) -> u32;

    /// What passes and has passed; `None` if the service is not bound.
    fn traffic(&self, service: &DomainName) -> Option<Traffic>;

    /// What the instance's process has answered clients; `None` where answers do not pass through this process.
    fn replies(&self, instance: InstanceId, service: &DomainName) -> Option<Replies>;

    /// What the network card of an instance of that service is plugged into.
    fn plug(
        &self,
        instance: InstanceId,
        service: &DomainName,
        v4: Ipv4Addr,
        v6: Option<Ipv6Addr>,
    ) -> driver::Link;

    /// The same for a service that is bound.
    ///
    /// # Errors
    /// Why its guest cannot have a network.
    fn plug_bound(&self, instance: InstanceId, spec: &ServiceSpec) -> Result<driver::Link, Cause>;

    /// The cable of an instance. If there is none yet it is made, and clients are led over it if it is its service's
    /// primary; to others once they are said to take them.
    ///
    /// # Errors
    /// There is no process, or it has no network.
    async fn attach(
        &self,
        instance: InstanceId,
        role: Role,
        spec: &ServiceSpec,
        driver: &dyn Driver,
    ) -> Result<Arc<dyn Cable>, DriverError>;

    /// The process behind the cable is gone.
    fn detach(&self, instance: InstanceId, service: &DomainName);
}

/// Relay or taps, with the links of guests.
pub struct HostWiring {
    activator: Activator,
    /// Whom guests with egress ask for names, in tap mode.
    nameserver: Option<IpAddr>,
    links: Mutex<BTreeMap<InstanceId, Arc<Link>>>,
}

impl HostWiring {
    /// Over an activator, without links. Guests with egress behind taps ask `nameserver` for names.
    pub fn new(activator: Activator, nameserver: Option<IpAddr>) -> Self {
        Self { activator, nameserver, links: Mutex::default() }
    }

    /// The link that there is, unless it is one to a process that has ended.
    fn open_link(&self, instance: InstanceId) -> Option<Arc<Link>> {
        self.links().get(&instance).filter(|link| !link.is_closed()).map(Arc::clone)
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Wiring for HostWiring {
    async fn bind(&self, mut binding: Binding) -> Result<(), ActivatorError> {
        if let EgressPolicy::Nat { nameserver, .. } = &mut binding.egress {
            *nameserver = self.nameserver;
        }
        self.activator.bind(binding).await
    }

    async fn unbind(&self, service: &DomainName) {
        self.activator.unbind(service).await;
    }

    fn shares_out(&self) -> bool {
        matches!(self.activator, Activator::Relay(_))
    }

    fn set_gate(&self, service: &DomainName, gate: Gate) {
        self.activator.set_gate(service, gate);
    }

    fn close_if_idle(&self, service: &DomainName, idle_ms: u64, force: bool) -> Result<(), Busy> {
        self.activator.close_if_idle(service, idle_ms, force)
    }

    fn cut(&self, instance: InstanceId, service: &DomainName) {
        self.activator.cut(service, instance);
    }

    fn lead_to(&self, instance: InstanceId, service: &DomainName, takes: bool) {
        self.activator.lead_to(service, instance, takes);
    }

    fn in_use(&self, instance: InstanceId, service: &DomainName) -> u32 {
        self.activator.in_use(service, instance)
    }

    fn traffic(&self, service: &DomainName) -> Option<Traffic> {
        self.activator.traffic(service)
    }

    fn replies(&self, instance: InstanceId, service: &DomainName) -> Option<Replies> {
        self.activator.replies(service, instance)
    }

    fn plug(
        &self,
        instance: InstanceId,
        service: &DomainName,
        v4: Ipv4Addr,
        v6: Option<Ipv6Addr>,
    ) -> driver::Link {
        match &self.activator {
            Activator::Relay(_) => driver::Link::Stream,
            Activator::Tap(taps) => driver::Link::Tap(Tap {
                mac: TapAddresses { v4, v6 }.mac(),
                address: v4,
                gateway: GATEWAY,
                v6: v6.map(|address| (address, GATEWAY6)),
                nameserver: None,
                queue: Arc::new(Queue { taps: taps.clone(), service: service.clone(), instance }),
            }),
        }
    }

    fn plug_bound(&self, instance: InstanceId, spec: &ServiceSpec) -> Result<driver::Link, Cause> {
        let name = &spec.name;
        let Activator::Tap(taps) = &self.activator else { return Ok(driver::Link::Stream) };
        let addresses = taps.addresses(name);
        let TapAddresses { v4, v6 } = addresses.ok_or_else(|| Cause::StartFailed {
            detail: "its tap devices could not be made; see the log of the daemon's start".to_owned(),
        })?;
        // Changed, perhaps, since the service was bound.
        taps.set_egress(name, &egress_policy(spec, self.nameserver))
            .map_err(|error| Cause::StartFailed { detail: error.to_string() })?;
        let mut link = self.plug(instance, name, v4, v6);
        if let (driver::Link::Tap(tap), Egress::Nat) = (&mut link, spec.egress) {
            tap.nameserver = self.nameserver;
        }
        Ok(link)
    }

    async fn attach(
        &self,
        instance: InstanceId,
        role: Role,
        spec: &ServiceSpec,
        driver: &dyn Driver,
    ) -> Result<Arc<dyn Cable>, DriverError> {
        if let Activator::Tap(taps) = &self.activator {
            return Ok(Arc::new(TapCable(taps.clone(), spec.name.clone())));
        }
        if let Some(link) = self.open_link(instance) {
            return Ok(Arc::new(LinkCable(link)));
        }
        let stream = driver.network(instance).await?;
        let link = Arc::new(Link::attach(stream, addresses(spec.egress)));
        let link = self.open_link(instance).unwrap_or_else(|| {
            self.links().insert(instance, Arc::clone(&link));
            link
        });
        self.activator.set_link(&spec.name, instance, Some(Arc::clone(&link)), role == Role::Primary);
        Ok(Arc::new(LinkCable(link)))
    }

    fn detach(&self, instance: InstanceId, service: &DomainName) {
        self.links().remove(&instance);
        self.activator.set_link(service, instance, None, false);
        self.activator.release(service, instance);
    }
}

/// What a guest behind a tap may reach by itself.
pub fn egress_policy(spec: &ServiceSpec, nameserver: Option<IpAddr>) -> EgressPolicy {
    match spec.egress {
        Egress::None => EgressPolicy::None,
        Egress::Nat => {
            let (allow, deny) = (spec.egress_allow.clone(), spec.egress_deny.clone());
            EgressPolicy::Nat { allow, deny, nameserver }
        }
    }
}

/// With user-mode networking on the same wire the gateway is there already.
pub fn addresses(egress: Egress) -> LinkAddresses {
    LinkAddresses { gateway: egress == Egress::None }
}

/// A service's tap device, opened when a process is to have it.
struct Queue {
    taps: Taps,
    service: DomainName,
    instance: InstanceId,
}

impl TapQueue for Queue {
    fn open(&self) -> io::Result<OwnedFd> {
        self.taps.queue(&self.service, self.instance)
    }
}
