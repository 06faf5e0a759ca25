//! The system calls of tap mode that neither `rustix` nor `socket2` wraps, and all of its unsafe code: opening a tap
//! device, and binding a packet socket to an interface.
//!
//! Each block is argued. What comes in is checked by type: names and indices that are wrong make the kernel refuse.

#![allow(unsafe_code, reason = "the module's purpose; see the argument at each block")]

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::ptr;

use rustix::ioctl::{Opcode, Setter, ioctl};
use socket2::{Domain, SockAddr, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::device::DeviceName;

/// `TUNSETIFF` of `linux/if_tun.h`: `_IOW('T', 202, int)`.
const TUNSETIFF: Opcode = 0x4004_54ca;
const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;

/// `struct ifreq` with the flags of its union.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

/// Whether frames of a tap device carry a `virtio_net_hdr`, with which checksums and segmentation can be left to
/// whoever reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offload {
    /// Frames are as on a wire.
    None,
    /// Frames begin with the header.
    Header,
}

/// Opens the tap device `name`, which is created if it is not there; it lasts as long as somebody has it open. Never
/// blocks.
///
/// # Errors
/// No right (`EPERM`), `/dev/net/tun` is missing, or somebody has it open already (`EBUSY`).
pub(super) fn open_tap(name: DeviceName, offload: Offload) -> io::Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let flags = match offload {
        Offload::None => IFF_TAP | IFF_NO_PI,
        Offload::Header => IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
    };
    let request = InterfaceRequest { name: name.padded(), flags, rest: [0; 22] };
    set_interface(&file, request)?;
    Ok(file.into())
}

fn set_interface(file: &File, request: InterfaceRequest) -> io::Result<()> {
    // SAFETY: TUNSETIFF reads one `struct ifreq`, which `InterfaceRequest` is laid out as (40 bytes on 64-bit Linux,
    // asserted below), and what it writes back goes to the copy that the setter owns.
    unsafe { ioctl(file.as_fd(), Setter::<TUNSETIFF, InterfaceRequest>::new(request)) }?;
    Ok(())
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

/// A packet socket that hears what an interface sends and receives, as far as `program` lets it. Never blocks.
pub(super) fn listening_socket(index: u32, program: &[SockFilter]) -> io::Result<Socket> {
    // Protocol 0 hears nothing until it is bound, with the filter: nothing else slips in.
    let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), None)?;
    socket.attach_filter(program)?;
    bind_packet(&socket, index, true)?;
    Ok(socket)
}

/// A packet socket that sends frames out by an interface. Never blocks.
pub(super) fn sending_socket(index: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), None)?;
    bind_packet(&socket, index, false)?;
    Ok(socket)
}

/// The hardware address of the interface that a packet socket is bound to.
pub(super) fn hardware_address(socket: &Socket) -> io::Result<[u8; 6]> {
    let bound = socket.local_addr()?;
    let long_enough =
        usize::try_from(bound.len()).is_ok_and(|length| length >= size_of::<libc::sockaddr_ll>());
    if i32::from(bound.family()) != libc::AF_PACKET || !long_enough {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // SAFETY: the kernel gave an address of family AF_PACKET, at least as long as a `sockaddr_ll`, whose fields have no
    // invalid values; its storage is aligned for every socket address and outlives the copy.
    let address = unsafe { ptr::read(bound.as_ptr().cast::<libc::sockaddr_ll>()) };
    match (address.sll_halen, address.sll_addr) {
        (6, [a, b, c, d, e, f, _, _]) => Ok([a, b, c, d, e, f]),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Has the runtime tell when there is something to read.
///
/// # Panics
/// Outside a tokio runtime.
pub(super) fn readable<T: AsRawFd>(file: T) -> io::Result<AsyncFd<T>> {
    #[expect(
        deprecated,
        reason = "its replacement is unsafe for types that close themselves; none of ours does"
    )]
    AsyncFd::with_interest(file, Interest::READABLE)
}

fn bind_packet(socket: &Socket, index: u32, hears: bool) -> io::Result<()> {
    let protocol = if hears { libc::ETH_P_ALL } else { 0 };
    let protocol = u16::try_from(protocol).unwrap_or_default().to_be();
    let address = libc::sockaddr_ll {
        sll_family: libc::sa_family_t::try_from(libc::AF_PACKET).unwrap_or_default(),
        sll_protocol: protocol,
        sll_ifindex: i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of::<libc::sockaddr_ll>();
    let address = {
        let mut storage = MaybeUninit::<socket2::SockAddrStorage>::zeroed();
        // SAFETY: a `sockaddr_storage` has room for, and the alignment of, every socket address, and all-zero bytes
        // are one; so it is initialised, its first bytes with a `sockaddr_ll`.
        let storage = unsafe {
            ptr::copy_nonoverlapping(
                ptr::from_ref(&address).cast::<u8>(),
                storage.as_mut_ptr().cast::<u8>(),
                length,
            );
            storage.assume_init()
        };
        let length = libc::socklen_t::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the first `length` bytes are a valid address of family AF_PACKET.
        unsafe { SockAddr::new(storage, length) }
    };
    socket.bind(&address)
}
