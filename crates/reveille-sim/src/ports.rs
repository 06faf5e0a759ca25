//! The network side of a simulated host: gates, and clients behind them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use reveille::control::cable::{Cable, Stream};
use reveille::control::ready::NotReady;
use reveille::control::wiring::Wiring;
use reveille_core::model::{
    Cause, DomainName, Gate, InstanceId, PortSpec, Protocol, Role, ServiceSpec, Timestamp,
};
use reveille_net::{ActivatorError, Binding, Busy, EventSender, Replies, ServiceEvents, Traffic};
use reveille_vm::driver::{self, Driver, DriverError};
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant, sleep, timeout};

use crate::world::{Doing, Inside, Life, World};

/// A gate may lead to a guest that has died for so long: it was not noticed yet.
const UNNOTICED_MS: u128 = 3_000;
/// How often a client that is let in tries to reach the guest.
const TRY_EVERY: Duration = Duration::from_millis(50);
/// The port of all services.
pub const PORT: PortSpec = PortSpec { protocol: Protocol::Tcp, number: 80 };

/// A service's addresses on one host.
pub struct Port {
    pub gate: Gate,
    held: Vec<oneshot::Sender<()>>,
    open: u32,
    last_packet: Option<Timestamp>,
    /// Connections of before were cut.
    cuts: u64,
    events: Arc<ServiceEvents>,
}

/// What became of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    Yes,
    /// Nobody listens there.
    NoDaemon,
    Refused,
    /// Cut off, or it has waited for too long.
    No,
}

/// The wiring of one life of a daemon.
pub struct Ports {
    pub life: Life,
    pub sender: EventSender,
}

impl Ports {
    fn port<T>(&self, service: &DomainName, act: impl FnOnce(&mut Port) -> T) -> Option<T> {
        self.life.at_once(|inside, host| inside.hosts.get_mut(host)?.ports.get_mut(service).map(act))?
    }
}

#[async_trait]
impl Wiring for Ports {
    async fn bind(&self, binding: Binding) -> Result<(), ActivatorError> {
        let events = Arc::new(ServiceEvents::new(binding.service.clone(), self.sender.clone()));
        let port = Port { gate: Gate::Hold, held: Vec::new(), open: 0, last_packet: None, cuts: 0, events };
        self.life.at_once(|inside, host| {
            if let Some(host) = inside.hosts.get_mut(host) {
                host.ports.insert(binding.service, port);
            }
        });
        Ok(())
    }

    async fn unbind(&self, service: &DomainName) {
        self.life.at_once(|inside, host| inside.hosts.get_mut(host).map(|host| host.ports.remove(service)));
    }

    fn shares_out(&self) -> bool {
        false
    }

    fn set_gate(&self, service: &DomainName, gate: Gate) {
        self.life.at_once(|inside, host| {
            inside.tell(|| format!("h{host} {service}: gate {gate:?}"));
            if gate == Gate::Open {
                inside.check_gate(host, service);
            }
            let port = inside.hosts.get_mut(host).and_then(|host| host.ports.get_mut(service));
            let Some(port) = port else { return };
            port.gate = gate;
            if gate != Gate::Hold {
                port.held.drain(..).for_each(|held| {
                    let _ = held.send(());
                });
            }
        });
    }

    fn close_if_idle(&self, service: &DomainName, idle_ms: u64, force: bool) -> Result<(), Busy> {
        let closed = self.life.at_once(|inside, host| {
            let now = inside.now();
            let port = inside.hosts.get_mut(host)?.ports.get_mut(service)?;
            let last_packet = port.last_packet.unwrap_or_default();
            let used = port.open > 0 || (port.last_packet.is_some() && now.ms_since(last_packet) < idle_ms);
            if used && !force {
                return Some(Err(Busy { open_connections: port.open, last_packet }));
            }
            port.gate = Gate::Hold;
            port.open = 0;
            port.cuts += 1;
            inside.tell(|| format!("h{host} {service}: gate closed"));
            Some(Ok(()))
        });
        closed.flatten().unwrap_or(Ok(()))
    }

    fn cut(&self, _: InstanceId, service: &DomainName) {
        self.port(service, |port| {
            port.open = 0;
            port.cuts += 1;
        });
    }

    // Its services have one instance.
    fn lead_to(&self, _: InstanceId, _: &DomainName, _: bool) {}

    fn in_use(&self, _: InstanceId, service: &DomainName) -> u32 {
        self.port(service, |port| port.open).unwrap_or_default()
    }

    fn traffic(&self, service: &DomainName) -> Option<Traffic> {
        self.port(service, |port| Traffic {
            open_connections: port.open,
            held_clients: u32::try_from(port.held.len()).unwrap_or(u32::MAX),
            last_packet: port.last_packet,
            ..Traffic::default()
        })
    }

    fn replies(&self, _: InstanceId, _: &DomainName) -> Option<Replies> {
        None
    }

    fn plug(&self, _: InstanceId, _: &DomainName, _: Ipv4Addr, _: Option<Ipv6Addr>) -> driver::Link {
        driver::Link::Stream
    }

    fn plug_bound(&self, _: InstanceId, _: &ServiceSpec) -> Result<driver::Link, Cause> {
        Ok(driver::Link::Stream)
    }

    async fn attach(
        &self,
        instance: InstanceId,
        _: Role,
        _: &ServiceSpec,
        _: &dyn Driver,
    ) -> Result<Arc<dyn Cable>, DriverError> {
        let there = self.life.now(|inside, host| {
            inside.hosts.get(host).is_some_and(|host| host.processes.contains_key(&instance))
        });
        if !there.await {
            return Err(DriverError::NoProcess(instance));
        }
        Ok(Arc::new(GuestCable { life: self.life.clone(), instance }))
    }

    fn detach(&self, _: InstanceId, _: &DomainName) {}
}

/// The way to a guest.
struct GuestCable {
    life: Life,
    instance: InstanceId,
}

#[async_trait]
impl Cable for GuestCable {
    async fn connect(&self, port: u16) -> Result<Box<dyn Stream>, NotReady> {
        self.life.step("a readiness check", 0, 1).await;
        let answers = self.life.now(|inside, host| {
            let process = inside.hosts.get(host)?.processes.get(&self.instance)?;
            let runs = matches!(process.doing, Doing::Runs | Doing::Warms);
            if process.hung || !runs {
                return Some(None);
            }
            Some(Some(!process.port_dead && process.ready_at <= Instant::now()))
        });
        match answers.await {
            None => Err(NotReady::Unreachable { detail: "there is no guest".to_owned() }),
            Some(None) => std::future::pending().await,
            Some(Some(false)) => Err(NotReady::Refused { port }),
            // The other end is gone at once: the check says nothing and parts.
            Some(Some(true)) => Ok(Box::new(tokio::io::empty())),
        }
    }
}

impl Inside {
    /// A gate is opened: there is a guest behind it, and it answers.
    fn check_gate(&mut self, host: usize, service: &DomainName) {
        let Some(state) = self.hosts.get(host) else { return };
        let fault = match state.process_of(service) {
            Some(process) if process.doing == Doing::Runs => {
                let early = process.booted && process.ready_at > Instant::now();
                early.then(|| "before its guest is ready".to_owned())
            }
            // It was found standing still between two daemons, and is about to be let run again.
            Some(process) if process.doing == Doing::Stopped && !process.capturing => None,
            Some(process) => Some(format!("while its guest is in no state to answer ({:?})", process.doing)),
            None => {
                let noticed = |ended: &Instant| ended.elapsed().as_millis() > UNNOTICED_MS;
                let late = state.ended_at.get(service).is_none_or(noticed);
                late.then(|| "without a guest".to_owned())
            }
        };
        if let Some(fault) = fault {
            self.violate(format!("h{host} {service}: its gate is opened {fault}"));
        }
    }

    /// Lets a client through an open gate, if its guest answers; whether it shall try again.
    fn let_through(&mut self, host: usize, service: &DomainName) -> Option<bool> {
        let now = self.now();
        let state = self.hosts.get_mut(host)?;
        let process = state.processes.values().find(|process| process.service == *service);
        let Some(process) = process else {
            let noticed = |ended: &Instant| ended.elapsed().as_millis() > UNNOTICED_MS;
            if state.ended_at.get(service).is_none_or(noticed) {
                self.violate(format!("h{host} {service}: a client is let in and there is no guest"));
            }
            return Some(false);
        };
        if process.hung || process.port_dead || process.ready_at > Instant::now() {
            return Some(false);
        }
        if process.doing == Doing::Stopped && !process.capturing {
            return Some(false);
        }
        if !matches!(process.doing, Doing::Runs) {
            let doing = process.doing;
            self.violate(format!(
                "h{host} {service}: a client is let in to a guest that stands still ({doing:?})"
            ));
            return Some(false);
        }
        let run = process.run;
        let port = state.ports.get_mut(service)?;
        port.open += 1;
        port.last_packet = Some(now);
        if let Some(run) = run.and_then(|run| self.truths.run(run)) {
            run.served += 1;
        }
        Some(true)
    }
}

/// A client that comes to a service on a host, stays for `stay` once it is served, and waits at most `patience`.
pub async fn client(
    world: Arc<World>,
    host: usize,
    service: DomainName,
    stay: Duration,
    patience: Duration,
) -> Served {
    match timeout(patience, arrive(&world, host, &service)).await {
        Ok(Served::Yes) => visit(&world, host, &service, stay).await,
        Ok(served @ (Served::NoDaemon | Served::Refused | Served::No)) => served,
        Err(_) => Served::No,
    }
}

/// Waits until it is let in.
async fn arrive(world: &World, host: usize, service: &DomainName) -> Served {
    let from: SocketAddr = ([192, 0, 2, 1], 4_000).into();
    loop {
        let waits = {
            let mut inside = world.lock();
            let port = inside.hosts.get_mut(host).and_then(|host| host.ports.get_mut(service));
            let Some(port) = port else { return Served::NoDaemon };
            match port.gate {
                Gate::Refuse => return Served::Refused,
                Gate::Hold => {
                    let (sender, receiver) = oneshot::channel();
                    port.held.retain(|held| !held.is_closed());
                    port.held.push(sender);
                    port.events.wanted(from, PORT);
                    Some(receiver)
                }
                Gate::Open => match inside.let_through(host, service) {
                    Some(true) => return Served::Yes,
                    Some(false) | None => None,
                },
            }
        };
        match waits {
            // Released, or the daemon is gone.
            Some(held) => drop(held.await),
            None => sleep(TRY_EVERY).await,
        }
    }
}

/// It is connected for a while.
async fn visit(world: &World, host: usize, service: &DomainName, stay: Duration) -> Served {
    let cuts = |inside: &mut Inside| {
        inside.hosts.get_mut(host).and_then(|host| host.ports.get_mut(service)).map(|port| port.cuts)
    };
    let before = cuts(&mut world.lock());
    sleep(stay).await;
    let mut inside = world.lock();
    if before.is_none() || cuts(&mut inside) != before {
        return Served::No;
    }
    let now = inside.now();
    if let Some(port) = inside.hosts.get_mut(host).and_then(|host| host.ports.get_mut(service)) {
        port.open = port.open.saturating_sub(1);
        port.last_packet = Some(now);
        if port.open == 0 {
            port.events.idle();
        }
    }
    Served::Yes
}
