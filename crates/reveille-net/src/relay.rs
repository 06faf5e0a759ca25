//! The relay as the control loop sees it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reveille_core::model::{DomainName, Gate, InstanceId, Timestamp};
use tokio::sync::{Semaphore, mpsc};

use crate::binding::{BindError, Binding, RelayLimits};
use crate::counters::{Replies, Traffic};
use crate::events::{EventSender, RelayEvents, ServiceEvents, channel};
use crate::gate::{ServiceGate, ServiceLimits};
use crate::guest::Link;
use crate::held::HeldLimits;
use crate::listen::Listeners;
use crate::tcp::TcpPort;
use crate::udp::UdpPort;
use crate::upstream::Backend;

/// The instance of a service that has one.
const ONLY: InstanceId = InstanceId(0);

/// The daemon's clock.
pub type Now = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// A gate that was not closed, because somebody uses the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{open_connections} connections are open; the last packet passed at {} ms", last_packet.as_ms())]
pub struct Busy {
    /// Connections open now.
    pub open_connections: u32,
    /// When a byte or datagram last passed; now, if clients were let in that have not sent anything.
    pub last_packet: Timestamp,
}

/// All services' relays. Cheap to clone; when the last clone is dropped all services are unbound.
///
/// All but [`Relay::bind`] and [`Relay::unbind`] return at once and may be called from any thread. Calls for a
/// service that is not bound do nothing: nothing passes for it.
#[derive(Clone)]
pub struct Relay {
    inner: Arc<Inner>,
}

struct Inner {
    limits: RelayLimits,
    now: Now,
    events: EventSender,
    places: Arc<Semaphore>,
    bound: Mutex<BTreeMap<DomainName, Bound>>,
}

struct Bound {
    gate: Arc<ServiceGate>,
    /// Yields its end when the last task of the service is gone.
    ended: mpsc::Receiver<()>,
}

impl Relay {
    /// A relay without services, and where it reports to.
    pub fn new(limits: RelayLimits, now: Now) -> (Self, RelayEvents) {
        let (events, receiver) = channel();
        let places =
            usize::try_from(limits.connections_max).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let inner = Inner {
            limits,
            now,
            events,
            places: Arc::new(Semaphore::new(places)),
            bound: Mutex::new(BTreeMap::new()),
        };
        (Self { inner: Arc::new(inner) }, receiver)
    }

    /// Listens on all ports of all stable addresses of the service, with the gate on [`Gate::Hold`].
    ///
    /// Must be called within the runtime that is to run the relay.
    ///
    /// # Errors
    /// The first address and port that cannot be listened on, and what to do. Nothing is bound then.
    // Asynchronous as its counterpart is, although opening sockets does not wait today.
    #[allow(clippy::unused_async)]
    pub async fn bind(&self, binding: Binding) -> Result<(), BindError> {
        let mut bound = self.inner.lock();
        if bound.contains_key(&binding.service) {
            return Err(BindError::AlreadyBound(binding.service));
        }
        let listeners = Listeners::open(&binding)?;
        bound.insert(binding.service.clone(), self.inner.start(&binding, listeners));
        Ok(())
    }

    /// Ends the service's listeners, connections (by reset) and sessions, and returns when the last socket is
    /// closed.
    pub async fn unbind(&self, service: &DomainName) {
        let bound = self.inner.lock().remove(service);
        if let Some(mut bound) = bound {
            bound.gate.end();
            // Nobody sends: this is the end of the last sender.
            while bound.ended.recv().await.is_some() {}
        }
    }

    /// Sets what is done with clients. Open connections stay open whatever the gate is: see
    /// [`Relay::close_if_idle`] and [`Relay::cut`].
    pub fn set_gate(&self, service: &DomainName, gate: Gate) {
        if let Some(found) = self.inner.gate(service) {
            found.set(gate);
        }
    }

    /// Sets where the service's clients are led: to be done before the gate opens, and again when the service was
    /// bound anew, since it is then led nowhere. Connections and flows that exist stay with what they lead to, until
    /// that is closed or [`Relay::cut`]. For a service of one instance; of several see [`Relay::set_member`].
    pub fn set_backend(&self, service: &DomainName, backend: Backend) {
        self.set_member(service, ONLY, backend, true);
    }

    /// Leads the service's clients into the guest behind `link`; nowhere with `None`.
    pub fn set_link(&self, service: &DomainName, link: Option<Arc<Link>>) {
        self.set_backend(service, link.map_or(Backend::None, Backend::Guest));
    }

    /// Sets one of the instances behind a service, as [`Relay::set_backend`] does the only one; [`Backend::None`] takes
    /// it away. Each client is led to the one that has the fewest, among those that take any.
    pub fn set_member(&self, service: &DomainName, member: InstanceId, backend: Backend, takes: bool) {
        if let Some(gate) = self.inner.gate(service) {
            gate.set_member(member, backend, takes);
        }
    }

    /// Whether new clients are led to the instance from now on; those that are open stay with it.
    pub fn lead_to(&self, service: &DomainName, member: InstanceId, takes: bool) {
        if let Some(gate) = self.inner.gate(service) {
            gate.lead_to(member, takes);
        }
    }

    /// TCP connections and UDP sessions that lead to the instance.
    pub fn in_use(&self, service: &DomainName, member: InstanceId) -> u32 {
        self.inner.gate(service).map_or(0, |gate| gate.in_use(member))
    }

    /// What the instance has answered since it is behind the service.
    pub fn replies(&self, service: &DomainName, member: InstanceId) -> Replies {
        self.inner.gate(service).map_or_else(Replies::default, |gate| gate.replies(member))
    }

    /// One of several instances is lost: as [`Relay::cut`], for what leads to it alone. Clients over whose connection no
    /// byte has passed are led to another one. With no other instance it is the same as [`Relay::cut`].
    pub fn cut_member(&self, service: &DomainName, member: InstanceId) {
        if let Some(gate) = self.inner.gate(service) {
            gate.cut_member(member);
        }
    }

    /// Closes the gate (from [`Gate::Open`] to [`Gate::Hold`]) if no connection is open and no byte or datagram
    /// passed for `idle_ms`; with `force` in any case, and open connections are reset. A connection that both sides
    /// have closed is open until the guest has acknowledged its last bytes.
    ///
    /// This is atomic with arrivals. After `Ok` no connection, byte or datagram is sent to the instance until
    /// [`Relay::set_gate`] opens the gate again; whatever arrives is held and reported as
    /// [`RelayEvent::Wanted`](crate::RelayEvent::Wanted).
    ///
    /// # Errors
    /// [`Busy`] if the service is used; then the gate is as it was.
    pub fn close_if_idle(&self, service: &DomainName, idle_ms: u64, force: bool) -> Result<(), Busy> {
        self.inner.gate(service).map_or(Ok(()), |gate| gate.close_if_idle(idle_ms, force))
    }

    /// The instance is lost: open connections are reset, so that their clients connect again, and UDP sessions
    /// end. Clients over whose connection no byte has passed are held again, within the limits, and like those that
    /// are held already they raise [`RelayEvent::Wanted`](crate::RelayEvent::Wanted). The gate stays as it is.
    pub fn cut(&self, service: &DomainName) {
        if let Some(gate) = self.inner.gate(service) {
            gate.cut();
        }
    }

    /// What passes and has passed; `None` if the service is not bound.
    pub fn traffic(&self, service: &DomainName) -> Option<Traffic> {
        self.inner.gate(service).map(|gate| gate.traffic())
    }
}

impl Inner {
    /// Starts a task for each listener.
    fn start(&self, binding: &Binding, listeners: Listeners) -> Bound {
        let limits = ServiceLimits {
            held_clients_max: binding.held_clients_max,
            connections_max: self.limits.service_connections_max,
            held_max: Duration::from_millis(binding.held_ms_max),
            half_closed_max: Duration::from_millis(self.limits.half_closed_ms_max),
            udp_idle: Duration::from_millis(binding.udp_idle_ms),
            udp_sessions_max: self.limits.udp_sessions_max,
            datagrams: HeldLimits {
                client_datagrams: self.limits.client_datagrams_max,
                client_bytes: self.limits.client_datagram_bytes_max,
                service_datagrams: self.limits.service_datagrams_max,
                service_bytes: self.limits.service_datagram_bytes_max,
            },
        };
        let events = ServiceEvents::new(binding.service.clone(), self.events.clone());
        let gate = Arc::new(ServiceGate::new(limits, events, Arc::clone(&self.now)));
        let (alive, ended) = mpsc::channel(1);
        for (listener, port) in listeners.tcp {
            let port = TcpPort {
                gate: Arc::clone(&gate),
                port,
                places: Arc::clone(&self.places),
                alive: alive.clone(),
            };
            tokio::spawn(port.accept(listener));
        }
        for (socket, port) in listeners.udp {
            let port = UdpPort::new(Arc::clone(&gate), port, socket, alive.clone());
            tokio::spawn(port.run());
        }
        Bound { gate, ended }
    }

    fn gate(&self, service: &DomainName) -> Option<Arc<ServiceGate>> {
        self.lock().get(service).map(|bound| Arc::clone(&bound.gate))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DomainName, Bound>> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for bound in self.lock().values() {
            bound.gate.end();
        }
    }
}
