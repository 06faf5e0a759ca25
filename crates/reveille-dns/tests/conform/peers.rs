//! The other servers, as child processes with directories and ports of their own.

use std::fs;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::common::WAIT_MAX;
use super::common::ports::free_address;
use super::zones::ZoneText;

/// How often a port is drawn, should somebody else take it before the server does.
const PORTS_MAX: usize = 5;

/// A running server; killed when dropped, and by the kernel should this process die first.
pub struct Peer {
    child: Child,
    _directory: tempfile::TempDir,
    pub address: SocketAddr,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is special about a server.
struct Kind {
    program: &'static str,
    arguments: &'static [&'static str],
    config: fn(&Path, SocketAddr, &[ZoneText]) -> String,
}

impl Peer {
    pub fn knot(zones: &[ZoneText]) -> Self {
        let config = knot_config;
        Self::start(&Kind { program: "knotd", arguments: &["-c", "peer.conf"], config }, zones)
    }

    pub fn nsd(zones: &[ZoneText]) -> Self {
        let config = nsd_config;
        Self::start(&Kind { program: "nsd", arguments: &["-d", "-c", "peer.conf"], config }, zones)
    }

    fn start(kind: &Kind, zones: &[ZoneText]) -> Self {
        for _ in 0..PORTS_MAX {
            if let Some(peer) = Self::try_start(kind, zones) {
                return peer;
            }
        }
        panic!("{} found no free port", kind.program)
    }

    fn try_start(kind: &Kind, zones: &[ZoneText]) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let address = free_address();
        for zone in zones {
            fs::write(directory.path().join(zone.file()), zone.static_text()).unwrap();
        }
        fs::write(directory.path().join("peer.conf"), (kind.config)(directory.path(), address, zones))
            .unwrap();
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", kind.program])
            .args(kind.arguments)
            .env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap()))
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("setpriv: {error}; scripts/setup.sh test installs what is needed")
            });
        let mut peer = Self { child, _directory: directory, address };
        peer.serves(kind.program, zones).then_some(peer)
    }

    /// Waits until every zone is served; false if the server ended because its port was taken.
    fn serves(&mut self, program: &str, zones: &[ZoneText]) -> bool {
        let begun = Instant::now();
        for zone in zones {
            loop {
                if self.child.try_wait().unwrap().is_some() {
                    let log = self.log();
                    assert!(
                        log.contains("already in use"),
                        "{program} does not start; without it nothing is compared, so this is a failure. \
                         `scripts/setup.sh test` installs it. It says:\n{log}"
                    );
                    return false;
                }
                if TcpListener::bind(self.address).is_err() && self.answers(zone) {
                    break;
                }
                assert!(begun.elapsed() < WAIT_MAX, "{program} never served {}:\n{}", zone.apex, self.log());
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
        true
    }

    fn answers(&self, zone: &ZoneText) -> bool {
        let mut packet = vec![0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        packet.extend(zone.apex.as_wire());
        packet.extend([0, 6, 0, 1]);
        let socket = UdpSocket::bind((self.address.ip(), 0)).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
        socket.connect(self.address).unwrap();
        let mut answer = [0; 4_096];
        let received = socket.send(&packet).and_then(|_| socket.recv(&mut answer));
        received.is_ok_and(|length| length > 12 && answer[3] & 0xf == 0 && answer[7] == 1)
    }

    fn log(&self) -> String {
        fs::read_to_string(self._directory.path().join("log")).unwrap_or_default()
    }
}

fn knot_config(directory: &Path, address: SocketAddr, zones: &[ZoneText]) -> String {
    let directory = directory.display();
    let mut text = format!(
        "server:\n  listen: {}@{}\n  rundir: {directory}\n  identity: \"\"\n  version: \"\"\n  nsid: \"\"\n  \
         udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n  tcp-io-timeout: 20000\n\
         log:\n  - target: stderr\n    any: warning\n\
         database:\n  storage: {directory}\n  journal-db-max-size: 1M\n  kasp-db-max-size: 5M\n  \
         timer-db-max-size: 1M\n  catalog-db-max-size: 5M\n\
         template:\n  - id: default\n    storage: {directory}\n    zonefile-sync: -1\n    journal-content: none\n\
         zone:\n",
        address.ip(),
        address.port(),
    );
    for zone in zones {
        text += &format!("  - domain: {}\n    file: {}\n", zone.apex_text(), zone.file());
    }
    text
}

fn nsd_config(directory: &Path, address: SocketAddr, zones: &[ZoneText]) -> String {
    let directory = directory.display();
    let mut text = format!(
        "server:\n  ip-address: {}@{}\n  server-count: 1\n  username: \"\"\n  chroot: \"\"\n  \
         zonesdir: \"{directory}\"\n  database: \"\"\n  pidfile: \"\"\n  xfrdfile: \"{directory}/xfrd\"\n  \
         zonelistfile: \"{directory}/zonelist\"\n  hide-version: yes\n  hide-identity: yes\n  \
         ipv4-edns-size: 1232\n  answer-cookie: no\n  rrl-ratelimit: 0\n  round-robin: no\n  tcp-timeout: 60\n\
         remote-control:\n  control-enable: no\n",
        address.ip(),
        address.port(),
    );
    for zone in zones {
        text += &format!("zone:\n  name: \"{}\"\n  zonefile: \"{}\"\n", zone.apex_text(), zone.file());
    }
    text
}
