//! Servers that tell what they are asked by dnstap, and programs that read it, each a child process on loopback.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::ask::asked;
use super::common::WAIT_MAX;
use super::common::ports::free_address;

const ZONE: &str = "$ORIGIN vm.test.\n$TTL 30\n@ SOA ns1 hostmaster 1 3600 600 86400 30\n@ NS ns1\n\
                    ns1 A 127.0.0.1\nhello A 127.64.0.1\nawake A 127.64.0.2\nwww CNAME hello\n";

/// A program that sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Knot,
    Bind,
    /// Over TCP; asks the server at that address for `vm.test`.
    Unbound(SocketAddr),
}

/// Where senders send to.
#[derive(Debug, Clone)]
pub struct Collectors {
    pub unix: PathBuf,
    pub tcp: SocketAddr,
}

/// A server that runs; ended with this value, and with the test.
pub struct Sender {
    pub address: SocketAddr,
    program: Program,
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Program {
    pub fn identity(self) -> &'static str {
        match self {
            Self::Knot => "knot.test",
            Self::Bind => "bind.test",
            Self::Unbound(_) => "unbound.test",
        }
    }

    fn config(self, dir: &Path, own: SocketAddr, to: &Collectors) -> String {
        let (dir, unix, identity) = (dir.display(), to.unix.display(), self.identity());
        let (ip, port) = (own.ip(), own.port());
        match self {
            Self::Knot => format!(
                "server:\n  rundir: \"{dir}\"\n  listen: {ip}@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  \
                 background-workers: 1\n\
                 database:\n  storage: \"{dir}/db\"\n  journal-db-max-size: 64M\n  timer-db-max-size: 8M\n\
                 log:\n  - target: stderr\n    any: info\n\
                 mod-dnstap:\n  - id: out\n    sink: \"unix:{unix}\"\n    log-queries: on\n    \
                 log-responses: on\n    identity: {identity}\n\
                 template:\n  - id: default\n    global-module: mod-dnstap/out\n\
                 zone:\n  - domain: vm.test\n    file: \"{dir}/vm.test.zone\"\n"
            ),
            Self::Bind => format!(
                "options {{ directory \"{dir}\"; pid-file none; session-keyfile \"{dir}/session.key\"; lock-file none;\n\
                 listen-on port {port} {{ {ip}; }}; listen-on-v6 {{ none; }}; recursion no; dnssec-validation no;\n\
                 dnstap {{ auth query; auth response; }}; dnstap-output unix \"{unix}\"; \
                 dnstap-identity \"{identity}\"; }};\ncontrols {{ }};\n\
                 zone \"vm.test\" {{ type primary; file \"{dir}/vm.test.zone\"; }};\n"
            ),
            Self::Unbound(zone) => format!(
                "server:\n  directory: \"{dir}\"\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"{dir}/pid\"\n  \
                 interface: {ip}\n  port: {port}\n  do-daemonize: no\n  use-syslog: no\n  logfile: \"{dir}/log\"\n  \
                 num-threads: 1\n  module-config: \"iterator\"\n  do-not-query-localhost: no\n  do-ip6: no\n  \
                 local-zone: \"test.\" nodefault\n  access-control: 127.0.0.0/8 allow\n\
                 remote-control:\n  control-enable: no\n\
                 stub-zone:\n  name: vm.test\n  stub-addr: {}@{}\n\
                 dnstap:\n  dnstap-enable: yes\n  dnstap-socket-path: \"\"\n  dnstap-ip: {}@{}\n  dnstap-tls: no\n  \
                 dnstap-bidirectional: yes\n  dnstap-send-identity: yes\n  dnstap-identity: \"{identity}\"\n  \
                 dnstap-log-client-query-messages: yes\n  dnstap-log-client-response-messages: yes\n  \
                 dnstap-log-resolver-query-messages: yes\n  dnstap-log-resolver-response-messages: yes\n",
                zone.ip(),
                zone.port(),
                to.tcp.ip(),
                to.tcp.port()
            ),
        }
    }

    fn arguments(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Knot => ("knotd", &["-c"]),
            Self::Bind => ("named", &["-g", "-n", "1", "-c"]),
            Self::Unbound(_) => ("unbound", &["-d", "-p", "-c"]),
        }
    }
}

impl Sender {
    /// Starts it, and waits until it answers.
    pub fn start(program: Program, to: &Collectors) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = free_address();
        fs::create_dir_all(dir.path().join("db")).unwrap();
        fs::write(dir.path().join("vm.test.zone"), ZONE).unwrap();
        fs::write(dir.path().join("config"), program.config(dir.path(), address, to)).unwrap();
        let mut sender = Self { address, program, dir, child: None };
        sender.run();
        sender
    }

    /// Kills it, and starts it again.
    pub fn restart(&mut self) {
        self.kill();
        self.run();
    }

    fn run(&mut self) {
        let (program, arguments) = self.program.arguments();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = Command::new(program);
        command.args(arguments).arg(self.dir.path().join("config"));
        self.child = Some(spawn(command, &log));
        let start = Instant::now();
        // For a zone that it does not have, and that no resolver goes out for: counted as such, if at all.
        while asked(self.address, "up.invalid", Duration::from_millis(100)).is_none() {
            assert!(start.elapsed() < WAIT_MAX, "{:?} does not answer: {}", self.program, self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// What it printed.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `fstrm_capture`, which writes what one sender says to a file.
pub struct Capture {
    child: Child,
    pub file: PathBuf,
}

impl Capture {
    /// Listens as `listen` (arguments of the program) says.
    pub fn start(dir: &Path, listen: &[&str]) -> Self {
        let file = dir.join("captured");
        let mut command = Command::new("fstrm_capture");
        command.args(["-t", "protobuf:dnstap.Dnstap"]).args(listen).arg("-w").arg(&file);
        let log = fs::File::create(dir.join("capture.log")).unwrap();
        Self { child: spawn(command, &log), file }
    }

    /// Asks it to end, and waits until all is in its file.
    pub fn finish(mut self) -> PathBuf {
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let start = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < WAIT_MAX, "fstrm_capture does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.file.clone()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts it so that the kernel ends it if the test is killed.
fn spawn(command: Command, log: &fs::File) -> Child {
    let program = command.get_program().to_owned();
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(&program)
        .args(command.get_args())
        // Where servers are, which is not in everybody's path.
        .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log.try_clone().unwrap())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("{}: {error}; `make test` installs what the tests need", program.display())
        })
}
