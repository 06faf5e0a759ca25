//! BIND, NSD and Knot DNS as secondaries, each a child process on a loopback address of its own.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::common::WAIT_MAX;

/// A program that can be a secondary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Bind,
    Nsd,
    Knot,
}

pub const ALL: [Program; 3] = [Program::Bind, Program::Nsd, Program::Knot];

/// Longest wait for one that is asked to end, before it is killed.
const STOP_MAX: Duration = Duration::from_secs(3);

/// Its key, as configurations write it.
#[derive(Debug, Clone)]
pub struct KeyText {
    pub name: &'static str,
    pub algorithm: &'static str,
    pub secret: &'static str,
}

/// A secondary of `vm.test`: running, or stopped to be started again.
pub struct Secondary {
    pub program: Program,
    pub address: SocketAddr,
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Program {
    fn of_config(self, dir: &Path, own: SocketAddr, primary: SocketAddr, key: &KeyText) -> String {
        let KeyText { name, algorithm, secret } = key;
        let dir = dir.display();
        let (ip, port) = (own.ip(), own.port());
        let (primary_ip, primary_port) = (primary.ip(), primary.port());
        match self {
            Self::Bind => format!(
                r#"options {{
                    directory "{dir}"; pid-file none; session-keyfile "{dir}/session.key"; lock-file none;
                    listen-on port {port} {{ {ip}; }}; listen-on-v6 {{ none; }};
                    recursion no; dnssec-validation no; notify no; allow-transfer {{ any; }};
                    min-retry-time 1; min-refresh-time 1;
                }};
                controls {{ }};
                key "{name}" {{ algorithm {algorithm}; secret "{secret}"; }};
                zone "vm.test" {{
                    type secondary; file "vm.test.zone"; masterfile-format text;
                    primaries {{ {primary_ip} port {primary_port} key "{name}"; }};
                }};"#
            ),
            Self::Nsd => format!(
                "server:\n ip-address: {ip}@{port}\n server-count: 1\n username: \"\"\n chroot: \"\"\n \
                 zonesdir: \"{dir}\"\n database: \"\"\n pidfile: \"{dir}/nsd.pid\"\n xfrdir: \"{dir}\"\n \
                 xfrdfile: \"{dir}/xfrd.state\"\n zonelistfile: \"{dir}/zone.list\"\n verbosity: 2\n\
                 remote-control:\n control-enable: no\n\
                 key:\n name: \"{name}\"\n algorithm: {algorithm}\n secret: \"{secret}\"\n\
                 zone:\n name: \"vm.test\"\n zonefile: \"{dir}/vm.test.zone\"\n \
                 request-xfr: {primary_ip}@{primary_port} {name}\n allow-notify: {primary_ip} {name}\n \
                 provide-xfr: 127.0.0.0/8 NOKEY\n min-retry-time: 1\n min-refresh-time: 1\n"
            ),
            Self::Knot => format!(
                "server:\n  rundir: \"{dir}\"\n  listen: {ip}@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  \
                 background-workers: 1\n\
                 database:\n  storage: \"{dir}/db\"\n  journal-db-max-size: 64M\n  timer-db-max-size: 8M\n\
                 log:\n  - target: stderr\n    any: info\n\
                 key:\n  - id: {name}\n    algorithm: {algorithm}\n    secret: {secret}\n\
                 remote:\n  - id: primary\n    address: {primary_ip}@{primary_port}\n    key: {name}\n\
                 acl:\n  - id: notify\n    address: {primary_ip}\n    key: {name}\n    action: notify\n\
                 \x20 - id: transfer\n    address: 127.0.0.0/8\n    action: transfer\n\
                 zone:\n  - domain: vm.test\n    storage: \"{dir}\"\n    file: vm.test.zone\n    \
                 master: primary\n    acl: [ notify, transfer ]\n    retry-min-interval: 1\n"
            ),
        }
    }

    fn arguments(self, config: &Path) -> (&'static str, Vec<PathBuf>) {
        let (program, flags): (_, &[&str]) = match self {
            Self::Bind => ("named", &["-g", "-n", "1", "-c"]),
            Self::Nsd => ("nsd", &["-d", "-c"]),
            Self::Knot => ("knotd", &["-c"]),
        };
        (program, flags.iter().map(PathBuf::from).chain([config.to_owned()]).collect())
    }
}

impl Secondary {
    /// Not started yet.
    pub fn new(program: Program, address: SocketAddr) -> Self {
        Self { program, address, dir: tempfile::tempdir().unwrap(), child: None }
    }

    /// Starts it, as a secondary of that primary.
    pub fn start(&mut self, primary: SocketAddr, key: &KeyText) {
        let config = self.dir.path().join("config");
        fs::create_dir_all(self.dir.path().join("db")).unwrap();
        fs::write(&config, self.program.of_config(self.dir.path(), self.address, primary, key)).unwrap();
        let (program, arguments) = self.program.arguments(&config);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", program])
            .args(arguments)
            // Where servers are, which is not in everybody's path.
            .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}; `make test` installs what the tests need"));
        self.child = Some(child);
    }

    /// Ends it in order, so that it keeps what it has, and waits until it is gone.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        assert!(has_ended(&mut child, WAIT_MAX), "{:?} does not stop: {}", self.program, self.log());
        end(child);
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// What it printed.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The serial that it answers with; `None` while it has none.
    pub fn serial(&self) -> Option<u32> {
        let soa = dig(self.address, &["+short", "+time=1", "+tries=1", "vm.test", "SOA"]);
        soa.split_whitespace().nth(2)?.parse().ok()
    }

    /// The zone as it gives it to others.
    pub fn zone(&self) -> Vec<String> {
        zone_lines(&dig(self.address, &["vm.test", "AXFR"]))
    }
}

impl Drop for Secondary {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            has_ended(&mut child, STOP_MAX);
            end(child);
        }
    }
}

/// Asks it to end, and waits until it has.
fn has_ended(child: &mut Child, longest: Duration) -> bool {
    signal("-TERM", child);
    let start = Instant::now();
    while start.elapsed() < longest {
        if child.try_wait().is_ok_and(|status| status.is_some()) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

/// Also those that the program has started itself.
fn end(mut child: Child) {
    signal("-KILL", &child);
    let _ = child.wait();
}

fn signal(name: &str, child: &Child) {
    let _ =
        Command::new("kill").args([name, "--", &format!("-{}", child.id())]).stderr(Stdio::null()).status();
}

/// What dig prints for a question to a server.
pub fn dig(server: SocketAddr, arguments: &[&str]) -> String {
    said_by("dig", server, arguments)
}

/// All that a client prints, whether it succeeds or not.
pub fn said_by(client: &str, server: SocketAddr, arguments: &[&str]) -> String {
    let output = Command::new(client)
        .args([&format!("@{}", server.ip()), "-p", &server.port().to_string()])
        .args(arguments)
        .output()
        .unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The records of a transfer, sorted, white space made single. The SOA stands in it twice.
pub fn zone_lines(text: &str) -> Vec<String> {
    let is_record = |line: &&str| !line.is_empty() && !line.starts_with(';') && !line.contains("\tTSIG\t");
    let lines = text.lines().filter(is_record);
    let mut lines: Vec<String> =
        lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()).collect();
    lines.sort();
    lines
}
