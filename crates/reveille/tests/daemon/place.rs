//! A daemon in a directory of its own, on addresses of its own, and those who talk with it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::addresses::Addresses;

pub use crate::primaries::{KEY, SECRET};

/// Of a service whose image is not there: however long a test takes, it is answered for.
pub const NEVER_GIVEN_UP: &str =
    "policy = { attempts_max = 100, backoff_ms = 600000, backoff_ms_max = 600000 }\n";
/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A child process that does not outlive the test.
pub struct Running(Child);

impl Running {
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

    /// Whether it ended well.
    pub fn succeeds(mut self) -> bool {
        self.0.wait().unwrap().success()
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
    addresses: Addresses,
    pub dns: SocketAddr,
    pub tls: SocketAddr,
    pub api: SocketAddr,
    pub secondary: SocketAddr,
}

impl Place {
    /// With the secret of [`KEY`] in `own.key`.
    pub fn new() -> Self {
        let addresses = Addresses::take();
        // Nobody else has these addresses, and the ports are none that the kernel gives away.
        let at = |port| SocketAddr::from((addresses.at(250), port));
        let (dns, tls, api, secondary) = (at(5_300), at(8_530), at(8_053), at(5_301));
        let place = Self { dir: tempfile::tempdir().unwrap(), addresses, dns, tls, api, secondary };
        place.write_secret("own.key", SECRET);
        place
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// A file appears whole, as an operator's editor writes it.
    pub fn write(&self, name: &str, text: &str) {
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

    /// The config with `more` at its end.
    pub fn config(&self, more: &str) {
        let head = format!(
            "daemon = {{ state_dir = \"state\" }}\napi = {{ listen = \"{}\" }}\n\
             relay = {{ pool = \"{}/26\" }}\nqemu = {{ accelerator = \"tcg\" }}\n\
             [dns]\nlisten = [\"{}\"]\n",
            self.api,
            self.addresses.at(0),
            self.dns,
        );
        self.write("reveille.toml", &(head + more));
    }

    /// The last but one address of the pool.
    pub fn some_pool_address(&self) -> Ipv4Addr {
        self.addresses.at(62)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    // --- Processes ---------------------------------------------------------------------------------------------

    /// A program that works here, with what it says in the log.
    pub fn run(&self, command: &[&str]) -> Running {
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .args(command)
            .env("XDG_RUNTIME_DIR", self.dir.path())
            // Where servers are, which is not in everybody's path.
            .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
            .env("REVEILLE_LOG", "info")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::options().create(true).append(true).open(self.path("log")).unwrap())
            .spawn();
        Running(
            child.unwrap_or_else(|error| {
                panic!("{command:?}: {error}; `make test` installs what the tests need")
            }),
        )
    }

    /// The daemon, once it is ready.
    pub fn daemon(&self) -> Running {
        let own = [env!("CARGO_BIN_EXE_reveille"), "serve", "--config", &self.path("reveille.toml")];
        // A write beyond the limit of a file's size is an error then, and no signal.
        let mut daemon = self.run(&[&["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"][..], &own].concat());
        let lines = BufReader::new(daemon.0.stdout.take().unwrap()).lines();
        let ready = lines.map_while(Result::ok).any(|line| line.starts_with("reveille is ready"));
        assert!(ready, "{}", self.log());
        daemon
    }

    /// A command of ours, once it has ended.
    pub fn command(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_reveille"))
            .args(arguments)
            .env("XDG_RUNTIME_DIR", self.dir.path())
            .env("REVEILLE_API", format!("http://{}", self.api))
            .env_remove("REVEILLE_TOKEN")
            .output()
            .unwrap()
    }

    /// What a command of ours prints, or its error.
    pub fn run_once(&self, arguments: &[&str]) -> Result<String, String> {
        let Output { status, stdout, stderr } = self.command(arguments);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        if status.success() { Ok(text(stdout)) } else { Err(text(stderr)) }
    }

    /// What a command of ours prints as JSON; it has to succeed.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.command(&[&["--json"], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {output:?}\n{}", self.log());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The removal of a service through the API, not waited for.
    pub fn remove(&self, service: &str) -> Running {
        let api = format!("http://{}", self.api);
        self.run(&[env!("CARGO_BIN_EXE_reveille"), "service", "remove", service, "--api", &api])
    }

    /// `reveille reload`.
    pub fn reload(&self) -> Result<Value, String> {
        let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
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
             key:\n  - id: {KEY}\n    algorithm: hmac-sha256\n    secret: {SECRET}\n\
             remote:\n  - id: primary\n    address: {3}@{4}\n    key: {KEY}\n\
             acl:\n  - id: notify\n    key: {KEY}\n    action: notify\n\
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
        self.run(&["knotd", "-c", &self.path("knot.conf")])
    }

    // --- Clients -----------------------------------------------------------------------------------------------

    fn ask(&self, server: SocketAddr, arguments: &[&str]) -> String {
        // From an address of its own: dig may share a port with a server of the same user on the same address, and would
        // hear itself.
        let output = Command::new("dig")
            .args(["-b", "127.0.0.2"])
            .args([&format!("@{}", server.ip()), "-p", &server.port().to_string(), "+time=15", "+tries=1"])
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
        let key = format!("hmac-sha256:{KEY}:{SECRET}");
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

    /// Whether nsupdate was told that the change is made. It asks again soon, and so hears soon that nobody is there.
    pub fn update(&self, change: &str) -> bool {
        let mut child = Command::new("nsupdate")
            .args(["-y", &format!("hmac-sha256:{KEY}:{SECRET}"), "-t", "20", "-u", "1", "-r", "20"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let script = format!("server {} {}\nzone vm.test\n{change}\nsend\n", self.dns.ip(), self.dns.port());
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        child.wait().unwrap().success()
    }

    // --- Waiting -----------------------------------------------------------------------------------------------

    /// Waits until there is something to see.
    pub fn found<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(start.elapsed() < PATIENCE, "never came: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the condition holds.
    pub fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        self.found(what, || condition().then_some(()));
    }
}
