//! A daemon in a directory of its own, whose config is written again and again.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(60);
pub const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// A child process that does not outlive the test.
pub struct Running(Child);

impl Running {
    fn start(command: &[&str], dir: &Path) -> Self {
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .args(command)
            .env("XDG_RUNTIME_DIR", dir)
            // Where servers are, which is not in everybody's path.
            .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
            .env("REVEILLE_LOG", "info")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::options().create(true).append(true).open(dir.join("log")).unwrap())
            .spawn();
        Self(
            child.unwrap_or_else(|error| {
                panic!("{command:?}: {error}; `make test` installs what the tests need")
            }),
        )
    }

    pub fn signal(&self, name: &str) {
        let done = Command::new("kill").args([&format!("-{name}"), "--", &self.0.id().to_string()]).status();
        assert!(done.unwrap().success());
    }

    /// From here on files do not grow beyond this size, as on a disk that is full.
    pub fn limit_files(&self, bytes: &str) {
        let limit = ["--pid", &self.0.id().to_string(), &format!("--fsize={bytes}:unlimited")];
        assert!(Command::new("prlimit").args(limit).status().unwrap().success());
    }

    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where everything of a test is.
pub struct Place {
    dir: tempfile::TempDir,
    pub dns: SocketAddr,
    api: SocketAddr,
    pub secondary: SocketAddr,
    pool: [u8; 4],
}

fn free_port() -> SocketAddr {
    for _ in 0..64 {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        if UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no free port");
}

impl Place {
    pub fn new() -> Self {
        // A pool for each test of the process.
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let own = std::process::id().to_le_bytes();
        let pool = [127, 100 + own[0] % 100, own[1] % 250, NEXT.fetch_add(64, Relaxed)];
        let dir = tempfile::tempdir().unwrap();
        let place = Self { dir, dns: free_port(), api: free_port(), secondary: free_port(), pool };
        place.write_secret("own.key", SECRET);
        place
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// A file appears whole, as an operator's editor writes it.
    fn write(&self, name: &str, text: &str) {
        fs::write(self.path("new"), text).unwrap();
        fs::rename(self.path("new"), self.path(name)).unwrap();
    }

    pub fn write_secret(&self, name: &str, secret: &str) {
        fs::write(self.path(name), secret).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// The records begin in line 6.
    pub fn zone_file(&self, name: &str, apex: &str, records: &str) {
        self.zone_file_at(1, name, apex, records);
    }

    /// The same with a serial.
    pub fn zone_file_at(&self, serial: u32, name: &str, apex: &str, records: &str) {
        let soa = format!("@ SOA ns1 hostmaster {serial} 3600 600 604800 30");
        let head = format!("$ORIGIN {apex}.\n$TTL 60\n{soa}\n@ NS ns1\nns1 A 127.0.0.1\n");
        self.write(name, &(head + records));
    }

    /// The config with `more` at its end. Questions wake nothing: there is nothing to wake.
    pub fn config(&self, more: &str) {
        let Self { dns, api, pool: [a, b, c, d], .. } = self;
        let head = format!(
            "daemon = {{ state_dir = \"state\" }}\napi = {{ listen = \"{api}\" }}\n\
             relay = {{ pool = \"{a}.{b}.{c}.{d}/26\" }}\nqemu = {{ accelerator = \"tcg\" }}\n\
             [dns]\nlisten = [\"{dns}\"]\n[gate.wake]\nmode = \"off\"\n"
        );
        self.write("reveille.toml", &(head + more));
    }

    /// The last but one address of the pool.
    pub fn some_pool_address(&self) -> Ipv4Addr {
        let [a, b, c, d] = self.pool;
        Ipv4Addr::new(a, b, c, d + 62)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The daemon, once it is ready.
    pub fn daemon(&self) -> Running {
        let own = [env!("CARGO_BIN_EXE_reveille"), "serve", "--config", &self.path("reveille.toml")];
        // A write beyond the limit of a file's size is an error then, and no signal.
        let command = [&["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"][..], &own].concat();
        let mut daemon = Running::start(&command, self.dir.path());
        let lines = BufReader::new(daemon.0.stdout.take().unwrap()).lines();
        let ready = lines.map_while(Result::ok).any(|line| line.starts_with("reveille is ready"));
        assert!(ready, "{}", self.log());
        daemon
    }

    /// What a command of ours prints, or its error.
    pub fn run_once(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(env!("CARGO_BIN_EXE_reveille"))
            .args(arguments)
            .env("XDG_RUNTIME_DIR", self.dir.path())
            .output()
            .unwrap();
        let Output { status, stdout, stderr } = output;
        let text = |bytes| String::from_utf8(bytes).unwrap();
        if status.success() { Ok(text(stdout)) } else { Err(text(stderr)) }
    }

    /// `reveille reload`.
    pub fn reload(&self) -> Result<serde_json::Value, String> {
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        let printed = self.run_once(&["reload", "--json", "--api", &format!("http://{}", self.api)]);
        let error = |text: String| read(&text)["error"].as_str().unwrap().to_owned();
        printed.map(|text| read(&text)).map_err(error)
    }

    /// Knot as a secondary of `vm.test`.
    pub fn knot(&self) -> Running {
        let Self { dns, secondary, .. } = self;
        let text = format!(
            "server:\n  rundir: \"{0}\"\n  listen: {1}@{2}\n\
             database:\n  storage: \"{0}\"\n  journal-db-max-size: 64M\n  timer-db-max-size: 8M\n\
             log:\n  - target: stderr\n    any: info\n\
             key:\n  - id: own.test\n    algorithm: hmac-sha256\n    secret: {SECRET}\n\
             remote:\n  - id: primary\n    address: {3}@{4}\n    key: own.test\n\
             acl:\n  - id: notify\n    key: own.test\n    action: notify\n\
             \x20 - id: transfer\n    address: 127.0.0.0/8\n    action: transfer\n\
             zone:\n  - domain: vm.test\n    storage: \"{0}\"\n    file: knot.zone\n    master: primary\n    \
             acl: [ notify, transfer ]\n    retry-min-interval: 1\n",
            self.dir.path().display(),
            secondary.ip(),
            secondary.port(),
            dns.ip(),
            dns.port(),
        );
        self.write("knot.conf", &text);
        Running::start(&["knotd", "-c", &self.path("knot.conf")], self.dir.path())
    }

    fn ask(&self, server: SocketAddr, arguments: &[&str]) -> String {
        // From an address of its own: dig may share a port with a server of the same user on the same address, and would
        // hear itself.
        let output = Command::new("dig")
            .args(["-b", "127.0.0.2"])
            .args([&format!("@{}", server.ip()), "-p", &server.port().to_string(), "+time=5", "+tries=1"])
            .args(arguments)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// The answer's data, a line each.
    pub fn dig(&self, arguments: &[&str]) -> Vec<String> {
        let text = self.ask(self.dns, &[&["+short"], arguments].concat());
        text.lines().map(str::to_owned).collect()
    }

    /// All of the answer.
    pub fn dig_all(&self, arguments: &[&str]) -> String {
        self.ask(self.dns, arguments)
    }

    /// Serial and content of the zone, with the key; `None` if it is not given.
    pub fn transfer(&self, server: SocketAddr) -> Option<(u32, Vec<String>)> {
        let key = format!("hmac-sha256:own.test:{SECRET}");
        let mut asked = vec!["+noall", "+answer", "vm.test", "AXFR"];
        if server == self.dns {
            asked.extend(["-y", &key]);
        }
        let text = self.ask(server, &asked);
        let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let records: Vec<Vec<&str>> =
            lines.filter(|fields| fields.len() > 4 && !fields[0].starts_with(';')).collect();
        let serial = records.first().filter(|fields| fields[3] == "SOA")?[6].parse().ok()?;
        let content = records.iter().filter(|fields| fields[3] != "SOA" && fields[3] != "TSIG");
        let mut content: Vec<String> = content.map(|fields| fields.join(" ")).collect();
        content.sort();
        Some((serial, content))
    }

    /// Whether nsupdate was told that the change is made.
    pub fn update(&self, change: &str) -> bool {
        let mut child = Command::new("nsupdate")
            .args(["-y", &format!("hmac-sha256:own.test:{SECRET}")])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let script = format!("server {} {}\nzone vm.test\n{change}\nsend\n", self.dns.ip(), self.dns.port());
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        child.wait().unwrap().success()
    }
}

pub fn until<T>(what: &str, place: &Place, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "never came: {what}\n{}", place.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}
