//! Other name servers as child processes: primaries that take updates.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[path = "../common/ports.rs"]
mod ports;

pub use ports::free_address;

/// Longest wait for something that must happen.
pub const WAIT_MAX: Duration = Duration::from_secs(60);
/// The key that they take updates with.
pub const KEY: &str = "publish.key.test";
pub const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
pub const SECRET_BYTES: &[u8] = b"0123456789abcdef0123456789abcdef";

const ZONE: &str = "\
$TTL 300
@ SOA ns1 hostmaster 100 3600 600 604800 60
@ NS ns1
ns1 A 127.0.0.1
www A 192.0.2.80
taken CNAME www
";

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Bind,
    Knot,
}

/// A primary of `vm.test`, with everything that it writes in a directory of its own.
pub struct Primary {
    kind: Kind,
    dir: tempfile::TempDir,
    pub address: SocketAddr,
    child: Option<Child>,
}

impl Drop for Primary {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Primary {
    /// Starts one. `policy` is the update policy of a BIND, such as `grant publish.key.test zonesub A AAAA;`.
    pub fn start(kind: Kind, policy: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = free_address();
        let mut primary = Self { kind, dir, address, child: None };
        fs::write(primary.path("vm.test.zone"), ZONE).unwrap();
        fs::create_dir(primary.path("db")).unwrap();
        let config = match kind {
            Kind::Bind => bind_config(primary.dir.path(), address, policy),
            Kind::Knot => knot_config(primary.dir.path(), address),
        };
        fs::write(primary.path("server.conf"), config).unwrap();
        primary.run();
        primary
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// Runs the program, and waits until it answers.
    pub fn run(&mut self) {
        assert!(self.child.is_none());
        let config = self.path("server.conf");
        let program: &[&str] = match self.kind {
            Kind::Bind => &["named", "-g", "-n", "1", "-c"],
            Kind::Knot => &["knotd", "-c"],
        };
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .args(program)
            .arg(config)
            .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("setpriv: {error}; `make test` installs what the tests need"));
        self.child = Some(child);
        until("the other server answers", || {
            assert!(self.is_running(), "{:?} ended:\n{}", self.kind, self.log());
            self.dig(&["+short", "vm.test", "SOA"]).contains("hostmaster")
        });
    }

    fn is_running(&self) -> bool {
        self.child.as_ref().is_some_and(|child| Path::new(&format!("/proc/{}/exe", child.id())).exists())
    }

    /// Ends it as by a power cut.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends it, and forgets everything that it was told since its first start.
    pub fn lose_everything(&mut self) {
        self.kill();
        for file in fs::read_dir(self.dir.path()).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "jnl") {
                fs::remove_file(path).unwrap();
            }
        }
        fs::remove_dir_all(self.path("db")).unwrap();
        fs::create_dir(self.path("db")).unwrap();
        fs::write(self.path("vm.test.zone"), ZONE).unwrap();
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub fn dig(&self, arguments: &[&str]) -> String {
        let output = Command::new("dig")
            .args([&format!("@{}", self.address.ip()), "-p", &self.address.port().to_string()])
            .args(["+time=2", "+tries=1"])
            .args(arguments)
            .output()
            .unwrap_or_else(|error| panic!("dig: {error}; `make test` installs what the tests need"));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Every address record below `svc.vm.test` and right below `vm.test`, as `name address`, sorted.
    pub fn addresses(&self) -> Vec<String> {
        let text = self.dig(&["+tcp", "+onesoa", "vm.test", "AXFR"]);
        assert!(text.contains("SOA"), "no transfer: {text}");
        let lines = text.lines().filter(|line| !line.starts_with(';'));
        let records = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut found: Vec<String> = records
            .filter(|fields| fields.len() == 5 && ["A", "AAAA"].contains(&fields[3]))
            .filter(|fields| !["ns1.vm.test.", "www.vm.test."].contains(&fields[0]))
            .map(|fields| format!("{} {}", fields[0].trim_end_matches('.'), fields[4]))
            .collect();
        found.sort();
        found
    }

    pub fn serial(&self) -> u32 {
        self.dig(&["+short", "vm.test", "SOA"]).split(' ').nth(2).unwrap().parse().unwrap()
    }
}

fn bind_config(dir: &Path, address: SocketAddr, policy: &str) -> String {
    let (ip, port, dir) = (address.ip(), address.port(), dir.display());
    format!(
        r#"options {{
            directory "{dir}"; pid-file none; session-keyfile none; lock-file none;
            listen-on port {port} {{ {ip}; }}; listen-on-v6 {{ none; }};
            recursion no; notify no; dnssec-validation no; allow-query {{ any; }}; allow-transfer {{ any; }};
        }};
        controls {{ }};
        key "{KEY}" {{ algorithm hmac-sha256; secret "{SECRET}"; }};
        zone "vm.test" {{ type primary; file "vm.test.zone"; update-policy {{ {policy} }}; }};
        "#
    )
}

fn knot_config(dir: &Path, address: SocketAddr) -> String {
    let (ip, port, dir) = (address.ip(), address.port(), dir.display());
    format!(
        r#"server:
    rundir: "{dir}"
    listen: "{ip}@{port}"
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
log:
  - target: stderr
    any: info
database:
    storage: "{dir}/db"
key:
  - id: {KEY}
    algorithm: hmac-sha256
    secret: {SECRET}
acl:
  - id: publish
    key: {KEY}
    action: update
  - id: look
    address: 127.0.0.0/8
    action: transfer
zone:
  - domain: vm.test
    storage: "{dir}"
    file: vm.test.zone
    acl: [publish, look]
"#
    )
}

/// Waits until the condition holds.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < WAIT_MAX, "never came: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
