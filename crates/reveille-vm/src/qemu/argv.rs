//! The command line of QEMU: what it is given, and why.
//!
//! Nothing goes through a shell and nothing secret is in it: every user of the host can read it. Files of the
//! instance are named relative to its directory, which is QEMU's working directory.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use reveille_core::model::{Egress, Resources};

use super::accel::Accel;
use super::agent;
use super::disk::Chain;
use super::layout::{AGENT, MEMORY, NETWORK, REFRESH, SERIAL, SOCKET, STATE};
use super::tsc;
use crate::driver::{Disk, Launch, Link, Mapping, Tap};
use crate::image::REFRESH_PORT;

/// Refuses what QEMU has no need of once it runs: other programs, more rights, other scheduling.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
/// Machine type.
pub const MACHINE: &str = "microvm";
/// Name of the guest's memory, on the command line and in QEMU's streams.
pub const MEMORY_BLOCK: &str = "m0";
/// The agent's port on the command line and in QEMU's answers.
pub const AGENT_ID: &str = "agent";
/// The refresher's.
pub const REFRESH_ID: &str = "refresh";
/// Hardware address of every guest on a stream: each is alone on its link.
pub const GUEST_MAC: &str = "52:54:00:12:34:56";

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argv {
    /// The program.
    pub program: PathBuf,
    /// Its arguments, the program's name not among them.
    pub arguments: Vec<OsString>,
}

impl Argv {
    /// The program alone.
    pub fn new(program: &Path) -> Self {
        Self { program: program.to_owned(), arguments: Vec::new() }
    }

    /// Adds an option and its value.
    pub fn option(&mut self, name: &str, value: impl AsRef<OsStr>) -> &mut Self {
        self.arguments.push(name.into());
        self.arguments.push(value.as_ref().to_owned());
        self
    }

    /// Adds an option without a value.
    pub fn flag(&mut self, name: &str) -> &mut Self {
        self.arguments.push(name.into());
        self
    }
}

/// How the QEMU of this host is called, whatever the guest.
#[derive(Debug, Clone)]
pub struct Program {
    /// The binary, absolute.
    pub binary: PathBuf,
    /// Where it finds its firmware (`-L`), if not where it was built for.
    pub data_dir: Option<PathBuf>,
    /// Whether the binary can be sandboxed.
    pub sandbox: bool,
}

impl Program {
    /// What every call begins with: no default devices, no configuration of the user's, no window.
    pub fn argv(&self) -> Argv {
        let mut argv = Argv::new(&self.binary);
        if let Some(dir) = &self.data_dir {
            argv.option("-L", dir);
        }
        argv.flag("-nodefaults").flag("-no-user-config").option("-display", "none");
        if self.sandbox {
            argv.option("-sandbox", SANDBOX);
        }
        argv
    }
}

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct Guest<'a> {
    /// How its code is run.
    pub accel: Accel,
    /// CPUs and memory.
    pub resources: Resources,
    /// Kernel and initial RAM file system.
    pub kernel: &'a Path,
    /// Initial RAM file system.
    pub initrd: &'a Path,
    /// File that backs the guest's memory, and how; anonymous memory without one.
    pub memory: Option<(&'a Path, Mapping)>,
    /// File that its console is appended to.
    pub serial: &'a Path,
    /// Its host name.
    pub hostname: &'a str,
    /// How it is addressed, if otherwise than the boot stage assumes.
    pub tap: Option<&'a Tap>,
}

impl Guest<'_> {
    /// Adds machine, CPU, memory, kernel and console.
    pub fn add_to(&self, argv: &mut Argv) {
        let Resources { cpus, memory_mib, .. } = self.resources;
        let mut machine = format!("{MACHINE},acpi=on");
        if let Some((path, mapping)) = self.memory {
            let share = match mapping {
                // A hibernation need not write the memory out again.
                Mapping::Consume => "on",
                Mapping::Beside => "off",
            };
            let mut backend = OsString::from(format!(
                "memory-backend-file,id={MEMORY_BLOCK},size={memory_mib}M,share={share},dump=off,mem-path="
            ));
            backend.push(escaped(path));
            argv.option("-object", backend);
            let _ = write!(machine, ",memory-backend={MEMORY_BLOCK}");
        }
        argv.option("-M", machine)
            .option("-accel", self.accel.word())
            .option("-cpu", self.accel.cpu())
            .option("-smp", cpus.to_string())
            .option("-m", format!("{memory_mib}M"))
            // A guest that restarts, or panics, is told by its process's end.
            .flag("-no-reboot")
            .option("-kernel", self.kernel)
            .option("-initrd", self.initrd)
            .option("-append", self.kernel_command_line());
        let mut console = OsString::from("file,id=console,append=on,path=");
        console.push(escaped(self.serial));
        argv.option("-chardev", console).option("-serial", "chardev:console");
    }

    fn kernel_command_line(&self) -> String {
        let mut line = "console=ttyS0 quiet reboot=t panic=-1 audit=0".to_owned();
        if let (Accel::Tcg, Some(khz)) = (self.accel, tsc::rate_khz()) {
            // A rate that is told need not be calibrated against emulated timers, which now and then never ends;
            // and what is translated cannot be speculated on. Writing to a String does not fail.
            let _ = write!(line, " tsc_early_khz={khz} mitigations=off");
        }
        let _ = write!(line, " reveille.hostname={}", self.hostname);
        if let Some(Tap { address, gateway, v6, nameserver, .. }) = self.tap {
            let _ = write!(
                line,
                " reveille.address={address}/32 reveille.gateway={gateway} reveille.nameserver="
            );
            line.extend(nameserver.map(|server| server.to_string()));
            if let Some((address, gateway)) = v6 {
                let _ = write!(line, " reveille.address6={address}/128 reveille.gateway6={gateway}");
            }
        }
        line
    }
}

/// Whether a process starts a guest from its image or waits for a version to be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The vCPUs run at once.
    Boot,
    /// The vCPUs stand still, also after the version was loaded, until they are told to run.
    Incoming {
        /// How the version's memory is mapped.
        mapping: Mapping,
        /// Whether the guest had ports for its agent and the refresher when the version was taken: its devices must be
        /// the same.
        ports: bool,
    },
}

/// The command line of an instance whose disk, if it has one, has these layers; its working directory is to be the
/// instance's.
///
/// # Errors
/// The disk cannot be named; one sentence.
pub fn instance(
    program: &Program,
    accel: Accel,
    launch: &Launch,
    chain: Option<&Chain>,
    start: Start,
) -> Result<Argv, String> {
    let mut argv = program.argv();
    argv.option("-name", format!("guest={}", launch.service));
    let (mapping, ports, waits) = match start {
        Start::Boot => (Mapping::Consume, true, false),
        Start::Incoming { mapping, ports } => (mapping, ports, true),
    };
    guest(accel, launch, (Path::new(MEMORY), mapping), Path::new(SERIAL)).add_to(&mut argv);
    add_devices(&mut argv, launch);
    if let (Some(disk), Some(chain)) = (&launch.disk, chain) {
        add_disk(&mut argv, disk, chain, STATE)?;
    }
    if ports {
        add_ports(&mut argv);
    }
    argv.option("-qmp", format!("unix:{SOCKET},server=on,wait=off"));
    if waits {
        argv.option("-incoming", "defer").flag("-S");
    }
    Ok(argv)
}

/// The command line of the same machine booted outside Reveille: without control socket, its network link at
/// `run/net.sock` in its working directory, where its disk's layers are as well, its memory and console in the given files.
/// For comparisons.
///
/// # Errors
/// The disk cannot be named; one sentence.
pub fn cold(
    program: &Program,
    accel: Accel,
    launch: &Launch,
    chain: Option<&Chain>,
    (memory, serial): (&Path, &Path),
) -> Result<Argv, String> {
    let mut argv = program.argv();
    guest(accel, launch, (memory, Mapping::Consume), serial).add_to(&mut argv);
    add_devices(&mut argv, launch);
    if let (Some(disk), Some(chain)) = (&launch.disk, chain) {
        add_disk(&mut argv, disk, chain, ".")?;
    }
    add_ports(&mut argv);
    Ok(argv)
}

fn add_disk(argv: &mut Argv, disk: &Disk, chain: &Chain, layers: &str) -> Result<(), String> {
    for node in chain.nodes(disk, layers)? {
        argv.option("-blockdev", node.to_string());
    }
    // A host's disk that is full, or broken, is told to the guest, which knows what it had to keep.
    let device =
        format!("virtio-blk-device,drive={},write-cache=on,werror=report,rerror=report", chain.top());
    argv.option("-device", device);
    Ok(())
}

/// The ports of the guest's agent and of the refresher. Their sockets are there whether the guest has any or not.
fn add_ports(argv: &mut Argv) {
    argv.option("-device", "virtio-serial-device,max_ports=3");
    for (id, socket, name) in [(AGENT_ID, AGENT, agent::PORT), (REFRESH_ID, REFRESH, REFRESH_PORT)] {
        argv.option("-chardev", format!("socket,id={id},path={socket},server=on,wait=off"))
            .option("-device", format!("virtserialport,id={id},chardev={id},name={name}"));
    }
}

fn guest<'a>(accel: Accel, launch: &'a Launch, memory: (&'a Path, Mapping), serial: &'a Path) -> Guest<'a> {
    Guest {
        accel,
        resources: launch.resources,
        kernel: &launch.kernel,
        initrd: &launch.initrd,
        memory: Some(memory),
        serial,
        hostname: launch.hostname(),
        tap: match &launch.link {
            Link::Stream => None,
            Link::Tap(tap) => Some(tap),
        },
    }
}

fn add_devices(argv: &mut Argv, launch: &Launch) {
    let (nic, mac) = match &launch.link {
        Link::Stream => (add_stream(argv, launch.egress), GUEST_MAC.to_owned()),
        Link::Tap(tap) => {
            // The open device is its standard output, which it has no other use for: nothing has to be found by
            // name, no right is needed, and the process is started as any other.
            argv.option("-netdev", "tap,id=n0,fd=1,vhost=off");
            ("n0", tap.mac_text())
        }
    };
    argv.option("-device", format!("virtio-net-device,netdev={nic},mac={mac}"))
        .option("-device", "virtio-rng-device")
        .option("-device", "virtio-balloon-device");
}

/// The link as a stream; returns what the card is plugged into.
fn add_stream(argv: &mut Argv, egress: Egress) -> &'static str {
    // Frames come and go through a socket that the daemon connects to, and again after it was restarted.
    argv.option("-netdev", format!("stream,id=n0,server=on,addr.type=unix,addr.path={NETWORK}"));
    match egress {
        Egress::None => "n0",
        Egress::Nat => {
            // QEMU's own address translation beside it, both on one hub with the guest.
            argv.option("-netdev", "user,id=u0,ipv6=off")
                .option("-netdev", "hubport,id=h1,hubid=0,netdev=n0")
                .option("-netdev", "hubport,id=h2,hubid=0,netdev=u0")
                .option("-netdev", "hubport,id=h0,hubid=0");
            "h0"
        }
    }
}

/// A path as part of a value with commas between its keys: QEMU reads two commas as one that separates nothing.
fn escaped(path: &Path) -> OsString {
    let mut bytes = Vec::with_capacity(path.as_os_str().len());
    for &byte in path.as_os_str().as_bytes() {
        bytes.push(byte);
        if byte == b',' {
            bytes.push(byte);
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use reveille_core::model::InstanceId;

    fn launch() -> Launch {
        Launch {
            instance: InstanceId(17),
            service: "hello.vm.test".parse().unwrap(),
            image: "abc".to_owned(),
            kernel: "/k".into(),
            initrd: "/i".into(),
            disk: None,
            resources: Resources { cpus: 2, memory_mib: 96, ..Resources::default() },
            egress: Egress::None,
            link: Link::Stream,
        }
    }

    fn value(argv: &Argv, option: &str) -> String {
        let at = argv.arguments.iter().position(|argument| argument == option).unwrap();
        argv.arguments[at + 1].to_str().unwrap().to_owned()
    }

    #[test]
    fn a_waking_guest_differs_from_a_booting_one_only_in_waiting() {
        let program = Program { binary: "/bin/qemu".into(), data_dir: None, sandbox: true };
        let boot = instance(&program, Accel::Tcg, &launch(), None, Start::Boot).unwrap();
        let waits = Start::Incoming { mapping: Mapping::Consume, ports: true };
        let wake = instance(&program, Accel::Tcg, &launch(), None, waits).unwrap();
        assert_eq!(wake.arguments[..boot.arguments.len()], boot.arguments);
        assert_eq!(wake.arguments[boot.arguments.len()..], ["-incoming", "defer", "-S"]);
    }

    #[test]
    fn a_guest_reaches_out_only_where_it_may() {
        let program = Program { binary: "/bin/qemu".into(), data_dir: None, sandbox: true };
        let mut launch = launch();
        let translated = |launch: &Launch| {
            let argv = instance(&program, Accel::Tcg, launch, None, Start::Boot).unwrap();
            argv.arguments.iter().any(|argument| argument.to_string_lossy().starts_with("user,"))
        };
        assert!(!translated(&launch));
        launch.egress = Egress::Nat;
        assert!(translated(&launch));
    }

    #[test]
    fn commas_in_paths_are_no_separators() {
        let program = Program { binary: "/bin/qemu".into(), data_dir: None, sandbox: false };
        let files = (Path::new("/a,b/m"), Path::new("/a,b/s"));
        let argv = cold(&program, Accel::Kvm, &launch(), None, files).unwrap();
        assert!(value(&argv, "-object").ends_with("mem-path=/a,,b/m"));
        assert!(value(&argv, "-chardev").ends_with("path=/a,,b/s"));
        assert_eq!(value(&argv, "-cpu"), "host");
        assert!(!argv.arguments.iter().any(|argument| argument == "-sandbox"));
    }
}
