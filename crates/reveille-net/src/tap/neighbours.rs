//! Neighbours of the host: on one of its links, a bridge for the most part, it answers for the services' addresses.
//!
//! A guest's tap is never a port of the bridge. The host answers ARP and neighbour discovery with its own hardware address
//! (proxy ARP, RFC 1027; RFC 4861 §7.2.8), and what comes is routed as from anywhere else: held while the guest
//! sleeps, filtered while it is awake, and the same for clients behind a router. So a guest that sleeps, wakes or is replaced
//! changes nothing that a neighbour remembers.
//!
//! The kernel answers, so it goes on doing so for guests that outlive the daemon. In IPv4 only where a route leads off the
//! link, which a guest's device is; in IPv6 always, so what an earlier daemon has left is taken away at the start.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use super::device::{DeviceName, TapAddresses};
use super::frame;
use super::netlink::Netlink;
use super::sys::{hardware_address, sending_socket};

/// The link on which the host answers.
#[derive(Debug)]
pub(super) struct Neighbours {
    index: u32,
}

impl Neighbours {
    /// Forgets what an earlier daemon answered for on any link, and has the kernel answer on the link `name`, at once.
    ///
    /// # Errors
    /// `ENODEV` without such a link; no right.
    pub(super) fn open(netlink: &Netlink, name: Option<&str>) -> io::Result<Option<Self>> {
        for (index, address) in netlink.own_proxies()? {
            netlink.remove_proxy(index, address)?;
        }
        let Some(name) = name else { return Ok(None) };
        let index = DeviceName::of_link(name).and_then(|name| name.index().transpose());
        let index = index.unwrap_or_else(|| Err(io::Error::from_raw_os_error(libc::ENODEV)))?;
        // By default some of the answers come up to 0.8 s late, so that a real owner of the address is first.
        set(&format!("ipv4/neigh/{name}/proxy_delay"), "0")?;
        if fs::exists("/proc/sys/net/ipv6")? {
            set(&format!("ipv6/neigh/{name}/proxy_delay"), "0")?;
            set(&format!("ipv6/conf/{name}/proxy_ndp"), "1")?;
        }
        Ok(Some(Self { index }))
    }

    /// Answers for these addresses from now on, and tells the neighbours, who may remember another host.
    pub(super) fn answer_for(&self, netlink: &Netlink, addresses: TapAddresses) -> io::Result<()> {
        for address in addresses.stable() {
            netlink.add_proxy(self.index, address).inspect_err(|_| self.forget(netlink, addresses))?;
        }
        if let Err(error) = self.announce(addresses) {
            tracing::warn!(address = %addresses.v4, %error, "neighbours are not told where it is; they find out by themselves");
        }
        Ok(())
    }

    fn announce(&self, addresses: TapAddresses) -> io::Result<()> {
        let socket = sending_socket(self.index)?;
        let mac = hardware_address(&socket)?;
        for address in addresses.stable() {
            let frame = match address {
                IpAddr::V4(address) => arp_announcement(mac, address),
                IpAddr::V6(address) => frame::advertisement(mac, address),
            };
            socket.send(&frame)?;
        }
        Ok(())
    }

    /// No longer answers for these addresses.
    pub(super) fn forget(&self, netlink: &Netlink, addresses: TapAddresses) {
        for address in addresses.stable() {
            if let Err(error) = netlink.remove_proxy(self.index, address) {
                tracing::warn!(%address, %error, "the host still answers for it");
            }
        }
    }
}

fn set(key: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/{key}");
    if fs::read_to_string(&path)?.trim() == value {
        return Ok(());
    }
    fs::write(&path, value).map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))
}

/// An announcement (RFC 5227 §2.3): a request of `address` for itself.
fn arp_announcement(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    // ARP; Ethernet, IPv4, a request.
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    // The least that Ethernet carries.
    frame.resize(60, 0);
    frame
}
