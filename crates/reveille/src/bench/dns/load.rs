//! Load from dnsperf, and what it costs the server.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;

/// Processor of the servers.
pub const SERVER_CPU: &str = "0";
/// Processor of the load.
pub const LOAD_CPU: &str = "1";
/// Questions in the file that the load generator repeats.
const QUESTIONS: u32 = 200_000;
/// Clients of the load generator.
const CLIENTS: &str = "4";
/// Queries that are under way at a time.
const UNDER_WAY: &str = "400";

/// A process that is measured; it ends when this is dropped.
pub struct Server {
    /// Where it answers.
    pub address: SocketAddr,
    child: Child,
}

/// Transport of the load.
#[derive(Clone, Copy)]
pub enum Protocol {
    /// Datagrams.
    Udp,
    /// Connections that stay open.
    Tcp,
}

/// One measurement of one server.
pub struct Sample {
    /// User and system time of the server's process over the queries that were answered.
    pub us_cpu_per_query: f64,
    /// Answers a second.
    pub queries_per_second: f64,
    /// Queries without an answer.
    pub lost: u64,
}

/// Questions for the services of a zone.
pub struct Load {
    file: PathBuf,
    seconds: u64,
}

impl Server {
    /// Takes charge of a process that answers at that address.
    pub fn new(address: SocketAddr, child: Child) -> Self {
        Self { address, child }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the benchmark needs beside Reveille.
///
/// # Errors
/// If a program is missing or the host has one processor only.
pub fn check_tools() -> anyhow::Result<()> {
    for (program, package) in [("dnsperf", "dnsperf"), ("taskset", "util-linux")] {
        let found = Command::new(program).arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.with_context(|| format!("{program} is missing; apt-get install {package}"))?;
    }
    let processors = std::thread::available_parallelism()?.get();
    anyhow::ensure!(processors >= 2, "two processors are needed, one for the servers and one for the load");
    Ok(())
}

/// A command that runs on one processor and ends with this process.
pub fn pinned(cpu: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "taskset", "-c", cpu]).arg(program).stdin(Stdio::null());
    command
}

impl Load {
    /// Writes the questions: random services of `services`, the same ones each time.
    pub fn write(scratch: &Path, name: &str, services: u32, seconds: u64) -> anyhow::Result<Self> {
        let mut text = String::new();
        let mut random = Random(1);
        for _ in 0..QUESTIONS {
            writeln!(text, "svc{}.vm.test A", random.below(services))?;
        }
        let file = scratch.join(name);
        std::fs::write(&file, text).context("cannot write the questions")?;
        Ok(Self { file, seconds })
    }

    /// Asks the server for the time of one measurement.
    ///
    /// # Errors
    /// If the load generator fails or the server is gone.
    pub fn measure(&self, server: &Server, protocol: Protocol) -> anyhow::Result<Sample> {
        let before = cpu_seconds(server.child.id())?;
        let mut command = pinned(LOAD_CPU, "dnsperf");
        command.args(["-s", &server.address.ip().to_string(), "-p", &server.address.port().to_string()]);
        command.arg("-d").arg(&self.file).args(["-l", &self.seconds.to_string()]);
        command.args(["-c", CLIENTS, "-T", "1", "-q", UNDER_WAY]);
        command.args(match protocol {
            Protocol::Udp => ["-m", "udp"],
            Protocol::Tcp => ["-m", "tcp"],
        });
        let output = command.output().context("cannot run dnsperf")?;
        let spent = cpu_seconds(server.child.id())? - before;
        let text = String::from_utf8_lossy(&output.stdout);
        let number = |label: &str| -> anyhow::Result<f64> {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(label));
            let word = line.and_then(|line| line.split_whitespace().next());
            let found = word.and_then(|word| word.parse().ok());
            found.with_context(|| format!("dnsperf did not say `{label}`: {text}"))
        };
        let completed = number("Queries completed:")?;
        anyhow::ensure!(completed > 0.0, "{} answered nothing: {text}", server.address);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let lost = number("Queries lost:")? as u64;
        let queries_per_second = number("Queries per second:")?;
        Ok(Sample { us_cpu_per_query: spent * 1e6 / completed, queries_per_second, lost })
    }
}

/// User and system time of a process, all of its threads, in seconds.
fn cpu_seconds(process: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{process}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The command may have blanks and brackets; the fields after its last bracket do not.
    let (_, fields) = stat.rsplit_once(')').context("no process status")?;
    let ticks =
        |index: usize| fields.split_whitespace().nth(index).and_then(|field| field.parse::<u32>().ok());
    let (user, system) = ticks(11).zip(ticks(12)).context("no times in the process status")?;
    Ok(f64::from(user + system) / rustix::param::clock_ticks_per_second() as f64)
}

/// Xorshift: the same questions in each run.
pub struct Random(pub u64);

impl Random {
    /// The next number below `limit`.
    pub fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(((self.0 >> 32) * u64::from(limit)) >> 32).unwrap_or(0)
    }
}
