//! `[observe.dnstap_in]` and `[observe.dnstap_out]`: every setting with its default and the reason for it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use reveille_core::answer::Network;
use reveille_core::model::SpecFault;
use serde::{Deserialize, Serialize};

use super::message::MessageType;

/// Most addresses to listen on, and most networks of senders.
const ADDRESSES_MAX: usize = 64;
/// Longest path of a unix socket (`sun_path` of unix(7), with its zero).
const UNIX_PATH_BYTES_MAX: usize = 107;
/// Longest identity: as much as an answer to `id.server` has room for in one string.
const IDENTITY_BYTES_MAX: usize = 255;

/// `[observe.dnstap_in]`: dnstap of other servers, taken in as demand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnstapIn {
    /// A unix socket that is made for senders on this host; empty: none.
    pub unix: PathBuf,
    /// Who may write to it, as chmod(1) has it. Default 0660: whoever shares the group of its directory.
    pub unix_mode: String,
    /// TCP addresses on which senders are taken; none by default.
    pub listen: Vec<SocketAddr>,
    /// Networks from which senders are taken over TCP. Default the host itself: whoever may send here says how much
    /// every name is asked for.
    pub allow: Vec<Network>,
    /// Whether `listen` may have addresses other than loopback ones: Frame Streams are neither encrypted nor
    /// authenticated. Default false; for a network of one's own, or the inside of a tunnel.
    pub plain: bool,
    /// Types of messages that count as questions; not a query type and the type of its response, which would count
    /// each question twice. Default queries as they come to servers from outside, authoritative ones and resolvers:
    /// what a server sends on itself (`resolver_query`, `forwarder_query`) comes to another one, mostly to this.
    pub count: Vec<MessageType>,
    /// Most messages that are looked at in a second, 1 to 1,000,000, of all senders together; more are dropped and
    /// counted. Default 100,000.
    pub per_second_max: u32,
}

/// `[observe.dnstap_out]`: dnstap of this server's own queries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnstapOut {
    /// Where to: `unix:/path`, `tcp:127.0.0.1:6000` or `file:/path`; empty: nowhere.
    pub to: String,
    /// What is told of clients' addresses. Default `network`: what needs more says so.
    pub addresses: Addresses,
    /// Whether answers are told as well (AUTH_RESPONSE). Default false.
    pub responses: bool,
    /// As whom the server speaks, up to 255 bytes; empty: it does not say.
    pub identity: String,
    /// Whether `to` may be a TCP address other than a loopback one: it is not encrypted. Default false.
    pub plain: bool,
    /// Memory for each thread that answers, in KiB, 128 to 65,536, rounded up to a power of two: what waits for the
    /// collector. Default 1,024: 5,000 to 8,000 queries.
    pub buffer_kib: u32,
    /// Longest file, in MiB, 1 to 1,048,576. A full one becomes `FILE.1`, in place of the one before it.
    pub file_mib_max: u32,
}

/// What is told of clients' addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Addresses {
    /// Nothing, and no port.
    None,
    /// The first 24 bits of IPv4 addresses and the first 48 of IPv6 ones, of client subnets (RFC 7871) in messages too; no
    /// port.
    Network,
    /// All, as it came.
    Full,
}

/// Where dnstap goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A unix socket on which a collector listens.
    Unix(PathBuf),
    /// A collector over TCP.
    Tcp(SocketAddr),
    /// A file.
    File(PathBuf),
}

impl Default for DnstapIn {
    fn default() -> Self {
        Self {
            unix: PathBuf::new(),
            unix_mode: "0660".to_owned(),
            listen: Vec::new(),
            allow: vec![Network::LOOPBACK4, Network::LOOPBACK6],
            plain: false,
            count: vec![MessageType::AuthQuery, MessageType::ClientQuery],
            per_second_max: 100_000,
        }
    }
}

impl Default for DnstapOut {
    fn default() -> Self {
        Self {
            to: String::new(),
            addresses: Addresses::Network,
            responses: false,
            identity: String::new(),
            plain: false,
            buffer_kib: 1_024,
            file_mib_max: 1_024,
        }
    }
}

impl DnstapIn {
    /// Whether anything is listened on.
    pub fn is_on(&self) -> bool {
        !self.unix.as_os_str().is_empty() || !self.listen.is_empty()
    }

    /// Every value that is out of range or does not fit another; keys without the section.
    pub fn faults(&self) -> Vec<SpecFault> {
        let mut faults = Vec::new();
        if self.mode().is_none() {
            let allowed = "an octal mode, such as \"0660\" or \"0600\"";
            faults.push(SpecFault::new("unix_mode", &self.unix_mode, allowed));
        }
        faults.extend(long_path("unix", &self.unix));
        for (key, count) in [("listen", self.listen.len()), ("allow", self.allow.len())] {
            if count > ADDRESSES_MAX {
                faults.push(SpecFault::new(
                    key,
                    format!("{count} entries"),
                    format!("up to {ADDRESSES_MAX}"),
                ));
            }
        }
        for address in &self.listen {
            if !self.plain && !address.ip().to_canonical().is_loopback() {
                faults.push(SpecFault::new("listen", address, outside()));
            }
        }
        let mut counted = BTreeSet::new();
        for kind in &self.count {
            if kind.query() == MessageType::UpdateQuery {
                faults.push(SpecFault::new("count", kind.word(), "types of questions: an update is none"));
            } else if !counted.insert(kind.query()) {
                let allowed =
                    format!("{} once, or its response: both are the same question", kind.query().word());
                faults.push(SpecFault::new("count", kind.word(), allowed));
            }
        }
        if !(1..=1_000_000).contains(&self.per_second_max) {
            faults.push(SpecFault::new("per_second_max", self.per_second_max, "1 to 1000000"));
        }
        faults
    }

    /// Permissions of the unix socket.
    pub(super) fn mode(&self) -> Option<u32> {
        u32::from_str_radix(&self.unix_mode, 8).ok().filter(|mode| *mode <= 0o777)
    }

    /// Relative paths are taken from where the config file lies.
    pub fn rebase(&mut self, rebased: impl Fn(&Path) -> PathBuf) {
        if !self.unix.as_os_str().is_empty() {
            self.unix = rebased(&self.unix);
        }
    }
}

impl DnstapOut {
    /// Whether it goes anywhere.
    pub fn is_on(&self) -> bool {
        !self.to.is_empty()
    }

    /// Where it goes; `None` if that is nowhere or cannot be read.
    pub fn destination(&self) -> Option<Destination> {
        let (kind, rest) = self.to.split_once(':')?;
        let path = Some(PathBuf::from(rest)).filter(|_| !rest.is_empty());
        match kind {
            "unix" => path.map(Destination::Unix),
            "file" => path.map(Destination::File),
            "tcp" => rest.parse().ok().filter(|to: &SocketAddr| to.port() != 0).map(Destination::Tcp),
            _ => None,
        }
    }

    /// Every value that is out of range or does not fit another; keys without the section.
    pub fn faults(&self) -> Vec<SpecFault> {
        let mut faults = Vec::new();
        match self.destination() {
            None if !self.is_on() => {}
            None => {
                let allowed = "\"unix:/path\", \"tcp:127.0.0.1:6000\", \"file:/path\" or \"\"";
                faults.push(SpecFault::new("to", &self.to, allowed));
            }
            Some(Destination::Tcp(to)) if !self.plain && !to.ip().to_canonical().is_loopback() => {
                faults.push(SpecFault::new("to", &self.to, outside()));
            }
            Some(Destination::Unix(path)) => faults.extend(long_path("to", &path)),
            Some(Destination::Tcp(_) | Destination::File(_)) => {}
        }
        if self.identity.len() > IDENTITY_BYTES_MAX {
            let value = format!("{} bytes", self.identity.len());
            faults.push(SpecFault::new("identity", value, format!("up to {IDENTITY_BYTES_MAX} bytes")));
        }
        for (key, value, range) in [
            ("buffer_kib", self.buffer_kib, 128..=65_536),
            ("file_mib_max", self.file_mib_max, 1..=1_048_576),
        ] {
            if !range.contains(&value) {
                faults.push(SpecFault::new(key, value, format!("{} to {}", range.start(), range.end())));
            }
        }
        faults
    }

    /// Relative paths are taken from where the config file lies.
    pub fn rebase(&mut self, rebased: impl Fn(&Path) -> PathBuf) {
        let (kind, path) = match self.destination() {
            Some(Destination::Unix(path)) => ("unix", path),
            Some(Destination::File(path)) => ("file", path),
            Some(Destination::Tcp(_)) | None => return,
        };
        self.to = format!("{kind}:{}", rebased(&path).display());
    }
}

fn outside() -> String {
    "a loopback address, unless `plain = true`: the stream is neither encrypted nor authenticated".to_owned()
}

fn long_path(key: &str, path: &Path) -> Option<SpecFault> {
    let bytes = path.as_os_str().len();
    let allowed = || format!("a path of up to {UNIX_PATH_BYTES_MAX} bytes, as unix sockets have");
    (bytes > UNIX_PATH_BYTES_MAX).then(|| SpecFault::new(key, path.display(), allowed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(faults: Vec<SpecFault>) -> Vec<String> {
        faults
            .into_iter()
            .map(|fault| format!("{} = {}: {}", fault.key, fault.value, fault.allowed))
            .collect()
    }

    #[test]
    fn nothing_is_on_by_default_and_defaults_are_right() {
        let (from, to) = (DnstapIn::default(), DnstapOut::default());
        assert!(!from.is_on() && !to.is_on());
        assert_eq!((from.faults(), to.faults()), (vec![], vec![]));
        assert_eq!(to.addresses, Addresses::Network);
    }

    #[test]
    fn what_would_count_a_question_twice_or_leave_the_host_unasked_is_refused() {
        let listen = vec!["127.0.0.1:0".parse().unwrap(), "192.0.2.1:6000".parse().unwrap()];
        let count = vec![
            MessageType::ClientResponse,
            MessageType::AuthQuery,
            MessageType::ClientQuery,
            MessageType::UpdateQuery,
        ];
        let unix = PathBuf::from("/".repeat(108));
        let mut from =
            DnstapIn { unix, unix_mode: "8".into(), listen, count, per_second_max: 0, ..DnstapIn::default() };
        let said = keys(from.faults());
        let expected = [
            "unix_mode = 8: an octal mode",
            "unix = ////",
            "listen = 192.0.2.1:6000: a loopback address, unless",
            "count = client_query: client_query once, or its response",
            "count = update_query: types of questions",
            "per_second_max = 0: 1 to 1000000",
        ];
        assert_eq!(said.len(), expected.len(), "{said:?}");
        assert!(said.iter().zip(expected).all(|(said, expected)| said.starts_with(expected)), "{said:?}");
        from.plain = true;
        assert_eq!(from.faults().len(), 5);
    }

    #[test]
    fn a_destination_is_one_of_three_kinds() {
        let of = |to: &str| DnstapOut { to: to.into(), ..DnstapOut::default() };
        assert_eq!(of("unix:/run/a.sock").destination(), Some(Destination::Unix("/run/a.sock".into())));
        assert_eq!(of("file:a:b").destination(), Some(Destination::File("a:b".into())));
        assert_eq!(of("tcp:[::1]:6000").destination(), Some(Destination::Tcp("[::1]:6000".parse().unwrap())));
        for wrong in ["unix:", "tcp:localhost:6000", "tcp:127.0.0.1:0", "/run/a.sock", "udp:127.0.0.1:6000"] {
            assert_eq!(keys(of(wrong).faults()).len(), 1, "{wrong}");
        }
        assert_eq!(keys(of("tcp:192.0.2.1:6000").faults()).len(), 1);
        assert!(DnstapOut { plain: true, ..of("tcp:192.0.2.1:6000") }.faults().is_empty());
        let mut out = of("file:taps/a");
        out.rebase(|path| Path::new("/etc").join(path));
        assert_eq!(out.to, "file:/etc/taps/a");
        let wrong = DnstapOut { identity: "x".repeat(256), buffer_kib: 127, file_mib_max: 0, ..of("") };
        assert_eq!(keys(wrong.faults()).len(), 3);
    }
}
