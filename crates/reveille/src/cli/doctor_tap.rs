//! What tap mode needs of this host: tried, each with the command that mends it.

use std::fs;

use reveille_net::tap::{FirewallError, TapError, try_device, try_rules};

use super::doctor::Finding;
use crate::config::Config;

/// Gives this program the two rights that tap mode needs, where it is not started as root.
const GRANT: &str = "run it as root, or: setcap cap_net_admin,cap_net_raw+ep $(command -v reveille); in a systemd unit: \
                     AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW";

/// All of it.
pub fn findings(config: &Config) -> Vec<Finding> {
    let families = [Some(("IPv4", "net.ipv4.ip_forward", "ipv4/ip_forward"))];
    let six = ("IPv6", "net.ipv6.conf.all.forwarding", "ipv6/conf/all/forwarding");
    let has_six = !config.relay.pool6.is_empty() || config.service.iter().any(|spec| spec.address6.is_some());
    let families = families.into_iter().chain([has_six.then_some(six)]).flatten();
    let forwarding = families.map(|(family, key, file)| forwarding(family, key, file));
    [devices(), rules()].into_iter().chain(config.bridge().map(bridge)).chain(forwarding).collect()
}

/// Whether tap devices can be made: by making one, which is gone again at once.
fn devices() -> Finding {
    let what = "tap devices";
    match try_device() {
        Ok(()) => Finding::good(what, "they can be made"),
        Err(error) => {
            let remedy = match &error {
                TapError::Forbidden => GRANT,
                TapError::NoTun => {
                    "modprobe tun, and `echo tun >/etc/modules-load.d/tun.conf` for the next boot"
                }
                TapError::AlreadyBound(_)
                | TapError::NoAddress(_)
                | TapError::Loopback(_)
                | TapError::Device { .. }
                | TapError::Netlink(_)
                | TapError::Bridge { .. }
                | TapError::Firewall(_) => "see the sentence itself",
            };
            Finding::bad(what, error.to_string(), remedy)
        }
    }
}

/// Whether guests can be kept apart: by rules that are checked and not carried out.
fn rules() -> Finding {
    let what = "nftables";
    match try_rules() {
        Ok(()) => Finding::good(what, "guests can be kept to their own addresses and apart"),
        Err(FirewallError::NoProgram) => Finding::bad(what, "`nft` is missing", "apt-get install nftables"),
        Err(error) => {
            let forbidden = error.to_string().contains("not permitted");
            let remedy = if forbidden {
                GRANT
            } else {
                "modprobe nf_tables nf_conntrack nft_ct nft_reject_inet nft_masq"
            };
            Finding::bad(what, error.to_string(), remedy)
        }
    }
}

fn bridge(link: &str) -> Finding {
    let what = "bridge";
    if fs::exists(format!("/proc/sys/net/ipv4/neigh/{link}")).is_ok_and(|is_there| is_there) {
        return Finding::good(what, format!("this host answers for services on {link}"));
    }
    let remedy =
        format!("ip link add {link} type bridge, with the network card as its port; or mend net.bridge");
    Finding::bad(what, format!("there is no link `{link}`"), &remedy)
}

fn forwarding(family: &str, key: &str, file: &str) -> Finding {
    let what = "forwarding";
    if fs::read_to_string(format!("/proc/sys/net/{file}")).is_ok_and(|text| text.trim() == "1") {
        return Finding::good(what, format!("this host forwards {family} packets to guests"));
    }
    let found = format!("this host does not forward {family} packets: only its own clients reach guests");
    let remedy =
        format!("sysctl -w {key}=1, and `echo {key}=1 >/etc/sysctl.d/90-reveille.conf` for the next boot");
    Finding::limited(what, found, remedy)
}
