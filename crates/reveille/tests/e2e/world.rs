//! One daemon with everything that is its own: state directory, addresses, processes. When a `World` is dropped,
//! also by a failing test, nothing of it is left.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;

use crate::addresses::Addresses;
use crate::place::Place;
use crate::small::{LOOK, PATIENCE, from_environment, send, text, until, word};
use crate::wire::{self, Answer};

/// Lines of the daemon's log that a failing test shows.
const LOG_LINES_SHOWN: usize = 120;
/// The daemon's log levels unless `REVEILLE_LOG` says otherwise.
const LOG_LEVELS: &str = "info,reveille=debug,reveille_vm=debug,reveille_net=debug";

/// A service of the demo image with all its ports.
pub const HELLO: &str = r#"
[[service]]
name = "hello.vm.test"
image = "demo"
ports = ["tcp/8080", "tcp/7007", "udp/7007"]
ready = { check = "http", port = 8080, path = "/" }
"#;

/// A second service, which sleeps armed.
pub const READY: &str = r#"
[[service]]
name = "ready.vm.test"
image = "demo"
ports = ["tcp/8080"]
ready = { check = "http", port = 8080, path = "/" }
policy = { rest = "armed" }
"#;

// --- The world -----------------------------------------------------------------------------------------------------

/// A daemon's surroundings, and the daemon while it runs.
pub struct World {
    temp: tempfile::TempDir,
    addresses: Addresses,
    daemon: Option<Running>,
    settings: BTreeMap<&'static str, BTreeMap<&'static str, String>>,
    services: Vec<String>,
    began: Instant,
    /// At which step the next daemon ends itself.
    failpoints: String,
    _place: Option<Place>,
}

struct Running {
    child: Child,
    /// Where this daemon's part of the log begins.
    log_from: usize,
}

/// How a daemon ended that did not become ready, or was stopped.
#[derive(Debug)]
pub struct Exit {
    pub code: Option<i32>,
    pub log: String,
}

/// A QEMU process of this world.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vm {
    pub instance: String,
    pub pid: i32,
}

/// The demo's page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub service: String,
    pub nonce: String,
    pub requests: u64,
}

impl World {
    /// A world in which services sleep only when they are told to.
    pub fn new() -> Self {
        Self::at(Some(Place::take()))
    }

    /// Another one for a test that has one already: it does not wait for a place, so that two such tests cannot wait for
    /// each other.
    pub fn beside() -> Self {
        Self::at(None)
    }

    fn at(place: Option<Place>) -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::DirBuilder::new().mode(0o700).create(temp.path().join("run")).unwrap();
        fs::create_dir(temp.path().join("state")).unwrap();
        let images = from_environment("REVEILLE_TEST_STATE").join("images");
        std::os::unix::fs::symlink(images, temp.path().join("state/images")).unwrap();
        let addresses = Addresses::take();
        let settings = BTreeMap::new();
        let services = Vec::new();
        let world = Self {
            temp,
            addresses,
            daemon: None,
            settings,
            services,
            began: Instant::now(),
            failpoints: String::new(),
            _place: place,
        };
        let (dns, api) = (world.dns(), world.api());
        let pool = format!("\"{}/24\"", world.addresses.at(0));
        let qemu = std::env::var("REVEILLE_TEST_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".to_owned());
        world
            .set("daemon", "state_dir", "\"state\"")
            .set("dns", "listen", format!("[\"{dns}\"]"))
            .set("api", "listen", format!("\"{api}\""))
            .set("relay", "pool", pool)
            .set("qemu", "binary", format!("\"{qemu}\""))
            // Whether KVM works is not looked into here: it takes long where it does not.
            .set("qemu", "accelerator", "\"tcg\"")
            .policy("grace_ms", 0)
            .policy("min_on_ms", 0)
    }

    /// Sets a key of a table of the config file, as TOML.
    pub fn set(mut self, table: &'static str, key: &'static str, value: impl ToString) -> Self {
        self.settings.entry(table).or_default().insert(key, value.to_string());
        self
    }

    /// Sets what all services have.
    pub fn policy(self, key: &'static str, value: impl ToString) -> Self {
        self.set("policy", key, value)
    }

    /// Adds a service, as TOML.
    pub fn service(mut self, toml: &str) -> Self {
        self.services.push(toml.to_owned());
        self
    }

    /// Changes a key for the next start.
    pub fn change(&mut self, table: &'static str, key: &'static str, value: impl ToString) {
        self.settings.entry(table).or_default().insert(key, value.to_string());
    }

    /// Leaves all services out of the config for the next start; puts these into it.
    pub fn declare(&mut self, services: &[&str]) {
        self.services = services.iter().map(|toml| (*toml).to_owned()).collect();
    }

    /// Has the daemon that runs read the changed config.
    pub fn reload(&self) {
        self.write_config();
        self.json(&["reload"]);
    }

    /// At that step the next daemon waits for so long, once.
    pub fn wait_at(&mut self, failpoint: &str, ms: u64) {
        self.failpoints = format!("{failpoint}=1*wait:{ms}");
    }

    /// The next daemon ends as by `kill -9` when it comes to that step; empty: nowhere.
    pub fn end_at(&mut self, failpoint: &str) {
        self.failpoints = if failpoint.is_empty() { String::new() } else { format!("{failpoint}=kill") };
    }

    /// Gives the daemon an image store of its own instead of the one that all tests share.
    pub fn own_images(self) -> Self {
        let images = self.path("state/images");
        fs::remove_file(&images).unwrap();
        fs::create_dir(&images).unwrap();
        self
    }

    pub fn path(&self, inside: &str) -> PathBuf {
        self.temp.path().join(inside)
    }

    pub fn dns(&self) -> SocketAddr {
        SocketAddr::new(self.addresses.at(250).into(), 5_300)
    }

    pub fn api(&self) -> SocketAddr {
        SocketAddr::new(self.addresses.at(250).into(), 8_053)
    }

    /// The address that the `number`th service of the pool gets.
    pub fn address(&self, number: u8) -> Ipv4Addr {
        self.addresses.at(number)
    }

    // --- The daemon --------------------------------------------------------------------------------------------

    /// Writes the config file and starts the daemon; returns when it is ready.
    pub fn start(mut self) -> Self {
        self.restart();
        self
    }

    /// Starts the daemon again.
    pub fn restart(&mut self) {
        if let Err(exit) = self.try_start() {
            panic!("the daemon did not become ready: {exit:?}");
        }
    }

    /// Starts the daemon.
    ///
    /// # Errors
    /// How it ended, if it did so instead of becoming ready.
    pub fn try_start(&mut self) -> Result<(), Exit> {
        let lines = self.spawn();
        let deadline = Instant::now() + PATIENCE;
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with("reveille is ready") => return Ok(()),
                Ok(_) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(self.ended()),
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("the daemon is neither ready nor gone"),
            }
        }
    }

    /// Starts the daemon and does not wait; returns what it will print.
    pub fn spawn(&mut self) -> mpsc::Receiver<String> {
        assert!(self.daemon.is_none(), "it runs already");
        self.write_config();
        let log_from = self.log().len();
        let log = OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let levels = std::env::var("REVEILLE_LOG").unwrap_or_else(|_| LOG_LEVELS.to_owned());
        let mut command = self.command(&["serve", "--config"]);
        command.arg(self.path("reveille.toml")).env("REVEILLE_LOG", levels).env("NO_COLOR", "1");
        command.env("REVEILLE_FAILPOINTS", &self.failpoints);
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        self.daemon = Some(Running { child, log_from });
        lines
    }

    fn write_config(&self) {
        let mut text = String::new();
        for (table, keys) in &self.settings {
            text += &format!("[{table}]\n");
            for (key, value) in keys {
                text += &format!("{key} = {value}\n");
            }
        }
        text += "[[zone]]\nname = \"vm.test\"\n";
        text += &self.services.concat();
        fs::write(self.path("reveille.toml"), text).unwrap();
    }

    /// Waits for the end of the daemon.
    pub fn ended(&mut self) -> Exit {
        let mut running = self.daemon.take().expect("no daemon runs");
        let status = until("the end of the daemon", || running.child.try_wait().unwrap());
        let log = self.log()[running.log_from..].to_owned();
        Exit { code: status.code(), log }
    }

    /// Whether its process is there; to be asked with a daemon that was started.
    pub fn is_running(&self) -> bool {
        let id = self.daemon.as_ref().expect("no daemon was started").child.id();
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // One that has ended is there until it is waited for.
        stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with('Z'))
    }

    /// Ends the daemon as a crash does.
    pub fn kill9(&mut self) {
        self.crash();
        self.ended();
    }

    /// The same, not waiting for its end.
    pub fn crash(&self) {
        self.signal_daemon(Signal::KILL);
    }

    /// Ends the daemon as an operator does, who expects no complaint.
    pub fn stop(&mut self) {
        self.signal_daemon(Signal::TERM);
        let exit = self.ended();
        assert_eq!(exit.code, Some(0), "{}", exit.log);
    }

    fn signal_daemon(&self, signal: Signal) {
        let id = self.daemon.as_ref().expect("no daemon runs").child.id();
        send(i32::try_from(id).unwrap(), signal);
    }

    /// Everything that the daemons of this world have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    // --- The command line --------------------------------------------------------------------------------------

    /// `reveille` with `arguments`, in this world's environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reveille"));
        command
            .args(arguments)
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("HOME", self.path("run"))
            .env("REVEILLE_API", format!("http://{}", self.api()))
            .env_remove("REVEILLE_TOKEN")
            .env_remove("REVEILLE_TOKEN_FILE")
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null());
        command
    }

    /// Runs `reveille` to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.code().is_some(), "`reveille {arguments:?}` died: {output:?}");
        output
    }

    /// Runs `reveille --json`, which must succeed, and returns what it prints.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[&["--json"], arguments].concat());
        let (out, errors) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "`reveille {}`: {errors}", arguments.join(" "));
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error} in {out}"))
    }

    /// Runs `reveille`, which must fail with status 1, and returns what it complains of.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let complaint = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "`reveille {}`: {complaint}", arguments.join(" "));
        assert!(!complaint.contains("panicked"), "{complaint}");
        complaint
    }

    /// `reveille hibernate`, again while it is told that a client's connection is only just ending.
    pub fn put_to_sleep(&self, service: &str) {
        until(&format!("{service} to go to sleep"), || {
            let output = self.run(&["hibernate", service]);
            let complaint = text(&output.stderr);
            let busy = complaint.contains("stays awake") || complaint.contains("open connections");
            assert!(output.status.success() || busy, "{complaint}");
            output.status.success().then_some(())
        });
    }

    /// `reveille why`, with everything that it knows.
    pub fn why(&self, service: &str) -> Value {
        self.json(&["why", service, "--limit", "1000"])
    }

    /// The wakes of a service, oldest first.
    pub fn wakes(&self, service: &str) -> Vec<Value> {
        let why = self.why(service);
        why["wakes"].as_array().unwrap().iter().rev().cloned().collect()
    }

    /// The same, once there are at least `count` and all are over: a guest that was restored serves before it is
    /// known to be ready, and a finished record takes a moment to be stored.
    pub fn until_wakes(&self, service: &str, count: usize) -> Vec<Value> {
        until(&format!("{count} wakes of {service} to be over"), || {
            let wakes = self.wakes(service);
            let over = wakes.len() >= count && wakes.iter().all(|wake| !wake["outcome"].is_null());
            over.then_some(wakes)
        })
    }

    /// The words of the actions that were decided, oldest first.
    pub fn actions(&self, service: &str) -> Vec<String> {
        let why = self.why(service);
        let decisions = why["decisions"].as_array().unwrap().iter().rev();
        decisions.map(|decision| decision["action"]["do"].as_str().unwrap().to_owned()).collect()
    }

    // --- The API -----------------------------------------------------------------------------------------------

    /// One request to the API.
    pub fn ask(&self, method: &str, target: &str) -> io::Result<Answer> {
        let token = if method == "GET" { None } else { self.token() };
        wire::http(self.api(), method, target, token.as_deref())
    }

    fn token(&self) -> Option<String> {
        let paths = self.token_files();
        paths.iter().find_map(|path| Some(fs::read_to_string(path).ok()?.trim().to_owned()))
    }

    fn token_files(&self) -> [PathBuf; 3] {
        let name = format!("{}-{}.token", self.api().ip(), self.api().port());
        let home = self.path("run/.local/state");
        [Path::new("/run"), &self.path("run"), &home].map(|place| place.join("reveille").join(&name))
    }

    /// All about a service.
    pub fn show(&self, service: &str) -> Value {
        let answer = self.ask("GET", &format!("/v1/services/{service}")).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        serde_json::from_str(&answer.body).unwrap()
    }

    pub fn phase(&self, service: &str) -> String {
        word(&self.show(service)["phase"])
    }

    /// Waits until a service is in `phase`; returns all about it.
    pub fn until_phase(&self, service: &str, phase: &str) -> Value {
        self.until_shown(service, &format!("{service} to be {phase}"), |shown| shown["phase"] == phase)
    }

    /// Waits until what is shown of a service is as wanted.
    pub fn until_shown(&self, service: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            last = self.show(service);
            if wanted(&last) {
                return last;
            }
            std::thread::sleep(LOOK);
        }
        panic!("waited in vain for {what}; it is {last:#}");
    }

    // --- Clients -----------------------------------------------------------------------------------------------

    /// The demo's page at `address`, or what a client saw instead.
    pub fn try_page(&self, address: impl Into<IpAddr>) -> io::Result<Page> {
        let answer = wire::http(SocketAddr::new(address.into(), 8_080), "GET", "/", None)?;
        let line = |key: &str| {
            let value = answer.body.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
            value.ok_or_else(|| io::Error::other(format!("no `{key}` in {answer:?}")))
        };
        let requests = line("requests")?.parse().map_err(io::Error::other)?;
        Ok(Page { service: line("service")?.to_owned(), nonce: line("boot-nonce")?.to_owned(), requests })
    }

    /// The demo's page at the first service's address.
    pub fn page(&self) -> Page {
        self.page_at(1)
    }

    /// The demo's page at the address of the `number`th service.
    pub fn page_at(&self, number: u8) -> Page {
        self.try_page(self.address(number)).unwrap_or_else(|error| panic!("GET of service {number}: {error}"))
    }

    /// What dig prints.
    pub fn dig(&self, arguments: &[&str]) -> String {
        let server = format!("@{}", self.dns().ip());
        let output = Command::new("dig")
            .args([server.as_str(), "-p", "5300", "+tries=1", "+timeout=30", "+nocookie"])
            .args(arguments)
            .output()
            .expect("dig is missing; `make test` installs it");
        text(&output.stdout)
    }

    // --- Processes ---------------------------------------------------------------------------------------------

    /// The QEMU processes of this world: those that work in one of its instances' directories.
    pub fn vms(&self) -> Vec<Vm> {
        vms_below(&self.path("state/instances"))
    }

    /// Those of one service.
    pub fn vms_of(&self, service: &str) -> Vec<Vm> {
        let instance = format!("i{}", self.show(service)["instance"]);
        self.vms().into_iter().filter(|vm| vm.instance == instance).collect()
    }

    /// The only one.
    pub fn vm(&self) -> Vm {
        let vms = self.vms();
        assert_eq!(vms.len(), 1, "one QEMU process was expected: {vms:?}");
        vms[0].clone()
    }

    /// Waits until there are `count` of them.
    pub fn until_vms(&self, count: usize) -> Vec<Vm> {
        until(&format!("{count} QEMU processes"), || Some(self.vms()).filter(|vms| vms.len() == count))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().filter(|line| !line.contains(" API request ")).collect();
            let shown = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n");
            eprintln!("--- the daemon's log, {:?} after the world began ---\n{shown}", self.began.elapsed());
            eprintln!("--- QEMU: {:?} ---", self.vms());
        }
        if let Some(mut running) = self.daemon.take() {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
        let began = Instant::now();
        loop {
            // A daemon that is killed while it starts may leave more than its guests.
            let strays = processes_of(&self.path("run"));
            if strays.is_empty() || began.elapsed() > PATIENCE {
                break;
            }
            strays.into_iter().for_each(|pid| send(pid, Signal::KILL));
            std::thread::sleep(LOOK);
        }
        for path in self.token_files() {
            let _ = fs::remove_file(path);
        }
        if !std::thread::panicking() {
            let log = self.log();
            assert!(!log.contains("panicked at"), "the daemon panicked: {log}");
        }
    }
}

/// All processes that have this world's directory in their environment, as every child of its daemons has.
fn processes_of(run: &Path) -> Vec<i32> {
    let mark = [b"XDG_RUNTIME_DIR=", run.as_os_str().as_encoded_bytes()].concat();
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark)
    })
    .collect()
}

fn vms_below(instances: &Path) -> Vec<Vm> {
    let Ok(instances) = instances.canonicalize() else { return Vec::new() };
    let mut vms = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(cwd) = fs::read_link(entry.path().join("cwd")) else { continue };
        if let Ok(inside) = cwd.strip_prefix(&instances) {
            // A directory that was removed under its process is shown with a mark.
            let instance = inside.display().to_string();
            vms.push(Vm { instance: instance.trim_end_matches(" (deleted)").to_owned(), pid });
        }
    }
    vms.sort();
    vms
}

fn lines_of(stdout: impl io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // Read to the end also when nobody waits any more: the daemon must not meet a full pipe.
            let _ = sender.send(line);
        }
    });
    lines
}
