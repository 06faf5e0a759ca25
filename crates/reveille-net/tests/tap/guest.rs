//! A guest behind taps: what it runs, the driver, and the least of a control loop.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::spaces::Spaces;
use reveille_core::model::{DomainName, Egress, Gate, InstanceId, Resources, Timestamp};
use reveille_net::RelayEvents;
use reveille_net::tap::{
    Echo, EgressPolicy, GATEWAY, GATEWAY6, TapAddresses, TapBinding, TapError, TapLimits, Taps,
};
use reveille_vm::driver::{Driver, Launch, Link, Tap, TapQueue};
use reveille_vm::qemu::{AccelChoice, Qemu, QemuConfig, Users};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// Longest wait for anything that a guest does.
pub const PATIENCE: Duration = Duration::from_secs(90);
pub const V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
pub const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 7);
pub const PORT: u16 = 7007;
/// The instance that a service's guest is.
pub const GUEST: InstanceId = InstanceId(17);

/// An echo on TCP and UDP, IPv4 and IPv6, in the place of the image's own init.
const INIT: &str = r#"#!/.reveille/busybox sh
exec /usr/bin/perl -e '
use strict; use Socket;
my @all;
for my $type (SOCK_STREAM, SOCK_DGRAM) {
    socket(my $s, PF_INET6, $type, 0) or die "socket: $!";
    setsockopt($s, SOL_SOCKET, SO_REUSEADDR, 1);
    setsockopt($s, SOL_SOCKET, SO_RCVBUF, 1 << 20);
    bind($s, pack_sockaddr_in6(7007, Socket::IN6ADDR_ANY)) or die "bind: $!";
    $type == SOCK_DGRAM or listen($s, 900) or die "listen: $!";
    push @all, $s;
}
my ($tcp, $udp) = @all;
my %clients;
print "echo is ready\n";
for (;;) {
    my $bits = "";
    vec($bits, fileno $_, 1) = 1 for $tcp, $udp, values %clients;
    next if select($bits, undef, undef, undef) <= 0;
    if (vec($bits, fileno $tcp, 1)) { my $c; $clients{fileno $c} = $c if accept($c, $tcp); }
    if (vec($bits, fileno $udp, 1)) {
        my $from = recv($udp, my $data, 65535, 0);
        send($udp, $data, 0, $from) if defined $from;
    }
    for my $fd (keys %clients) {
        vec($bits, $fd, 1) or next;
        my $count = sysread($clients{$fd}, my $data, 65536);
        if (!$count) { close delete $clients{$fd}; next; }
        syswrite($clients{$fd}, $data);
    }
}
'
"#;

/// A service behind taps, and its guest.
pub struct World {
    pub guest: Guest,
    pub events: RelayEvents,
}

impl std::ops::Deref for World {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

/// A guest behind taps, and everything that it leaves on the disk.
pub struct Guest {
    pub temp: tempfile::TempDir,
    pub taps: Taps,
    pub qemu: Qemu,
    pub binding: TapBinding,
    kernel: PathBuf,
    initrd: PathBuf,
}

struct Queue(Taps, DomainName);

impl TapQueue for Queue {
    fn open(&self) -> io::Result<OwnedFd> {
        self.0.queue(&self.1, GUEST)
    }
}

pub fn service() -> DomainName {
    "echo.vm.test".parse().unwrap()
}

pub fn binding() -> TapBinding {
    TapBinding {
        service: service(),
        addresses: TapAddresses { v4: V4, v6: Some(V6) },
        ports: vec!["tcp/7007".parse().unwrap(), "udp/7007".parse().unwrap()],
        held_clients_max: 100,
        held_ms_max: 60_000,
        echo: Echo::Answer,
        egress: EgressPolicy::None,
    }
}

pub fn open_taps() -> (Taps, RelayEvents) {
    open_taps_on(None).unwrap()
}

/// With a link on which the host answers for services.
pub fn open_taps_on(bridge: Option<&str>) -> Result<(Taps, RelayEvents), TapError> {
    let start = Instant::now();
    let now = move || Timestamp::from_ms(1_000_000 + u64::try_from(start.elapsed().as_millis()).unwrap());
    Taps::open(TapLimits::default(), bridge, Arc::new(now))
}

impl World {
    pub async fn new() -> Self {
        let (taps, events) = open_taps();
        let guest = Guest::of(INIT, &taps, binding()).await;
        taps.guard().unwrap();
        Self { guest, events }
    }
}

impl Guest {
    /// A guest that runs `init`.
    pub async fn of(init: &str, taps: &Taps, binding: TapBinding) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mut initrd = fs::read(from_environment("REVEILLE_TEST_INITRD")).unwrap();
        // A later archive replaces files of an earlier one.
        initrd.resize(initrd.len().next_multiple_of(512), 0);
        initrd.extend(archive_of("sbin/init", init.as_bytes()));
        let path = temp.path().join("initrd");
        fs::write(&path, initrd).unwrap();
        let config = QemuConfig {
            binary: std::env::var_os("REVEILLE_TEST_QEMU").unwrap_or("qemu-system-x86_64".into()).into(),
            data_dir: std::env::var_os("REVEILLE_TEST_QEMU_DATA").map(PathBuf::from),
            accel: AccelChoice::Tcg,
            users: Users::Own,
            state_dir: temp.path().join("state"),
            probe: None,
        };
        let qemu = Qemu::open(config).await.unwrap();
        taps.bind(&binding).unwrap();
        let kernel = from_environment("REVEILLE_TEST_KERNEL");
        Self { temp, taps: taps.clone(), qemu, binding, kernel, initrd: path }
    }

    pub fn launch(&self) -> Launch {
        Launch {
            instance: GUEST,
            service: self.binding.service.clone(),
            image: "0123abcd".to_owned(),
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            disk: None,
            resources: Resources { cpus: 1, memory_mib: 128, ..Resources::default() },
            egress: Egress::None,
            link: Link::Tap(Tap {
                mac: self.binding.addresses.mac(),
                address: self.binding.addresses.v4,
                gateway: GATEWAY,
                v6: self.binding.addresses.v6.map(|address| (address, GATEWAY6)),
                nameserver: None,
                queue: Arc::new(Queue(self.taps.clone(), self.binding.service.clone())),
            }),
        }
    }

    /// Boots and waits until the port answers; the gate stays closed.
    pub async fn boot(&self) {
        self.qemu.boot(&self.launch(), &|_| ()).await.unwrap();
        let began = Instant::now();
        loop {
            let look = self.taps.look(&self.binding.service, PORT);
            if tokio::time::timeout(Duration::from_millis(500), look).await.is_ok_and(|look| look.is_ok()) {
                return;
            }
            let dead = self.console().contains("Kernel panic");
            assert!(
                !dead && began.elapsed() < PATIENCE,
                "it does not answer; its console:\n{}",
                self.console()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn open(&self) {
        self.taps.set_gate(&self.binding.service, Gate::Open);
    }

    pub fn console(&self) -> String {
        fs::read_to_string(self.temp.path().join("state/instances/i17/serial.log")).unwrap_or_default()
    }

    fn processes(&self) -> Vec<Pid> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if fs::read_link(entry.path().join("fd/0")).is_ok_and(|input| input.starts_with(self.temp.path()))
            {
                found.extend(Pid::from_raw(pid));
            }
        }
        found
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::KILL);
            // Ours or, if the driver has collected it, nobody's.
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }
}

fn from_environment(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable).unwrap_or_else(|| {
        panic!("{variable} is not set: run `make test`, which prepares a kernel and an image")
    });
    PathBuf::from(path)
}

/// A cpio archive ("new ASCII") of one executable file.
fn archive_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, mode, content) in [(name, 0o100_755, content), ("TRAILER!!!", 0, &b""[..])] {
        archive.extend(b"070701");
        let numbers = [1, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        for number in numbers {
            archive.extend(format!("{number:08x}").as_bytes());
        }
        archive.extend(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

/// A runtime whose threads, and whose children, are on the host.
pub fn run_on_host<T: Send>(spaces: &Spaces, work: impl Future<Output = T> + Send) -> T {
    spaces.on_host(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
            .block_on(work)
    })
}
