//! Links, addresses, routes and neighbours by rtnetlink (RFC 3549), one request and its answer at a time.
//!
//! A client of our own, because a route has to flip inside a critical section of the gate: the kernel carries a
//! request out before the call that sends it returns, so a request is some ten microseconds of one system call and
//! needs no task to wait in. The general client for this (`rtnetlink`), of which five messages
//! would be used, is asynchronous.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with, sockopt,
};

/// Longest answer: that to a request about one object.
const ANSWER_BYTES_MAX: usize = 16 << 10;
/// Longest wait for an answer, which the kernel gives at once.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Bytes before what a message is about.
const HEAD_BYTES: usize = 16;
/// `struct ndmsg`.
const NEIGHBOUR_BYTES: usize = 12;

const NLA_F_NESTED: u16 = 0x8000;
const IFLA_ADDRESS: u16 = 1;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
/// `IPV4_DEVCONF_RP_FILTER`.
const RP_FILTER: u16 = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_PROTOCOL: u16 = 12;
const NTF_PROXY: u8 = 0x08;

const IFF_UP: u32 = 1;
const IFA_F_NODAD: u8 = 0x02;
const IFA_F_PERMANENT: u8 = 0x80;
const RT_TABLE_MAIN: u8 = 254;
/// By which our routes, and the addresses we answer for, are told from others (`ip route show proto 82`).
const OUR_PROTOCOL: u8 = 82;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const NUD_PERMANENT: u16 = 0x80;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A route of one address to one interface.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostRoute {
    /// Where to.
    pub(super) address: IpAddr,
    /// Which way.
    pub(super) index: u32,
    /// The lowest of several routes to an address is taken.
    pub(super) metric: u32,
    /// As whom the host itself sends there.
    pub(super) source: Option<IpAddr>,
}

/// A socket to the kernel's routing tables, of the network namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: Mutex<(OwnedFd, u32)>,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is the protocol 0.
            None,
        )?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIME_MAX))?;
        Ok(Self { socket: Mutex::new((socket, 0)) })
    }

    /// Gives an interface its hardware address, no address of its own accord, and no opinion on whose packets may
    /// come in by it; then takes it into service.
    pub(super) fn bring_up(&self, index: u32, mac: [u8; 6]) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWLINK, 0);
        message.link(index, 0, 0);
        // First, because it would take permanent neighbours away.
        message.attribute(IFLA_ADDRESS, &mac);
        self.ask(message)?;
        let mut message = Message::new(RTM_NEWLINK, 0);
        message.link(index, 0, 0);
        message.nested(IFLA_AF_SPEC, |families| {
            families.nested(u16::from(AF_INET), |inet| {
                inet.nested(IFLA_INET_CONF, |conf| conf.attribute(RP_FILTER, &2u32.to_ne_bytes()));
            });
        });
        self.ask(message)?;
        let mut message = Message::new(RTM_NEWLINK, 0);
        message.link(index, 0, 0);
        message.nested(IFLA_AF_SPEC, |families| {
            families.nested(u16::from(AF_INET6), |inet6| {
                inet6.attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
            });
        });
        // A kernel without IPv6 has nothing to switch off.
        let _ = self.ask(message);
        let mut message = Message::new(RTM_NEWLINK, 0);
        message.link(index, IFF_UP, IFF_UP);
        self.ask(message)
    }

    /// Gives an interface an address of the host's own.
    pub(super) fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE);
        let scope = if address.is_ipv4() { RT_SCOPE_UNIVERSE } else { RT_SCOPE_LINK };
        message.bytes(&[family(address), prefix, IFA_F_NODAD | IFA_F_PERMANENT, scope]);
        message.bytes(&index.to_ne_bytes());
        message.address(IFA_LOCAL, address);
        message.address(IFA_ADDRESS, address);
        self.ask(message)
    }

    /// Says under which hardware address a neighbour is reached, for good.
    pub(super) fn add_neighbour(&self, index: u32, address: IpAddr, mac: [u8; 6]) -> io::Result<()> {
        let mut message = Message::neighbour(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, index, (address, 0));
        message.attribute(NDA_LLADDR, &mac);
        self.ask(message)
    }

    /// Answers for an address on an interface where others look for it.
    pub(super) fn add_proxy(&self, index: u32, address: IpAddr) -> io::Result<()> {
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        let mut message = Message::neighbour(RTM_NEWNEIGH, flags, index, (address, NTF_PROXY));
        message.attribute(NDA_PROTOCOL, &[OUR_PROTOCOL]);
        self.ask(message)
    }

    /// Does so no longer; where it did not is fine.
    pub(super) fn remove_proxy(&self, index: u32, address: IpAddr) -> io::Result<()> {
        match self.ask(Message::neighbour(RTM_DELNEIGH, 0, index, (address, NTF_PROXY))) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
            done => done,
        }
    }

    /// The addresses that Reveille answers for, each with its interface.
    pub(super) fn own_proxies(&self) -> io::Result<Vec<(u32, IpAddr)>> {
        let mut own = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let mut message = Message::new(RTM_GETNEIGH, NLM_F_DUMP);
            message.bytes(&[family, 0, 0, 0]);
            message.bytes(&[0; 6]);
            message.bytes(&[NTF_PROXY, 0]);
            self.list(message, |about| own.extend(own_proxy(about)))?;
        }
        Ok(own)
    }

    /// Adds a route; one that is there is fine.
    pub(super) fn add_route(&self, route: HostRoute) -> io::Result<()> {
        self.ask(route.message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE))
    }

    /// Takes a route away; one that is not there is fine.
    pub(super) fn remove_route(&self, route: HostRoute) -> io::Result<()> {
        match self.ask(route.message(RTM_DELROUTE, 0)) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            done => done,
        }
    }

    /// Sends a request and waits for the word that it was carried out.
    fn ask(&self, message: Message) -> io::Result<()> {
        self.list(message, |_| ())
    }

    /// Does so, and is told of each object that the answer lists: the bytes behind its header.
    fn list(&self, message: Message, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let (socket, last) = &mut *socket;
        *last = last.wrapping_add(1);
        let request = message.finish(*last)?;
        sendto(&*socket, &request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut answer = [0; ANSWER_BYTES_MAX];
        loop {
            let (_, length) = recv(&*socket, &mut answer[..], RecvFlags::empty())?;
            let mut rest = answer.get(..length).unwrap_or_default();
            while let Some((kind, number, about, others)) = next_message(rest) {
                rest = others;
                match kind {
                    // Of an earlier request, whose answer was waited for too long.
                    _ if number != *last => {}
                    NLMSG_ERROR | NLMSG_DONE => return outcome(about),
                    _ => each(about),
                }
            }
        }
    }
}

/// The first message of a row of them: its type, the request's number, what is behind its header, and the rest.
fn next_message(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let length = usize::try_from(word(bytes, 0)?).ok()?;
    let kind = bytes.get(4..6)?.try_into().ok().map(u16::from_ne_bytes)?;
    let about = bytes.get(HEAD_BYTES..length)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, word(bytes, 8)?, about, rest))
}

/// Zero, or an error number with its sign turned.
fn outcome(about: &[u8]) -> io::Result<()> {
    let error =
        word(about, 0).map_or(libc::EPROTO, |word| i32::from_ne_bytes(word.to_ne_bytes()).saturating_neg());
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// A proxy of our own, if that is one.
fn own_proxy(about: &[u8]) -> Option<(u32, IpAddr)> {
    let (index, mut rest) = (word(about, 4)?, about.get(NEIGHBOUR_BYTES..)?);
    let (mut address, mut is_ours) = (None, false);
    while let (Some(length), Some(kind)) = (half(rest, 0), half(rest, 2)) {
        let value = rest.get(4..length.into())?;
        match kind {
            NDA_DST => {
                let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
                address = v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok();
            }
            NDA_PROTOCOL => is_ours = value == [OUR_PROTOCOL],
            _ => {}
        }
        rest = rest.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
    }
    address.filter(|_| is_ours && about.get(10) == Some(&NTF_PROXY)).map(|address| (index, address))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

impl HostRoute {
    fn message(self, kind: u16, flags: u16) -> Message {
        let mut message = Message::new(kind, flags);
        let length = if self.address.is_ipv4() { 32 } else { 128 };
        let scope = if self.address.is_ipv4() { RT_SCOPE_LINK } else { RT_SCOPE_UNIVERSE };
        message.bytes(&[family(self.address), length, 0, 0]);
        message.bytes(&[RT_TABLE_MAIN, OUR_PROTOCOL, scope, RTN_UNICAST]);
        message.bytes(&0u32.to_ne_bytes());
        message.address(RTA_DST, self.address);
        message.attribute(RTA_OIF, &self.index.to_ne_bytes());
        message.attribute(RTA_PRIORITY, &self.metric.to_ne_bytes());
        if let Some(source) = self.source {
            message.address(RTA_PREFSRC, source);
        }
        message
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// A request that is being written: a header of 16 bytes, a fixed part, attributes.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut message = Self(Vec::with_capacity(128));
        message.bytes(&0u32.to_ne_bytes());
        message.bytes(&kind.to_ne_bytes());
        message.bytes(&(NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        message.bytes(&[0; 8]);
        message
    }

    /// The fixed part of a request about an interface.
    fn link(&mut self, index: u32, flags: u32, change: u32) {
        self.bytes(&[0; 4]);
        self.bytes(&index.to_ne_bytes());
        self.bytes(&flags.to_ne_bytes());
        self.bytes(&change.to_ne_bytes());
    }

    /// A request about an address on an interface, with the flags of the entry.
    fn neighbour(kind: u16, flags: u16, index: u32, (address, entry): (IpAddr, u8)) -> Self {
        let mut message = Self::new(kind, flags);
        message.bytes(&[family(address), 0, 0, 0]);
        message.bytes(&index.to_ne_bytes());
        message.bytes(&NUD_PERMANENT.to_ne_bytes());
        message.bytes(&[entry, RTN_UNICAST]);
        message.address(NDA_DST, address);
        message
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        // What is written here is short.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes(&length.to_ne_bytes());
        self.bytes(&kind.to_ne_bytes());
        self.bytes(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn address(&mut self, kind: u16, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.attribute(kind, &address.octets()),
            IpAddr::V6(address) => self.attribute(kind, &address.octets()),
        }
    }

    fn nested(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) {
        let mut inside = Self(Vec::new());
        inner(&mut inside);
        self.attribute(kind | NLA_F_NESTED, &inside.0);
    }

    fn finish(mut self, number: u32) -> io::Result<Vec<u8>> {
        let length = u32::try_from(self.0.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let head = self.0.first_chunk_mut::<12>().ok_or(io::ErrorKind::InvalidInput)?;
        head[..4].copy_from_slice(&length.to_ne_bytes());
        head[8..].copy_from_slice(&number.to_ne_bytes());
        Ok(self.0)
    }
}
