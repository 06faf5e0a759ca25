//! The activator in tap mode: holds the frames that come to a guest that sleeps, and is out of the way of all others.
//!
//! A guest has the service's stable addresses itself, on a network card that is a tap device of the host. Each service
//! has two devices, the *holder*, which the daemon reads, and the *guest's*, which QEMU reads, and a route that leads to
//! one of them (`device`).
//!
//! ```text
//!            asleep                                     awake
//! client ──► route ──► holder ──► queue, Wanted         client ──► route ──► guest's device ──► QEMU
//!                                                                    ╎ (copies of SYN, FIN, RST; a packet now and then)
//!                                                                    └╌╌► ear
//! ```
//!
//! # Why nothing is lost, and nothing overtakes
//!
//! **Waking** ([`Taps::set_gate`] with [`Gate::Open`], called when the vCPUs run, after a cold boot when the guest is
//! ready). Under the service's lock: what waits at the holder is read into the queue; the queue is sent through the
//! guest's device, in order; only then the route is flipped; then what was on its way to the holder meanwhile is read
//! and sent. A queue that is longer than a batch is sent in steps first, so a newcomer stays behind those that waited.
//! Between the last look at the holder and the flip lie some ten microseconds: a packet of that time may be overtaken
//! by the next, as on any network, and is not lost, because the holder is read as long as the daemon lives.
//!
//! **Going to sleep** ([`Taps::close_if_idle`]). The ear listens to packets to the guest, then the route is flipped, then
//! it is looked what was heard: anything, and the route goes back, and the holder's frames with it. A packet that was
//! routed before the flip and is sent after that look is heard by the ear when it enters the guest's device, and raises
//! `Wanted`, which gives the capture up: the guest runs again, QEMU delivers what it had read and reads on. The
//! packets that a NIC forwards cannot be that late (route and transmission are one softirq); one that a process of this
//! host sends can, if it is preempted between the two for as long as a capture takes. If the process has ended
//! by then, that packet is lost with QEMU's own queue, and the client's retransmission wakes the guest.
//!
//! **While it stands still** QEMU reads one frame of the device, cannot deliver it, and reads no more. So nothing but the
//! host's own noise (neighbour discovery, group membership) may be sent there: the route is at the holder. That noise is
//! dropped before the next process gets the device.
//!
//! **A cold boot.** Frames come when the guest is ready and not earlier: the gate is held until then. The looks whether it
//! is ([`Taps::look`]) pass the gate, bound to the device, from an address of their own, by which the ear
//! tells them from clients.
//!
//! **Hardware addresses** are the same for the host's side of both devices, and for a guest in all its processes: the
//! neighbours that a restored guest remembers are still right. Ours are permanent, so the kernel asks for nobody; they
//! are set after the hardware address, which would take them away.
//!
//! **Checksums.** The holder is a device without offloads: the kernel finishes checksums and cuts segments before it
//! gives a frame to it, so what is held is as on a wire and can be sent again by anybody. The guest's device has
//! offloads, which QEMU arranges with the guest.
//!
//! # What wakes
//!
//! A SYN or a datagram to a declared port; what is said on a connection that sleeps with its guest. Not ARP, neighbour or
//! router discovery, group membership, a ping, a keep-alive, an end of a connection, another port (which is answered
//! as by a host on which nobody listens).
//!
//! # What is in use
//!
//! An open connection, and a packet within the idle time (`ear`, `flows`): judged from copies of few frames' heads, beside
//! the data path. After a restart of the daemon the connections of a guest that runs are not known: only its packets
//! keep it awake. If it is put to sleep, its connections sleep with it, and what is said on them wakes it.

mod device;
mod ear;
mod filter;
mod firewall;
mod flows;
mod frame;
mod held;
mod neighbours;
mod netlink;
mod service;
mod sys;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reveille_core::model::{DomainName, Gate, InstanceId, PortSpec};
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until};

pub use device::{GATEWAY, GATEWAY6, HOST_MAC, PROBE_SOURCE, TapAddresses};
pub use firewall::{EgressPolicy, FirewallError, try_rules};

use crate::counters::Traffic;
use crate::events::{EventSender, RelayEvents, ServiceEvents, channel};
use crate::relay::{Busy, Now};
use device::Devices;
use firewall::Firewall;
use held::HeldLimits;
use neighbours::Neighbours;
use netlink::Netlink;
use service::Service;

/// Pause between two steps of handing over what waited.
const RELEASE_PAUSE: Duration = Duration::from_millis(1);
/// Pause after an error of a device.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// What becomes of pings to a guest that sleeps. They never wake it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Echo {
    /// They are answered in its place.
    #[default]
    Answer,
    /// They are not answered.
    Drop,
}

/// Where a service is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapBinding {
    /// The service.
    pub service: DomainName,
    /// Its addresses, which are the guest's own.
    pub addresses: TapAddresses,
    /// The ports by which it is woken. A guest that is awake is reached at all of its ports.
    pub ports: Vec<PortSpec>,
    /// Most TCP clients that are held at a time.
    pub held_clients_max: u32,
    /// Longest time, in milliseconds, that a frame waits for the guest.
    pub held_ms_max: u64,
    /// What becomes of pings.
    pub echo: Echo,
    /// What the guest may reach by itself.
    pub egress: EgressPolicy,
}

/// Limits that do not depend on a service's policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapLimits {
    /// Most frames that are held for one service; at most 900, so that they fit into the guest's device.
    pub frames_max: usize,
    /// Their bytes.
    pub frame_bytes_max: usize,
    /// Most frames that are held of one client address.
    pub client_frames_max: u32,
}

impl Default for TapLimits {
    fn default() -> Self {
        Self { frames_max: 512, frame_bytes_max: 1 << 20, client_frames_max: 128 }
    }
}

/// Why tap mode cannot be used, or not for a service.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No right.
    #[error(
        "no permission for tap devices; grant CAP_NET_ADMIN and CAP_NET_RAW (systemd: AmbientCapabilities=) or set \
         net.mode = \"relay\""
    )]
    Forbidden,
    /// The kernel has none.
    #[error("there is no /dev/net/tun; load the module `tun` or set net.mode = \"relay\"")]
    NoTun,
    /// It is bound already.
    #[error("{0} has its tap devices already; unbind it first")]
    AlreadyBound(DomainName),
    /// No address that a guest could have.
    #[error("{0} has no IPv4 address, which tap mode needs")]
    NoAddress(DomainName),
    /// An address that packets never leave the host for.
    #[error("{0} is no address that packets are routed to; give the service one outside 127.0.0.0/8")]
    Loopback(Ipv4Addr),
    /// Anything else.
    #[error("{service}: its tap devices cannot be made: {source}")]
    Device {
        /// The service.
        service: DomainName,
        /// The cause.
        source: io::Error,
    },
    /// The kernel does not speak of routes.
    #[error("the kernel's routes cannot be changed: {0}")]
    Netlink(io::Error),
    /// There is no such link, or the kernel does not answer on it.
    #[error("the host cannot answer for services on the link `{link}` (net.bridge): {source}")]
    Bridge {
        /// Its name.
        link: String,
        /// The cause.
        source: io::Error,
    },
    /// What guests may send cannot be limited.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
}

impl TapError {
    fn of(service: DomainName, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Forbidden,
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => Self::NoTun,
            Some(_) | None => Self::Device { service, source },
        }
    }
}

/// Makes a tap device and a socket to the routes, to see whether that is possible; both are gone when it returns.
///
/// # Errors
/// What is missing and what to do.
pub fn try_device() -> Result<(), TapError> {
    Netlink::open().map_err(TapError::Netlink)?;
    device::try_one().map_err(|error| TapError::of(DomainName::root(), error))
}

/// All services in tap mode. Cheap to clone; when the last clone is dropped all services are unbound.
///
/// The counterpart of [`Relay`](crate::Relay), with the same meanings; see the [module](self) for what is different.
#[derive(Clone)]
pub struct Taps {
    inner: Arc<Inner>,
}

struct Inner {
    limits: TapLimits,
    now: Now,
    events: EventSender,
    netlink: Arc<Netlink>,
    firewall: Firewall,
    neighbours: Option<Neighbours>,
    bound: Mutex<BTreeMap<DomainName, Bound>>,
}

struct Bound {
    service: Arc<Service>,
    tasks: [JoinHandle<()>; 2],
}

impl Taps {
    /// Without services, and where it reports to. Works in the network namespace of the calling thread, of which no other
    /// may be in tap mode. On `bridge`, if given, the host answers for the services' addresses when neighbours look
    /// for them.
    ///
    /// # Errors
    /// The kernel does not speak of routes, there is no such link, or what guests may send cannot be limited.
    pub fn open(limits: TapLimits, bridge: Option<&str>, now: Now) -> Result<(Self, RelayEvents), TapError> {
        let (events, receiver) = channel();
        let netlink = Arc::new(Netlink::open().map_err(TapError::Netlink)?);
        let firewall = Firewall::open()?;
        let neighbours = Neighbours::open(&netlink, bridge).map_err(|source| match bridge {
            Some(link) => TapError::Bridge { link: link.to_owned(), source },
            None => TapError::Netlink(source),
        })?;
        let inner = Inner { limits, now, events, netlink, firewall, neighbours, bound: Mutex::default() };
        Ok((Self { inner: Arc::new(inner) }, receiver))
    }

    /// Limits what the guests of all services may send, those of later ones included. Before this no process is given
    /// a device.
    ///
    /// # Errors
    /// The rules cannot be made.
    pub fn guard(&self) -> Result<(), TapError> {
        Ok(self.inner.firewall.enforce()?)
    }

    /// Gives a guest another policy from now on; nothing is done if it has that policy.
    ///
    /// # Errors
    /// The rules cannot be made; those that there are stay.
    pub fn set_egress(&self, service: &DomainName, egress: &EgressPolicy) -> Result<(), TapError> {
        match self.inner.service(service) {
            Some(found) => Ok(self.inner.firewall.put(found.addresses, egress)?),
            None => Ok(()),
        }
    }

    /// Unbinds all services and removes the rules, unless a guest runs on.
    pub async fn close(&self) {
        let services: Vec<DomainName> = self.inner.lock().keys().cloned().collect();
        let mut addresses = Vec::with_capacity(services.len());
        for service in services {
            let Some(own) = self.end(&service).await else { continue };
            addresses.push(own.v4);
            // Neighbours go on finding a guest that runs on.
            if !device::is_there(own.v4) {
                self.inner.forget(own);
            }
        }
        self.inner.firewall.lift(&addresses);
    }

    /// Makes the service's devices and routes, with the gate on [`Gate::Hold`]. A guest that runs since before the
    /// daemon was started keeps its device.
    ///
    /// Must be called within the runtime that is to read from them.
    ///
    /// # Errors
    /// What is missing and what to do. Nothing is left of it then.
    pub fn bind(&self, binding: &TapBinding) -> Result<(), TapError> {
        let mut bound = self.inner.lock();
        if bound.contains_key(&binding.service) {
            return Err(TapError::AlreadyBound(binding.service.clone()));
        }
        if binding.addresses.v4.is_loopback() {
            return Err(TapError::Loopback(binding.addresses.v4));
        }
        let fault = |source| TapError::of(binding.service.clone(), source);
        let Inner { limits, now, events, netlink, firewall, neighbours, .. } = &*self.inner;
        let devices = Devices::make(netlink, binding.addresses).map_err(fault)?;
        let limits = HeldLimits {
            frames: limits.frames_max,
            bytes: limits.frame_bytes_max,
            client_frames: limits.client_frames_max,
            opening: usize::try_from(binding.held_clients_max).unwrap_or(usize::MAX),
        };
        firewall.put(binding.addresses, &binding.egress)?;
        let holder = devices.holder().try_clone_to_owned().map_err(fault)?;
        let holder = sys::readable(holder).map_err(fault)?;
        let events = ServiceEvents::new(binding.service.clone(), events.clone());
        let service = Service::new(binding, devices, limits, Arc::clone(netlink), events, Arc::clone(now));
        let service = Arc::new(service);
        if let Some(neighbours) = neighbours {
            neighbours.answer_for(netlink, binding.addresses).map_err(fault)?;
        }
        let tasks =
            [tokio::spawn(hold(Arc::clone(&service), holder)), tokio::spawn(listen(Arc::clone(&service)))];
        bound.insert(binding.service.clone(), Bound { service, tasks });
        Ok(())
    }

    /// Removes the service's devices, once QEMU has closed its own, and routes.
    pub async fn unbind(&self, service: &DomainName) {
        if let Some(addresses) = self.end(service).await {
            self.inner.forget(addresses);
            self.inner.firewall.take_out(addresses.v4);
        }
    }

    /// Ends what is done for a service; returns its addresses.
    async fn end(&self, service: &DomainName) -> Option<TapAddresses> {
        let Bound { service, tasks } = self.inner.lock().remove(service)?;
        service.end();
        for task in tasks {
            task.abort();
            let _ = task.await;
        }
        Some(service.addresses)
    }

    /// Sets what is done with clients: see [`Relay::set_gate`](crate::Relay::set_gate).
    pub fn set_gate(&self, service: &DomainName, gate: Gate) {
        if let Some(found) = self.inner.service(service)
            && let Err(error) = found.set(gate)
        {
            tracing::error!(%service, ?gate, %error, "its packets cannot be led");
        }
    }

    /// Closes the gate if the service is idle: see [`Relay::close_if_idle`](crate::Relay::close_if_idle). With `force`
    /// open connections go to sleep with the guest, and what is said on them wakes it.
    ///
    /// # Errors
    /// [`Busy`] if the service is used; then the gate is as it was.
    pub fn close_if_idle(&self, service: &DomainName, idle_ms: u64, force: bool) -> Result<(), Busy> {
        self.inner.service(service).map_or(Ok(()), |found| found.close_if_idle(idle_ms, force))
    }

    /// The instance is lost, and its connections with it. Who sends on one of them is answered with a reset.
    pub fn cut(&self, service: &DomainName) {
        if let Some(found) = self.inner.service(service) {
            found.cut();
        }
    }

    /// What passes and has passed; `None` if the service is not bound. Bytes and datagrams that pass are not counted:
    /// the interface does.
    pub fn traffic(&self, service: &DomainName) -> Option<Traffic> {
        self.inner.service(service).map(|found| found.traffic())
    }

    /// The addresses of a service that is bound.
    pub fn addresses(&self, service: &DomainName) -> Option<TapAddresses> {
        self.inner.service(service).map(|found| found.addresses)
    }

    /// The open guest's device, for a process of the instance that is about to be started.
    ///
    /// # Errors
    /// The service is not bound, what it may send is not limited yet, or another process, or another instance until
    /// [`Taps::release`], has the device.
    pub fn queue(&self, service: &DomainName, instance: InstanceId) -> io::Result<OwnedFd> {
        if !self.inner.firewall.is_enforced() {
            return Err(io::Error::other("what guests may send is not limited"));
        }
        self.inner.service(service).ok_or(io::ErrorKind::NotFound)?.for_process(instance)
    }

    /// The instance has no process any more: another one may have the service's device.
    pub fn release(&self, service: &DomainName, instance: InstanceId) {
        if let Some(found) = self.inner.service(service) {
            found.devices.release(instance);
        }
    }

    /// Connects to a port of the guest, whatever the gate, to look whether it is ready. Never counted as a client.
    ///
    /// # Errors
    /// As [`TcpSocket::connect`].
    pub async fn look(&self, service: &DomainName, port: u16) -> io::Result<TcpStream> {
        let found = self.inner.service(service).ok_or(io::ErrorKind::NotFound)?;
        let socket = TcpSocket::new_v4()?;
        socket.bind_device(Some(found.devices.guest_name().as_str().as_bytes()))?;
        socket.bind(SocketAddr::from((PROBE_SOURCE, 0)))?;
        socket.connect(SocketAddr::from((found.addresses.v4, port))).await
    }
}

impl Inner {
    fn service(&self, service: &DomainName) -> Option<Arc<Service>> {
        self.lock().get(service).map(|bound| Arc::clone(&bound.service))
    }

    fn forget(&self, addresses: TapAddresses) {
        if let Some(neighbours) = &self.neighbours {
            neighbours.forget(&self.netlink, addresses);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DomainName, Bound>> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for bound in self.lock().values() {
            bound.service.end();
            bound.tasks.iter().for_each(JoinHandle::abort);
        }
    }
}

/// Takes what comes to the holder, hands over what waited, and turns away what has waited for too long.
async fn hold(service: Arc<Service>, holder: AsyncFd<OwnedFd>) {
    while !service.is_ended() {
        // Before the question, so that no answer is missed.
        let changed = service.changed.notified();
        let due = service.due();
        tokio::select! {
            biased;
            () = changed => {}
            ready = holder.readable() => match ready {
                Ok(mut ready) => {
                    // What comes from here on makes it ready again.
                    ready.clear_ready();
                    while pending(&holder) {
                        service.take_arrivals();
                    }
                }
                Err(_) => sleep(ERROR_PAUSE).await,
            },
            () = sleep(RELEASE_PAUSE), if due.release => service.release(),
            () = async { if let Some(at) = due.expire { sleep_until(at.into()).await } }, if due.expire.is_some() => {
                service.expire();
            }
        }
    }
}

/// Whether a frame waits.
fn pending(holder: &AsyncFd<OwnedFd>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let fd = holder.get_ref().as_fd();
    let mut look = [PollFd::new(&fd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut look, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Takes what is heard of the guest.
async fn listen(service: Arc<Service>) {
    while !service.is_ended() {
        let changed = service.changed.notified();
        let (ear, due) = (service.current_ear(), service.due());
        tokio::select! {
            biased;
            () = changed => {}
            heard = async {
                match &ear {
                    Some(ear) => ear.heard().await,
                    None => std::future::pending().await,
                }
            } => match heard {
                Ok(()) => service.take_heard(),
                Err(_) => sleep(ERROR_PAUSE).await,
            },
            () = async { sleep(Duration::from_millis(due.listen_ms.unwrap_or_default())).await },
                if due.listen_ms.is_some() => service.listen_again(),
        }
    }
}
