//! Unbound as a validating resolver that is asked without end.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::ports::free_address;
use crate::common::{WAIT_MAX, name};
use crate::signed::SignedWorld;

/// Unbound as a validating resolver, on loopback alone; ended with this value, and with the test.
pub struct Unbound {
    child: Child,
    pub address: SocketAddr,
    log: PathBuf,
}

impl Unbound {
    /// Starts it with the key of `vm.test` as its only trust anchor; `stubs` are asked at the world's server.
    pub fn start(world: &SignedWorld, stubs: &[&str], extra: &str) -> Self {
        let dir = world.dir.path().join("unbound");
        std::fs::create_dir_all(&dir).unwrap();
        let address = free_address();
        let server = world.address();
        let anchors: String =
            world.anchors("vm.test").iter().map(|line| format!("  trust-anchor: \"{line}\"\n")).collect();
        let stubs: String = stubs
            .iter()
            .map(|zone| {
                format!("stub-zone:\n  name: {zone}\n  stub-addr: {}@{}\n", server.ip(), server.port())
            })
            .collect();
        let (dir_text, port) = (dir.display(), address.port());
        let config = format!(
            "server:\n  directory: \"{dir_text}\"\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"{dir_text}/pid\"\n  \
             interface: {}\n  port: {port}\n  do-daemonize: no\n  use-syslog: no\n  logfile: \"{dir_text}/log\"\n  \
             verbosity: 1\n  val-log-level: 2\n  num-threads: 1\n  module-config: \"validator iterator\"\n  \
             do-not-query-localhost: no\n  local-zone: \"test.\" nodefault\n  access-control: 127.0.0.0/8 allow\n  \
             do-ip6: no\n  ede: yes\n  qname-minimisation: yes\n  aggressive-nsec: yes\n{extra}{anchors}\
             remote-control:\n  control-enable: no\n{stubs}",
            address.ip()
        );
        let config_path = dir.join("unbound.conf");
        std::fs::write(&config_path, config).unwrap();
        // The kernel ends it if the test is killed.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unbound", "-d", "-p", "-c"])
            .arg(&config_path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("unbound: {error}; `make test` installs what the tests need"));
        let unbound = Self { child, address, log: dir.join("log") };
        unbound.wait_until_it_answers();
        unbound
    }

    fn wait_until_it_answers(&self) {
        let start = Instant::now();
        while Client::of(self, Duration::from_millis(50)).try_ask("version.server", 16).is_none() {
            assert!(start.elapsed() < WAIT_MAX, "unbound does not answer\n{}", self.log());
            // While nobody listens, the kernel says so at once.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What kdig prints of its answer.
    pub fn ask(&self, qname: &str, qtype: &str, options: &[&str]) -> String {
        let output = Command::new("kdig")
            .args([&format!("@{}", self.address.ip()), "-p", &self.address.port().to_string()])
            .args(["+timeout=10", "+retry=0", "+dnssec"])
            .args(options)
            .args([qname, qtype])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Unbound {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a resolver said: code, AD, and how many records there are in the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    pub rcode: u8,
    pub secure: bool,
    pub answers: u16,
}

/// A client of its own, for as many questions as may be.
pub struct Client {
    socket: UdpSocket,
    id: u16,
}

impl Client {
    pub fn of(unbound: &Unbound, wait_max: Duration) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(unbound.address).unwrap();
        socket.set_read_timeout(Some(wait_max)).unwrap();
        Self { socket, id: 0 }
    }

    pub fn ask(&mut self, qname: &str, qtype: u16) -> Said {
        self.try_ask(qname, qtype).unwrap_or_else(|| panic!("no answer to {qname} {qtype}"))
    }

    fn try_ask(&mut self, qname: &str, qtype: u16) -> Option<Said> {
        self.id = self.id.wrapping_add(1);
        let [high, low] = self.id.to_be_bytes();
        // RD and AD; OPT with DO.
        let mut packet = vec![high, low, 1, 0x20, 0, 1, 0, 0, 0, 0, 0, 1];
        packet.extend(name(qname).as_wire());
        packet.extend(qtype.to_be_bytes());
        packet.extend([0, 1, 0, 0, 41, 4, 208, 0, 0, 0x80, 0, 0, 0]);
        self.socket.send(&packet).ok()?;
        let mut answer = [0; 4_096];
        loop {
            let length = self.socket.recv(&mut answer).ok()?;
            if length >= 12 && answer[..2] == [high, low] {
                let answers = u16::from_be_bytes([answer[6], answer[7]]);
                return Some(Said { rcode: answer[3] & 0xf, secure: answer[3] & 0x20 != 0, answers });
            }
        }
    }
}
