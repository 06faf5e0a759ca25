//! The two tap devices of a service, and the routes that lead to one of them.
//!
//! ```text
//! stable address ──► route, metric 1 ────► rvh…  holder: read by the daemon       (while it sleeps)
//!                └─► route, metric 2 ────► rvg…  guest's: read by QEMU            (always there)
//! ```
//!
//! The route to the guest is always there; the one to the holder, when there is one, comes before it. So a flip is one
//! message to the kernel, carried out as a whole, and an address is never without a route in between. A daemon that
//! dies takes its holder with it: a guest that runs goes on being served.
//!
//! A device lasts as long as somebody has it open. The holder is the daemon's alone. The guest's device is held by the
//! daemon and by QEMU, so that it keeps its addresses, neighbours and carrier from one process of QEMU to the next; a
//! daemon that starts while QEMU runs finds it by its name, and has it made anew once QEMU has ended.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use reveille_core::model::InstanceId;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::netlink::{HostRoute, Netlink};
use super::sys::{Offload, open_tap};

/// The host as a guest sees it: its gateway. On a link of its own each, so all guests have the same.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Whence the daemon looks whether a guest is ready: never a client.
pub const PROBE_SOURCE: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);
/// The host as a guest sees it, in IPv6.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The host's hardware address on all taps: what was held by one device is sent through the other, and a guest that
/// was restored still knows it.
pub const HOST_MAC: [u8; 6] = [0x52, 0x56, 0, 0, 0, 0];

const HOLDER_METRIC: u32 = 1;
const GUEST_METRIC: u32 = 2;
const FE80_PREFIX: u8 = 64;

/// The name of an interface; at most 15 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct DeviceName([u8; 16]);

impl DeviceName {
    /// `rv`, a letter, and the service's IPv4 address in hexadecimal: 11 bytes.
    fn new(letter: char, address: Ipv4Addr) -> Self {
        let mut name = [0; 16];
        let text = format!("rv{letter}{:08x}", address.to_bits());
        for (to, from) in name.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        Self(name)
    }

    /// That of the guest with the IPv4 address `address`.
    pub(super) fn of_guest(address: Ipv4Addr) -> Self {
        Self::new('g', address)
    }

    /// That of a link of the host; `None` if no link can be called that.
    pub(super) fn of_link(link: &str) -> Option<Self> {
        let fits = (1..16).contains(&link.len())
            && !link.contains(|c: char| c == '/' || c.is_whitespace() || c == '\0');
        let mut name = [0; 16];
        name.get_mut(..link.len()).filter(|_| fits)?.copy_from_slice(link.as_bytes());
        Some(Self(name))
    }

    pub(super) fn padded(self) -> [u8; 16] {
        self.0
    }

    pub(super) fn as_str(&self) -> &str {
        let length = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        self.0.get(..length).and_then(|name| str::from_utf8(name).ok()).unwrap_or_default()
    }

    /// The interface's index, if there is one of the name.
    pub(super) fn index(&self) -> io::Result<Option<u32>> {
        let any = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        match name_to_index(any, self.as_str()) {
            Ok(index) => Ok(Some(index)),
            Err(rustix::io::Errno::NODEV) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether the guest with that address has a device.
pub(super) fn is_there(address: Ipv4Addr) -> bool {
    DeviceName::of_guest(address).index().is_ok_and(|index| index.is_some())
}

/// Makes a device that no service has, which is gone when this returns.
pub(super) fn try_one() -> io::Result<()> {
    open_tap(DeviceName::new('t', Ipv4Addr::from_bits(std::process::id())), Offload::Header).map(drop)
}

/// Who a service is on the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapAddresses {
    /// Its stable address, which is the guest's own.
    pub v4: Ipv4Addr,
    /// Its stable IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

impl TapAddresses {
    /// Those among `stable`: the first of each family. `None` without an IPv4 address.
    pub fn among(stable: &[IpAddr]) -> Option<Self> {
        let v4 = stable.iter().find_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        })?;
        let v6 = stable.iter().find_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(*address),
        });
        Some(Self { v4, v6 })
    }

    /// The guest's hardware address: locally administered, and of no other service of the host, also on a bridge.
    pub fn mac(&self) -> [u8; 6] {
        let [a, b, c, d] = self.v4.octets();
        [0x52, 0x56, a, b, c, d]
    }

    /// Its stable addresses.
    pub(super) fn stable(&self) -> impl Iterator<Item = IpAddr> {
        [Some(IpAddr::V4(self.v4)), self.v6.map(IpAddr::V6)].into_iter().flatten()
    }
}

/// Where clients' packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Holder,
    Guest,
}

/// Both devices of a service. Dropping this removes the holder, and the guest's if no QEMU has it.
#[derive(Debug)]
pub(super) struct Devices {
    addresses: TapAddresses,
    holder: Device,
    guest: Mutex<Guest>,
    /// Whose process was given the guest's device, until it is said to be gone.
    user: Mutex<Option<InstanceId>>,
}

#[derive(Debug)]
struct Device {
    fd: OwnedFd,
    index: u32,
}

/// The guest's device.
#[derive(Debug)]
enum Guest {
    /// Open here too.
    Ours(Device),
    /// QEMU alone has it, started by an earlier daemon.
    Found { index: u32 },
}

impl Guest {
    fn index(&self) -> u32 {
        match self {
            Self::Ours(device) => device.index,
            Self::Found { index } => *index,
        }
    }
}

impl Devices {
    /// Makes what is not there. Clients' packets go to the holder afterwards.
    pub(super) fn make(netlink: &Netlink, addresses: TapAddresses) -> io::Result<Self> {
        let guest = Self::make_guest(netlink, addresses)?;
        let name = DeviceName::new('h', addresses.v4);
        let holder = Device::make(netlink, name, Offload::None, addresses)?;
        let devices = Self { addresses, holder, guest: Mutex::new(guest), user: Mutex::default() };
        devices.lead(netlink, Way::Holder)?;
        Ok(devices)
    }

    fn make_guest(netlink: &Netlink, addresses: TapAddresses) -> io::Result<Guest> {
        let name = DeviceName::of_guest(addresses.v4);
        let guest = match Device::make(netlink, name, Offload::Header, addresses) {
            Ok(device) => Guest::Ours(device),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                let index = name.index()?.ok_or(error)?;
                configure(netlink, index, addresses)?;
                Guest::Found { index }
            }
            Err(error) => return Err(error),
        };
        for address in addresses.stable() {
            netlink.add_route(route(address, guest.index(), GUEST_METRIC))?;
        }
        Ok(guest)
    }

    /// Leads clients' packets to one of the two; all that are sent from now on go there. Some microseconds.
    pub(super) fn lead(&self, netlink: &Netlink, way: Way) -> io::Result<()> {
        for address in self.addresses.stable() {
            let route = route(address, self.holder.index, HOLDER_METRIC);
            match way {
                Way::Holder => netlink.add_route(route)?,
                Way::Guest => netlink.remove_route(route)?,
            }
        }
        Ok(())
    }

    /// The open guest's device for a process of the instance that is about to be started, the one before it being gone.
    /// What was still queued for that one is dropped. Not given to two instances: both would have the same addresses.
    pub(super) fn for_process(&self, netlink: &Netlink, instance: InstanceId) -> io::Result<OwnedFd> {
        let mut user = self.user.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = user.filter(|user| *user != instance) {
            return Err(io::Error::other(format!("{other} of the same service has its device")));
        }
        let fd = self.open_for_process(netlink)?;
        *user = Some(instance);
        Ok(fd)
    }

    /// The instance has no process any more.
    pub(super) fn release(&self, instance: InstanceId) {
        let mut user = self.user.lock().unwrap_or_else(PoisonError::into_inner);
        user.take_if(|user| *user == instance);
    }

    fn open_for_process(&self, netlink: &Netlink) -> io::Result<OwnedFd> {
        let mut guest = self.guest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Guest::Found { .. } = *guest {
            // It went with the process that had it.
            *guest = Self::make_guest(netlink, self.addresses)?;
        }
        match &*guest {
            Guest::Ours(device) => {
                let mut frame = [0; super::frame::FRAME_BYTES_MAX];
                while rustix::io::read(&device.fd, &mut frame[..]).is_ok_and(|length| length > 0) {}
                device.fd.try_clone()
            }
            Guest::Found { .. } => Err(io::Error::from_raw_os_error(libc::EBUSY)),
        }
    }

    /// The interface that leads to the guest.
    pub(super) fn guest_index(&self) -> u32 {
        self.guest.lock().unwrap_or_else(PoisonError::into_inner).index()
    }

    /// Its name.
    pub(super) fn guest_name(&self) -> DeviceName {
        DeviceName::of_guest(self.addresses.v4)
    }

    /// The holder, to read frames from and to write answers to.
    pub(super) fn holder(&self) -> BorrowedFd<'_> {
        self.holder.fd.as_fd()
    }
}

impl Device {
    fn make(
        netlink: &Netlink,
        name: DeviceName,
        offload: Offload,
        addresses: TapAddresses,
    ) -> io::Result<Self> {
        let fd = open_tap(name, offload)?;
        let index = name.index()?.ok_or(io::ErrorKind::NotFound)?;
        configure(netlink, index, addresses)?;
        Ok(Self { fd, index })
    }
}

fn configure(netlink: &Netlink, index: u32, addresses: TapAddresses) -> io::Result<()> {
    netlink.bring_up(index, HOST_MAC)?;
    netlink.add_address(index, GATEWAY.into(), 32)?;
    netlink.add_address(index, PROBE_SOURCE.into(), 32)?;
    if addresses.v6.is_some() {
        netlink.add_address(index, GATEWAY6.into(), FE80_PREFIX)?;
    }
    for address in addresses.stable() {
        netlink.add_neighbour(index, address, addresses.mac())?;
    }
    Ok(())
}

fn route(address: IpAddr, index: u32, metric: u32) -> HostRoute {
    // In IPv6 the kernel chooses: an address that the host has elsewhere, which the guest answers by its gateway.
    let source = address.is_ipv4().then_some(IpAddr::V4(GATEWAY));
    HostRoute { address, index, metric, source }
}
