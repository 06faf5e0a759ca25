//! The daemon as a primary: killed again and again, it never gives one serial to two contents, and a real secondary
//! follows it. No virtual machine is started; the services have no image.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(30);
/// Lives of the daemon.
const LIVES: u32 = 5;
const SERVICES: u32 = 8;
const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// A child process that does not outlive the test.
struct Running(Child);

impl Running {
    fn start(command: &[&str], dir: &Path) -> Self {
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .args(command)
            .env("XDG_RUNTIME_DIR", dir)
            // Where servers are, which is not in everybody's path.
            .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
            .env("REVEILLE_LOG", "info")
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

    fn kill(mut self) {
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

/// Where everything of this test is.
struct Place {
    dir: tempfile::TempDir,
    dns: SocketAddr,
    api: SocketAddr,
    secondary: SocketAddr,
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
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Self { dir, dns: free_port(), api: free_port(), secondary: free_port() };
        let Self { dns, api, secondary, .. } = &place;
        let mut config = format!(
            r#"
            daemon = {{ state_dir = "state" }}
            dns = {{ listen = ["{dns}"] }}
            api = {{ listen = "{api}" }}
            relay = {{ pool = "127.{}.{}.0/24" }}
            qemu = {{ accelerator = "tcg" }}
            key = [{{ name = "xfr.test", file = "xfr.key" }}]
            zone = [{{
                name = "vm.test", transfer = [{{ key = "xfr.test" }}],
                notify = [{{ address = "{secondary}", key = "xfr.test" }}],
            }}]
            "#,
            100 + std::process::id() % 100,
            std::process::id() / 100 % 250,
        );
        for number in 0..SERVICES {
            config += &format!(
                "[[service]]\nname = \"s{number}.vm.test\"\nimage = \"none\"\nports = [\"tcp/80\"]\n"
            );
        }
        place.write("reveille.toml", &config);
        place.write("xfr.key", &format!("key xfr.test {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};"));
        fs::set_permissions(place.path("xfr.key"), fs::Permissions::from_mode(0o600)).unwrap();
        place.write("knot.conf", &format!(
            "server:\n  rundir: \"{0}\"\n  listen: {1}@{2}\n\
             database:\n  storage: \"{0}\"\n  journal-db-max-size: 64M\n  timer-db-max-size: 8M\n\
             key:\n  - id: xfr.test\n    algorithm: hmac-sha256\n    secret: {SECRET}\n\
             remote:\n  - id: primary\n    address: {3}@{4}\n    key: xfr.test\n\
             acl:\n  - id: notify\n    key: xfr.test\n    action: notify\n\
             \x20 - id: transfer\n    address: 127.0.0.0/8\n    action: transfer\n\
             zone:\n  - domain: vm.test\n    storage: \"{0}\"\n    master: primary\n    acl: [ notify, transfer ]\n",
            place.dir.path().display(), secondary.ip(), secondary.port(), dns.ip(), dns.port(),
        ));
        place
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The daemon, once it is ready.
    fn daemon(&self) -> Running {
        let command = [env!("CARGO_BIN_EXE_reveille"), "serve", "--config", &self.path("reveille.toml")];
        let mut daemon = Running::start(&command, self.dir.path());
        let lines = BufReader::new(daemon.0.stdout.take().unwrap()).lines();
        let ready = lines.map_while(Result::ok).any(|line| line.starts_with("reveille is ready"));
        assert!(ready, "{}", self.log());
        daemon
    }

    /// A removal through the API, not waited for.
    fn remove(&self, number: u32) -> Running {
        let (name, api) = (format!("s{number}.vm.test"), format!("http://{}", self.api));
        let command = [env!("CARGO_BIN_EXE_reveille"), "service", "remove", &name, "--api", &api];
        Running::start(&command, self.dir.path())
    }

    fn dig(&self, server: SocketAddr, more: &[&str]) -> String {
        // From an address of its own: dig may share a port with a server of the same user on the same address, and would
        // hear itself.
        let output = Command::new("dig")
            .args(["-b", "127.0.0.2"])
            .args([&format!("@{}", server.ip()), "-p", &server.port().to_string()])
            .args(more)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Serial and content of the zone; `None` if there is no answer.
    fn zone(&self, server: SocketAddr) -> Option<(u32, Vec<String>)> {
        let key = format!("hmac-sha256:xfr.test:{SECRET}");
        let mut asked = vec!["+noall", "+answer", "vm.test", "AXFR"];
        if server == self.dns {
            asked.extend(["-y", &key]);
        }
        let text = self.dig(server, &asked);
        let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let records: Vec<Vec<&str>> = lines.filter(|fields| fields.len() > 4 && fields[0] != ";").collect();
        let serial = records.first().filter(|fields| fields[3] == "SOA")?[6].parse().ok()?;
        let content = records.iter().filter(|fields| fields[3] != "SOA" && fields[3] != "TSIG");
        let mut content: Vec<String> = content.map(|fields| fields.join(" ")).collect();
        content.sort();
        Some((serial, content))
    }
}

fn until<T>(what: &str, place: &Place, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "never came: {what}\n{}", place.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn no_serial_stands_for_two_contents_however_often_the_daemon_is_killed() {
    let place = Place::new();
    let secondary = Running::start(&["knotd", "-c", &place.path("knot.conf")], place.dir.path());
    let mut seen: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for life in 0..LIVES {
        let daemon = place.daemon();
        let (first, content) = place.zone(place.dns).unwrap();
        let last = seen.keys().next_back().copied().unwrap_or(0);
        assert!(first > last, "{first} after {last}");
        seen.insert(first, content);
        // The secondary follows each life, which knows nothing of the one before.
        until("the secondary at the new serial", &place, || {
            place.zone(place.secondary).filter(|(serial, _)| *serial >= first)
        });
        let removals: Vec<Running> =
            (0..SERVICES).filter(|n| n % 2 == life % 2).map(|n| place.remove(n)).collect();
        // Killed while it publishes: at another time in each life.
        for _ in 0..life * 4 {
            let Some((serial, content)) = place.zone(place.dns) else { continue };
            let known = seen.entry(serial).or_insert_with(|| content.clone());
            assert_eq!(*known, content, "serial {serial}");
        }
        daemon.kill();
        drop(removals);
    }
    let daemon = place.daemon();
    until("a service gone", &place, || {
        let mut removal = place.remove(0);
        removal.0.wait().ok().filter(std::process::ExitStatus::success)
    });
    let own = place.zone(place.dns).unwrap();
    assert!(own.0 > *seen.keys().next_back().unwrap() && own.1.len() < 2 + SERVICES as usize, "{own:?}");
    let theirs = until("the secondary without it", &place, || {
        place.zone(place.secondary).filter(|(serial, _)| *serial == own.0)
    });
    assert_eq!(own, theirs);
    drop((daemon, secondary));
}
