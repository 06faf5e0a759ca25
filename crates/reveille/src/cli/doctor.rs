//! `reveille doctor`: what works on this host, tried rather than assumed, and what to do about what does not.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use reveille_vm::driver::Driver;
use reveille_vm::image::{BUSYBOX, Image, ImageStore, NO_AGENT};
use reveille_vm::qemu::{KvmVerdict, Qemu, Users};
use serde::Serialize;

use super::output::bytes;
use super::remote::runtime;
use super::{CONFIG_DEFAULT, Output, doctor_tap};
use crate::config::{Config, NetMode, Network};
use crate::serve::qemu_config;

/// Free space under which a hibernation may fail for lack of room.
const FREE_BYTES_WANTED: u64 = 2 << 30;

/// Options of `reveille doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// The daemon's config file; without one the defaults are looked at
    #[arg(long, short, value_name = "FILE", default_value = CONFIG_DEFAULT)]
    config: PathBuf,
    /// The state directory, instead of the config file's
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Try KVM anew, whatever was found before
    #[arg(long)]
    probe: bool,
}

/// How well something works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// As it should.
    Good,
    /// Not as well as it could.
    Limited,
    /// Not at all; Reveille cannot do its work.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Finding {
    what: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    /// It works.
    pub fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Good, found: found.into(), remedy: None }
    }

    /// It works, and could better.
    pub fn limited(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Limited, found: found.into(), remedy: Some(remedy.into()) }
    }

    /// It does not work.
    pub fn bad(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Bad, found: found.into(), remedy: Some(remedy.into()) }
    }
}

impl Doctor {
    /// Looks at everything and says what was found.
    ///
    /// # Errors
    /// If something does not work at all.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        let (config_finding, mut config) = read_config(&self.config);
        if let Some(state_dir) = self.state_dir {
            config.daemon.state_dir = state_dir;
        }
        let mut findings = vec![config_finding, state_dir(&config.daemon.state_dir)];
        findings.push(disk(&config.daemon.state_dir));
        // The driver keeps its verdict on KVM in the state directory; where that cannot be written, nothing is left.
        let scratch = tempfile::tempdir()?;
        if findings.iter().any(|finding| finding.what == "state directory" && finding.verdict == Verdict::Bad)
        {
            config.daemon.state_dir = scratch.path().to_owned();
        }
        findings.extend(runtime()?.block_on(qemu(&config, self.probe)));
        findings.push(busybox());
        findings.extend(agents(&config.daemon.state_dir));
        findings.push(privileges(&config));
        match config.net.mode {
            NetMode::Relay => findings.push(addresses(&config)),
            NetMode::Tap => findings.extend(doctor_tap::findings(&config)),
        }
        findings.extend(config.dns.listen.iter().map(|listen| dns_port(*listen)));
        output.print(&findings, |findings| text(findings))?;
        let bad = findings.iter().filter(|finding| finding.verdict == Verdict::Bad).count();
        anyhow::ensure!(bad == 0, "{bad} of {} things do not work; see above", findings.len());
        Ok(())
    }
}

fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { what, verdict, found, remedy } in findings {
        let mark = match verdict {
            Verdict::Good => "good   ",
            Verdict::Limited => "limited",
            Verdict::Bad => "BAD    ",
        };
        text += &format!("{mark}  {what}: {found}\n");
        if let Some(remedy) = remedy {
            text += &format!("         -> {remedy}\n");
        }
    }
    text
}

fn read_config(path: &Path) -> (Finding, Config) {
    if !path.exists() {
        let found = format!("{} is not there; looking at the defaults", path.display());
        let remedy = "name yours with --config FILE; etc/reveille.toml has every setting";
        return (Finding::limited("config", found, remedy), Config::default());
    }
    match Config::load(path) {
        Ok(config) => (Finding::good("config", path.display().to_string()), config),
        Err(error) => {
            let remedy = "mend the file; `reveille check` lists the faults again";
            (Finding::bad("config", error.to_string(), remedy), Config::default())
        }
    }
}

fn state_dir(dir: &Path) -> Finding {
    let what = "state directory";
    let tried = std::fs::create_dir_all(dir).and_then(|()| tempfile::tempfile_in(dir).map(drop));
    match tried {
        Ok(()) => Finding::good(what, format!("{} can be written", dir.display())),
        Err(error) => Finding::bad(
            what,
            format!("{} cannot be written: {error}", dir.display()),
            "run as a user who owns it, or set daemon.state_dir",
        ),
    }
}

fn disk(dir: &Path) -> Finding {
    let what = "disk";
    let existing = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(existing) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let found = format!("{} free at {}", bytes(free), existing.display());
            if free >= FREE_BYTES_WANTED {
                Finding::good(what, found)
            } else {
                let remedy = "each sleeping service takes up to its memory there; free some space";
                Finding::limited(what, found, remedy)
            }
        }
        Err(error) => Finding::bad(what, error.to_string(), "check the file system"),
    }
}

async fn qemu(config: &Config, probe: bool) -> Vec<Finding> {
    let what = "QEMU";
    let images = match ImageStore::open(config.daemon.state_dir.join("images")) {
        Ok(images) => Arc::new(images),
        Err(error) => return vec![Finding::bad("images", error.to_string(), "check the state directory")],
    };
    let opening = qemu_config(config, &images);
    let guest = opening.probe.clone();
    let qemu = match Qemu::open(opening).await {
        Ok(qemu) => qemu,
        Err(error) => return vec![Finding::bad(what, error.to_string(), "see the sentence itself")],
    };
    let capabilities = qemu.capabilities();
    let mut findings = vec![Finding::good(
        what,
        format!(
            "{} {} at {}: microvm, memory in a mapped file, state without memory{}",
            capabilities.driver,
            capabilities.version,
            qemu.binary().display(),
            if capabilities.sandbox { ", sandbox" } else { "" }
        ),
    )];
    if !capabilities.sandbox {
        let remedy = "use a QEMU that was built with seccomp, as Debian's is";
        findings.push(Finding::limited("sandbox", "this QEMU has none", remedy));
    }
    let verdict = match guest {
        Some(guest) if probe => qemu
            .probe_kvm(&guest)
            .await
            .unwrap_or_else(|error| KvmVerdict::Fails { detail: error.to_string() }),
        Some(_) | None => qemu.kvm().clone(),
    };
    findings.push(accelerator(&verdict, &capabilities.accelerator));
    findings
}

fn accelerator(verdict: &KvmVerdict, used: &str) -> Finding {
    let what = "accelerator";
    let found = format!("{verdict}; guests run under {used}");
    match verdict {
        KvmVerdict::Works { .. } => Finding::good(what, found),
        KvmVerdict::Unprobed => {
            Finding::limited(what, found, "build an image and run `reveille doctor --probe`")
        }
        KvmVerdict::Fails { .. } | KvmVerdict::Absent { .. } => Finding::limited(
            what,
            found,
            "TCG works everywhere and is slower; for KVM use a host whose firmware has virtualisation on, or a \
             virtual machine with nested virtualisation",
        ),
    }
}

fn busybox() -> Finding {
    let what = "busybox";
    if Path::new(BUSYBOX).exists() {
        Finding::good(what, format!("{BUSYBOX} is there for images' boot stage"))
    } else {
        Finding::limited(
            what,
            format!("{BUSYBOX} is not there"),
            "to build images: apt install busybox-static",
        )
    }
}

/// Images whose guests have no agent; nothing where there are no images yet.
fn agents(state_dir: &Path) -> Option<Finding> {
    let images = ImageStore::open(state_dir.join("images")).ok()?.list().ok()?.images;
    let lacks = |image: &Image| image.notes.iter().any(|note| note == NO_AGENT);
    let name = |image: &Image| {
        image.names.first().cloned().unwrap_or_else(|| image.digest.chars().take(12).collect())
    };
    let without: Vec<String> = images.iter().filter(|image| lacks(image)).map(name).collect();
    match (images.is_empty(), without.is_empty()) {
        (true, _) => None,
        (false, true) => Some(Finding::good("guest agents", "every image has one")),
        (false, false) => {
            let remedy =
                "if sleeps are to be refused, file systems frozen or guests cloned, add qemu-guest-agent";
            Some(Finding::limited("guest agents", format!("none in {}", without.join(", ")), remedy))
        }
    }
}

fn privileges(config: &Config) -> Finding {
    let what = "privileges";
    let (user, tap) = (rustix::process::geteuid(), config.net.mode == NetMode::Tap);
    let needs = if tap { "what tap mode needs is looked at below" } else { "which is enough for relay mode" };
    if !user.is_root() {
        let found = format!("user {}, and QEMU runs as the same user; {needs}", user.as_raw());
        return Finding::good(what, found);
    }
    match config.qemu_users() {
        Ok(Users::Own) => Finding::good(what, "root; QEMU runs as a user of its own for each instance"),
        Ok(Users::Named(uid)) => Finding::good(what, format!("root; QEMU runs as user {uid}")),
        Ok(Users::Daemon) | Err(_) => {
            let remedy = "set qemu.user = \"auto\"";
            Finding::limited(what, "root, and QEMU runs as root too", remedy)
        }
    }
}

/// Whether addresses of the pool can be listened on: true of 127/8 on Linux, elsewhere only of configured ones.
fn addresses(config: &Config) -> Finding {
    let what = "stable addresses";
    let Some(address) = Network::parse_v4(&config.relay.pool).and_then(|pool| pool.at(pool.size() - 2))
    else {
        return Finding::bad(
            what,
            format!("relay.pool = {} is no network", config.relay.pool),
            "see `reveille check`",
        );
    };
    match TcpListener::bind((address, 0)) {
        Ok(_) => Finding::good(what, format!("addresses of {} can be listened on", config.relay.pool)),
        Err(error) => Finding::bad(
            what,
            format!("{address} of relay.pool cannot be listened on: {error}"),
            format!("ip route add local {} dev lo", config.relay.pool),
        ),
    }
}

fn dns_port(listen: std::net::SocketAddr) -> Finding {
    let what = "DNS address";
    let tried = UdpSocket::bind(listen).and_then(|_| TcpListener::bind(listen).map(drop));
    match tried {
        Ok(()) => Finding::good(what, format!("{listen} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let holder = if listen.ip() == Ipv4Addr::LOCALHOST {
                "perhaps a Reveille that runs"
            } else {
                "another program"
            };
            Finding::limited(what, format!("{listen} is in use: {holder}"), "stop it, or set dns.listen")
        }
        Err(error) => {
            let remedy = "ports below 1024 need CAP_NET_BIND_SERVICE; the address must be one of this host";
            Finding::bad(what, format!("{listen}: {error}"), remedy)
        }
    }
}
