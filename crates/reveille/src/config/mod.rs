//! The config file: every setting with its default, and every fault reported at once.

mod depot;
mod encrypted;
mod faults;
mod history;
mod net;
mod observe;
mod overlay;
mod pool6;
pub(crate) mod quote;
mod records;
mod secondaries;
mod standing;
mod updates;
mod warm_up;
mod warnings;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reveille_core::health::HealthPolicy;
use reveille_core::model::{DomainName, HostLimits, Policy, ServiceSpec, SpecFault};
use reveille_dns::limit::GateConfig;
use reveille_dns::named_file::{self, FileError};
use reveille_dns::sign::KeyPolicy;
use reveille_vm::qemu::Users;
use serde::{Deserialize, Serialize};

use crate::profiles::Profiles;

pub use depot::{Depot, Keeping};
pub use encrypted::{Https, Tls};
pub use faults::ConfigError;
pub use history::History;
pub use net::{Net, NetMode, several_behind_a_tap};
pub use observe::Observe;
pub use pool6::{Network6, Pools};
pub use records::Records;
pub use secondaries::{notify, status_acl, transfer_acl};
pub use updates::{grants, publications};
pub use warm_up::WarmUp;
pub use warnings::{sets_cut, warnings};

/// Largest config file that is read.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// Everything that a config file says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The daemon itself.
    pub daemon: Daemon,
    /// The DNS server.
    pub dns: Dns,
    /// Who is answered, how often, and who may wake how much.
    pub gate: GateConfig,
    /// What is seen of demand beside the own queries, and what is told of these.
    pub observe: Observe,
    /// The HTTP API.
    pub api: Api,
    /// How clients reach guests.
    pub net: Net,
    /// The activator's addresses.
    pub relay: Relay,
    /// Limits of the host.
    pub host: HostLimits,
    /// The object store.
    pub depot: Depot,
    /// What was asked of whom.
    pub history: History,
    /// Raw records.
    pub records: Records,
    /// The QEMU driver.
    pub qemu: Qemu,
    /// What guests are warmed up by.
    pub warm_up: WarmUp,
    /// How long caches keep what the keys of signed zones have to wait for.
    pub dnssec: KeyPolicy,
    /// What services have unless they say otherwise.
    pub policy: Policy,
    /// How services are probed unless they say otherwise.
    pub health: HealthPolicy,
    /// TSIG keys that zones and `dns.status_keys` refer to.
    pub key: Vec<Key>,
    /// The zones that are served.
    pub zone: Vec<Zone>,
    /// Zones of other servers into which services are published.
    pub publish: Vec<Publish>,
    /// The services that are declared here; others are added through the API.
    pub service: Vec<ServiceSpec>,
    /// The profiles that are built in, and those of `warm_up.profiles_dir`.
    #[serde(skip)]
    pub profiles: Arc<Profiles>,
}

/// `[daemon]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Daemon {
    /// Where state, images and snapshots are kept.
    pub state_dir: PathBuf,
    /// What becomes of awake instances when the daemon is stopped.
    pub on_stop: OnStop,
    /// Longest time that a stop may take.
    pub stop_ms_max: u64,
}

/// What becomes of awake instances when the daemon is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnStop {
    /// They are hibernated.
    Hibernate,
    /// They run on, and the next daemon takes them over.
    Leave,
    /// They are ended.
    Terminate,
}

/// `[dns]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// Addresses on which UDP and TCP are served.
    pub listen: Vec<SocketAddr>,
    /// Threads for UDP per address; 0: one per processor.
    pub udp_threads: usize,
    /// Networks that may ask for `_vmstate`.
    pub status_allow: Vec<String>,
    /// TSIG keys with which `_vmstate` may be asked for from anywhere.
    pub status_keys: Vec<DomainName>,
    /// DNS over TLS.
    pub tls: Tls,
    /// DNS over HTTPS.
    pub https: Https,
}

/// `[api]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// Address of the HTTP API.
    pub listen: SocketAddr,
    /// What a client without a token may do on loopback.
    pub anonymous: Anonymous,
}

/// What a client without a token may do on loopback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Anonymous {
    /// Read.
    Read,
    /// Nothing but ask for health.
    None,
}

/// `[relay]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Relay {
    /// Network from which stable addresses are given out.
    pub pool: String,
    /// IPv6 network from which they are given out as well; empty: only services that name one have an IPv6 address.
    pub pool6: String,
}

/// `[qemu]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Qemu {
    /// The program, looked up in PATH unless it has a slash.
    pub binary: PathBuf,
    /// As whom it runs where the daemon is root: "auto", each instance as a user of its own; "daemon", as root as well; or
    /// the name or number of a user, which all instances run as, each with a group of its own.
    pub user: String,
    /// Where its firmware lies, if not where it looks by itself; empty: where it looks.
    pub data_dir: PathBuf,
    /// How guest code is run.
    pub accelerator: Accelerator,
}

/// How guest code is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// KVM if a probe guest ran under it, TCG otherwise.
    Auto,
    /// KVM.
    Kvm,
    /// TCG.
    Tcg,
}

/// `[[key]]`: a secret that is shared with another host (TSIG, RFC 8945).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Its name, the same on both sides.
    pub name: DomainName,
    /// How messages are signed; default what the file says, or `hmac-sha256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<String>,
    /// The file with the secret: base64, or as `tsig-keygen` writes it. Readable by its owner alone.
    pub file: PathBuf,
}

/// One entry of `zone.transfer`: who may transfer the zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferTo {
    /// From these networks; from anywhere if none is given, but a key then has to be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    /// And, if given, signed with this key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<DomainName>,
}

/// One entry of `zone.notify`: a secondary that is told of each new serial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notify {
    /// Where it listens.
    pub address: SocketAddr,
    /// The key that it is told with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<DomainName>,
}

/// One entry of `zone.update`: who may change the zone's static records by dynamic updates, and which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateBy {
    /// Whoever signs with this key,
    pub key: DomainName,
    /// from these networks (anywhere, if none is given),
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    /// at these names (`www.vm.test`, or `*.dyn.vm.test` for every name below; all, if none is given),
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// records of these types (all that can be updated, if none is given).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<String>,
}

/// `[[publish]]`: a zone that another server is the primary of, and in which the addresses of services are kept in
/// step by dynamic updates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// The other server.
    pub server: SocketAddr,
    /// Its zone.
    pub zone: DomainName,
    /// The key that it takes updates with.
    pub key: DomainName,
    /// TTL of what is published, in seconds; default that which secondaries get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u32>,
    /// Which services; all of the zone, if none is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// Time after which everything is sent once more.
    #[serde(default = "Publish::resend_ms")]
    pub resend_ms: u64,
}

impl Publish {
    const fn resend_ms() -> u64 {
        3_600_000
    }
}

/// `[[zone]]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Zone {
    /// The apex.
    pub name: DomainName,
    /// A zone file with SOA, NS and static records; without one SOA and NS are made from the keys below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Name of the primary name server; default `ns1` below the apex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ns: Option<DomainName>,
    /// Its address; default the first address of `dns.listen` that is not a wildcard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ns_address: Option<IpAddr>,
    /// Who may transfer it; nobody by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transfer: Vec<TransferTo>,
    /// Who is told of each new serial.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notify: Vec<Notify>,
    /// Who may change its static records; nobody by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub update: Vec<UpdateBy>,
    /// Whether its answers are signed.
    #[serde(default)]
    pub dnssec: Dnssec,
}

/// Whether a zone's answers are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Dnssec {
    /// They are not.
    #[default]
    Off,
    /// They are, with keys that are made at the first start.
    On,
}

impl Default for Daemon {
    fn default() -> Self {
        Self { state_dir: "/var/lib/reveille".into(), on_stop: OnStop::Hibernate, stop_ms_max: 30_000 }
    }
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 5300))],
            udp_threads: 0,
            status_allow: vec!["127.0.0.0/8".into(), "::1/128".into()],
            status_keys: Vec::new(),
            tls: Tls::default(),
            https: Https::default(),
        }
    }
}

impl Default for Api {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8053)), anonymous: Anonymous::Read }
    }
}

impl Default for Relay {
    fn default() -> Self {
        Self { pool: "127.64.0.0/10".into(), pool6: String::new() }
    }
}

impl Default for Qemu {
    fn default() -> Self {
        let (binary, user) = ("qemu-system-x86_64".into(), "auto".into());
        Self { binary, user, data_dir: PathBuf::new(), accelerator: Accelerator::Auto }
    }
}

impl Config {
    /// Reads and checks the file at `path`. Relative paths in it are taken from where the file lies.
    ///
    /// # Errors
    /// Every fault of the file with key, value and what is allowed.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = named_file::read_text(path, CONFIG_BYTES_MAX).map_err(ConfigError::Unreadable)?;
        let mut config = Self::parse(&text).map_err(|error| error.in_file(path))?;
        // Absolute: QEMU runs in a directory of its own.
        let unreadable = |error| ConfigError::Unreadable(FileError::unreadable(path, error));
        let file = path.canonicalize().map_err(unreadable)?;
        let base = file.parent().unwrap_or(Path::new("/"));
        config.daemon.state_dir = below(base, &config.daemon.state_dir);
        let secrets = &mut config.gate.cookies.secret_file;
        *secrets = secrets.take().map(|file| below(base, &file));
        config.dns.tls.rebase(|file| below(base, file));
        config.observe.dnstap_in.rebase(|file| below(base, file));
        config.observe.dnstap_out.rebase(|file| below(base, file));
        for zone in &mut config.zone {
            zone.file = zone.file.take().map(|file| below(base, &file));
        }
        for key in &mut config.key {
            key.file = below(base, &key.file);
        }
        config.read_profiles(base).map_err(|error| error.in_file(path))?;
        Ok(config)
    }

    /// Reads and checks a config text.
    ///
    /// # Errors
    /// As of [`Config::load`].
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
            path: PathBuf::new(),
            detail: quote::syntax(text, &error),
        })?;
        let (config, mut faults) = overlay::read(table);
        faults.extend(config.faults());
        if faults.is_empty() { Ok(config) } else { Err(ConfigError::Faults { path: PathBuf::new(), faults }) }
    }

    /// Every value that is out of range or does not fit another.
    fn faults(&self) -> Vec<SpecFault> {
        let mut faults = Vec::new();
        if self.dns.listen.is_empty() || self.dns.listen.len() > 64 {
            faults.push(SpecFault::new("dns.listen", "[]", "1 to 64 addresses such as \"127.0.0.1:5300\""));
        }
        if self.daemon.state_dir.as_os_str().is_empty() {
            let allowed = "a directory, such as /var/lib/reveille";
            faults.push(SpecFault::new("daemon.state_dir", "\"\"", allowed));
        }
        if self.dns.udp_threads > 256 {
            faults.push(SpecFault::new("dns.udp_threads", self.dns.udp_threads, "0 to 256"));
        }
        if !self.api.listen.ip().is_loopback() {
            let allowed = "a loopback address: the API has no TLS yet";
            faults.push(SpecFault::new("api.listen", self.api.listen, allowed));
        }
        if !(1..=1_024).contains(&self.host.starts_max) {
            faults.push(SpecFault::new("host.starts_max", self.host.starts_max, "1 to 1024"));
        }
        if !(1_000..=600_000).contains(&self.daemon.stop_ms_max) {
            faults.push(SpecFault::new("daemon.stop_ms_max", self.daemon.stop_ms_max, "1000 to 600000"));
        }
        faults.extend(self.depot.faults());
        faults.extend(self.history.faults());
        faults.extend(self.records.faults(&self.depot, reveille_records::parquet().is_some()));
        faults.extend(self.network_faults());
        if let Err(detail) = self.qemu_users() {
            let allowed = format!("\"auto\", \"daemon\", or a user: {detail}");
            faults.push(SpecFault::new("qemu.user", &self.qemu.user, allowed));
        }
        faults.extend(prefixed("gate", self.gate.faults()));
        faults.extend(self.observe.faults());
        faults.extend(secondaries::faults(self));
        faults.extend(updates::faults(self));
        faults.extend(encrypted::faults(&self.dns.tls, &self.dns.https));
        faults.extend(encrypted::shared_addresses(&self.dns, &self.observe.dnstap_in, self.api.listen));
        faults.extend(prefixed("policy", self.policy.faults()));
        faults.extend(prefixed("health", self.health.faults()));
        let keys = self.dnssec.faults().into_iter();
        faults.extend(
            keys.map(|(key, value, allowed)| SpecFault::new(&format!("dnssec.{key}"), value, allowed)),
        );
        faults.extend(self.zone_and_service_faults());
        faults
    }

    fn network_faults(&self) -> Vec<SpecFault> {
        let mut faults = Vec::new();
        if Network::parse_v4(&self.relay.pool).is_none() {
            let allowed = "an IPv4 network such as 127.64.0.0/10, prefix 8 to 30";
            faults.push(SpecFault::new("relay.pool", &self.relay.pool, allowed));
        }
        faults.extend(self.pool6_faults());
        faults.extend(self.tap_faults());
        for network in &self.dns.status_allow {
            if let Err(error) = network.parse::<reveille_core::answer::Network>() {
                faults.push(SpecFault::new("dns.status_allow", network, error.to_string()));
            }
        }
        faults
    }

    /// As whom QEMU runs.
    ///
    /// # Errors
    /// There is no such user; one sentence.
    pub fn qemu_users(&self) -> Result<Users, String> {
        match self.qemu.user.as_str() {
            "auto" => Ok(Users::Own),
            "daemon" => Ok(Users::Daemon),
            name => Users::number(name).map(Users::Named),
        }
    }

    /// The address of the primary name server of a zone without a file.
    pub fn name_server_address(&self, zone: &Zone) -> Option<IpAddr> {
        let mut own = self.dns.listen.iter().map(SocketAddr::ip).filter(|own| !own.is_unspecified());
        zone.ns_address.or_else(|| own.next())
    }

    fn zone_and_service_faults(&self) -> Vec<SpecFault> {
        let mut faults = Vec::new();
        // What a service has from `[policy]` or `[health]` is a fault there, and not of every service.
        let inherited: Vec<SpecFault> = prefixed("policy", self.policy.faults())
            .chain(prefixed("health", self.health.faults()))
            .collect();
        let mut apexes = BTreeSet::new();
        for zone in &self.zone {
            if !apexes.insert(&zone.name) {
                faults.push(SpecFault::new("zone.name", &zone.name, "each zone once"));
            }
            let is_inside = zone.ns.as_ref().is_none_or(|ns| ns.is_at_or_below(&zone.name));
            if zone.file.is_none() && is_inside && self.name_server_address(zone).is_none() {
                let allowed = "the address of its name server, as `dns.listen` is no single address";
                let place = format!("zone \"{}\".ns_address", zone.name);
                faults.push(SpecFault::new(&place, "(absent)", allowed));
            }
        }
        let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        for service in &self.service {
            // As the overlay names it.
            let place = format!("service \"{}\"", service.name);
            let own = service.faults().into_iter().filter(|fault| !inherited.contains(fault));
            faults.extend(prefixed(&place, own.collect()));
            if !names.insert(&service.name) {
                faults.push(SpecFault::new(&format!("{place}.name"), &service.name, "each service once"));
            }
            if !apexes.iter().any(|apex| service.name.is_at_or_below(apex)) {
                let allowed = "a name in one of the configured zones";
                faults.push(SpecFault::new(&format!("{place}.name"), &service.name, allowed));
            }
            if let Some(address) = service.address
                && !addresses.insert(address)
            {
                faults.push(SpecFault::new(&format!("{place}.address"), address, "each address once"));
            }
        }
        faults
    }
}

/// `path` seen from `base`, without `.` and `..`; `base` is without symbolic links.
fn below(base: &Path, path: &Path) -> PathBuf {
    let mut joined = PathBuf::new();
    for component in base.join(path).components() {
        match component {
            std::path::Component::ParentDir => {
                joined.pop();
            }
            std::path::Component::CurDir => {}
            other @ (std::path::Component::Prefix(_)
            | std::path::Component::RootDir
            | std::path::Component::Normal(_)) => joined.push(other),
        }
    }
    joined
}

fn prefixed(place: &str, faults: Vec<SpecFault>) -> impl Iterator<Item = SpecFault> {
    faults.into_iter().map(move |fault| SpecFault { key: format!("{place}.{}", fault.key), ..fault })
}

/// An IPv4 network from which addresses are given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Its lowest address.
    pub first: Ipv4Addr,
    /// Bits that all its addresses share.
    pub prefix: u8,
}

impl Network {
    /// Reads `address/prefix` with a prefix from 8 to 30 and no bits beyond it.
    pub fn parse_v4(text: &str) -> Option<Self> {
        let (first, prefix) = text.split_once('/')?;
        let (first, prefix): (Ipv4Addr, u8) = (first.parse().ok()?, prefix.parse().ok()?);
        let network = Self { first, prefix };
        ((8..=30).contains(&prefix) && first.to_bits() & (network.size() - 1) == 0).then_some(network)
    }

    /// How many addresses it has.
    pub const fn size(self) -> u32 {
        1 << (32 - self.prefix)
    }

    /// The address at `offset`, if it lies inside.
    pub fn at(self, offset: u32) -> Option<Ipv4Addr> {
        (offset < self.size()).then(|| Ipv4Addr::from_bits(self.first.to_bits() + offset))
    }
}

#[cfg(test)]
mod tests;
