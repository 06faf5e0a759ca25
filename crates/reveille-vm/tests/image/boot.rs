//! Guests that boot what was built, and look around inside.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use reveille_core::model::{Egress, InstanceId, Remains, Resources};
use reveille_vm::driver::{Driver, Launch};
use reveille_vm::image::{BuildRequest, Image, RootSource, USER_SPACE_REACHED};
use reveille_vm::qemu::{AccelChoice, Qemu, QemuConfig, Users};

use crate::support::{Bench, package_cache, with_debian_kernel};

/// Longest wait for a guest on a busy machine without KVM.
const PATIENCE: Duration = Duration::from_secs(120);
const INSTANCE: InstanceId = InstanceId(23);

/// Boots an image and returns its console, once a line begins with `check: done`.
async fn console_of(bench: &Bench, image: &Image) -> String {
    let state_dir = bench.path("state");
    let console = state_dir.join("instances/i23/serial.log");
    let config = QemuConfig {
        binary: std::env::var_os("REVEILLE_TEST_QEMU").unwrap_or("qemu-system-x86_64".into()).into(),
        data_dir: std::env::var_os("REVEILLE_TEST_QEMU_DATA").map(PathBuf::from),
        accel: AccelChoice::Tcg,
        users: Users::Own,
        state_dir,
        probe: None,
    };
    let launch = Launch {
        instance: INSTANCE,
        service: "hello.vm.test".parse().unwrap(),
        image: image.digest.clone(),
        kernel: image.kernel.clone(),
        initrd: image.initrd.clone(),
        disk: image.disk.clone(),
        resources: Resources { cpus: 1, memory_mib: 256, ..Resources::default() },
        egress: Egress::None,
        link: reveille_vm::driver::Link::Stream,
    };
    let qemu = Qemu::open(config).await.unwrap();
    qemu.boot(&launch, &|_| ()).await.unwrap();
    let began = Instant::now();
    let seen = loop {
        let seen = fs::read(&console).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let seen = seen.unwrap_or_default().replace('\r', "");
        if seen.contains("check: done\n") || began.elapsed() > PATIENCE {
            break seen;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    // Before anything is asserted: the guest is gone also when the test fails.
    qemu.kill(INSTANCE, Remains::Nothing).await.unwrap();
    assert!(seen.contains("check: done\n"), "waited in vain; the console:\n{seen}");
    seen
}

/// What the guest said of something.
fn said<'a>(console: &'a str, what: &str) -> Vec<&'a str> {
    let beginning = format!("check: {what} ");
    console.lines().filter_map(|line| line.strip_prefix(beginning.as_str())).collect()
}

/// Runs in place of `/init` and tells what the boot stage has left to it.
const LOOKS_AROUND: &str = r#"#!/.reveille/busybox sh
b=/.reveille/busybox
echo "check: pid $$"
echo "check: own $($b head -n 3 /init | $b tail -n 1)"
echo "check: host $($b hostname)"
echo "check: environment $($b env | $b sort | $b tr '\n' ' ')"
$b mount | $b sed 's/^/check: mount /'
$b ip -4 -o address | $b sed 's/^/check: address /'
$b ip route | $b sed 's/^/check: route /'
$b ls /sys/bus/virtio/drivers | $b sed 's/^/check: driver /'
$b sed 's/^/check: nameserver /' /etc/resolv.conf
[ -c /dev/console ] && [ -c /dev/null ] && [ -c /dev/hwrng ] && echo "check: devices there"
[ -e /.reveille/root-init ] || echo "check: leftover none"
echo "check: done"
while :; do $b sleep 1000; done
"#;

#[tokio::test]
async fn the_boot_stage_prepares_everything_and_leaves_no_trace() {
    let bench = Bench::new();
    bench.write("init", 0o755, LOOKS_AROUND.as_bytes());
    let request = BuildRequest { init: Some("/init".to_owned()), ..with_debian_kernel(&bench.root()) };
    let image = bench.store.build(&request, &mut |_| ()).unwrap();
    let console = console_of(&bench, &image).await;

    assert!(console.contains(&format!("{USER_SPACE_REACHED}\n")), "{console}");
    assert_eq!(said(&console, "pid"), ["1"]);
    assert_eq!(said(&console, "own"), [r#"echo "check: pid $$""#]);
    assert_eq!(said(&console, "leftover"), ["none"]);
    assert!(said(&console, "host")[0].starts_with("hello"));
    let environment = said(&console, "environment")[0];
    assert!(!environment.contains("reveille") && !environment.contains("module"), "{environment}");
    let mounts = said(&console, "mount").join("\n");
    for point in ["/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/run", "/tmp"] {
        assert!(mounts.contains(&format!(" on {point} type ")), "{point}: {mounts}");
    }
    let addresses = said(&console, "address").join("\n");
    assert!(addresses.contains("127.0.0.1/8") && addresses.contains("10.0.2.15/24"), "{addresses}");
    assert!(said(&console, "route").iter().any(|route| route.starts_with("default via 10.0.2.2 dev eth0")));
    assert!(said(&console, "driver").contains(&"virtio_net"));
    assert_eq!(said(&console, "nameserver"), ["nameserver 10.0.2.3"]);
    assert_eq!(said(&console, "devices"), ["there"]);
}

/// Runs beside the demo's services and tries them from inside, where no host network can be to blame.
const TRIES_THE_DEMO: &str = r#"#!/usr/bin/perl
use strict;
use warnings;
use Socket;
$| = 1;
$SIG{PIPE} = 'IGNORE';

sub client {
    my ($port, $type) = @_;
    for (1 .. 600) {    # the service may not be there yet, or not again
        socket(my $socket, PF_INET, $type, 0) or die "socket: $!";
        return $socket if connect($socket, pack_sockaddr_in($port, inet_aton('127.0.0.1')));
        select undef, undef, undef, 0.1;
    }
    die "connect: $!";
}

sub read_all { my ($socket) = @_; local $/; return scalar <$socket> }

sub page {
    my $socket = client(8080, SOCK_STREAM);
    syswrite $socket, $_[0] || "GET / HTTP/1.0\r\n\r\n";
    return read_all($socket);
}

sub lines { my ($what, $page) = @_; print "check: $what $_\n" for split /\n/, (split /\r\n\r\n/, $page)[1] }

my $first = page();
lines('first', $first);
print 'check: other ', page("POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello") =~ /^HTTP\S+ (\d+)/, "\n";

# A hundred at once: every connection is there before the first asks.
my @clients = map { client(8080, SOCK_STREAM) } 1 .. 100;
syswrite $_, "GET / HTTP/1.0\r\n\r\n" for @clients;
my ($nonce) = $first =~ /(boot-nonce: \S+)/;
my (%counts, $answers);
for (map { read_all($_) } @clients) {
    $answers++ if /^\Q$nonce\E$/m;
    $counts{$1} = 1 if /^requests: (\d+)/m;
}
print "check: answers $answers\n", 'check: counted ', scalar(keys %counts), "\n";

# Everything comes back, then the end that was sent.
open my $random, '<:raw', '/dev/urandom';
sysread $random, my $blob, 300_000;
my $same = 0;
for my $child (map { my $pid = fork; if (!$pid) { echo() } $pid } 1 .. 20) {
    waitpid $child, 0;
    $same++ if $? == 0;
}
print "check: echoed $same\n";

sub echo {
    my $socket = client(7007, SOCK_STREAM);
    my $writer = fork;
    if (!$writer) {
        for (my $at = 0; $at < length $blob;) { $at += syswrite($socket, $blob, 65536, $at) || exit 1 }
        shutdown $socket, 1;
        exit 0;
    }
    my $back = read_all($socket);
    waitpid $writer, 0;
    exit($back eq $blob ? 0 : 1);
}

my $udp = client(7007, SOCK_DGRAM);
for my $size (0, 1, 1400, 60_000) {
    send $udp, 'x' x $size, 0;
    recv $udp, my $back, 65536, 0;
    print "check: datagram ", length $back, "\n";
}

sub of_all { opendir my $all, '/proc'; return map { "/proc/$_/$_[0]" } grep { /^\d+$/ } readdir $all }
for (of_all('comm')) {
    open my $comm, '<', $_ or next;
    kill KILL => (split m{/})[2] if <$comm> eq "demo\n";
}
my $again;
1 until $again = page();    # the last connection of the dead one may still be taken
lines('again', $again);

# An orphan that ends is collected by PID 1.
if (!fork) { exit if fork; select undef, undef, undef, 0.2; exit }
wait;
sub zombies { return grep { open my $status, '<', $_; grep { /^State:\s+Z/ } <$status> } of_all('status') }
select undef, undef, undef, 0.3;
select undef, undef, undef, 0.1 while zombies();
print "check: zombies none\ncheck: done\n";
"#;

#[tokio::test]
async fn the_demo_serves_many_at_once_and_survives_its_own_death() {
    let bench = Bench::new();
    let root = bench.path("demo");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/build-root.sh");
    let made = Command::new(script).arg(&root).arg(package_cache()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::write(root.join("srv/check"), TRIES_THE_DEMO).unwrap();
    fs::set_permissions(root.join("srv/check"), fs::Permissions::from_mode(0o755)).unwrap();
    let table = root.join("etc/inittab");
    fs::write(&table, fs::read_to_string(&table).unwrap() + "::once:/srv/check\n").unwrap();
    let image = bench.store.build(&with_debian_kernel(&root), &mut |_| ()).unwrap();
    assert_eq!(image.init, "/sbin/init");
    let console = console_of(&bench, &image).await;

    let first = said(&console, "first");
    assert_eq!(first.len(), 9, "{first:?}");
    assert_eq!(first[0], "service: hello");
    let nonce = first[1].strip_prefix("boot-nonce: ").unwrap();
    assert!(nonce.len() == 32 && nonce.bytes().all(|byte| byte.is_ascii_hexdigit()), "{nonce}");
    assert!(first[2].strip_prefix("uptime-s: ").unwrap().parse::<u64>().is_ok());
    assert_eq!(first[3], "requests: 1");
    assert_eq!(said(&console, "answers"), ["100"]);
    assert_eq!(said(&console, "counted"), ["100"]);
    assert_eq!(said(&console, "other"), ["405"]);
    assert_eq!(said(&console, "echoed"), ["20"]);
    assert_eq!(said(&console, "datagram"), ["0", "1", "1400", "60000"]);
    // Started again in the same boot: a new count, the same nonce.
    let again = said(&console, "again");
    assert_eq!((again[1], again[3]), (first[1], "requests: 1"));
    assert_eq!(said(&console, "zombies"), ["none"]);
}

/// Adds a file to an archive.
fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    tar.append_data(&mut header, path, content).unwrap();
}

#[tokio::test]
async fn a_container_image_runs_what_it_was_made_for() {
    let bench = Bench::new();
    let mut lower = tar::Builder::new(Vec::new());
    append(&mut lower, "bin/busybox", 0o755, &fs::read("/bin/busybox").unwrap());
    append(&mut lower, "srv/where", 0o644, b"lower\n");
    append(&mut lower, "srv/gone", 0o644, b"");
    let mut upper = tar::Builder::new(Vec::new());
    append(&mut upper, "srv/where", 0o644, b"upper\n");
    append(&mut upper, "srv/.wh.gone", 0o644, b"");
    let script = "echo check: said $WORD, $1; echo check: where $(/bin/busybox cat where); \
                  [ -e gone ] || echo check: gone yes; echo check: done; while :; do /bin/busybox sleep 1000; done";
    let configuration = serde_json::json!({
        "architecture": "amd64",
        "config": {
            "Env": ["WORD=it's said"], "WorkingDir": "/srv", "Entrypoint": ["busybox", "sh", "-c"],
            "Cmd": [script, "sh", "with an argument"],
        },
    });
    let mut saved = tar::Builder::new(Vec::new());
    append(&mut saved, "1/layer.tar", 0o644, &lower.into_inner().unwrap());
    append(&mut saved, "2/layer.tar", 0o644, &upper.into_inner().unwrap());
    append(&mut saved, "config.json", 0o644, configuration.to_string().as_bytes());
    let manifest = r#"[{"Config":"config.json","RepoTags":[],"Layers":["1/layer.tar","2/layer.tar"]}]"#;
    append(&mut saved, "manifest.json", 0o644, manifest.as_bytes());
    fs::write(bench.path("saved.tar"), saved.into_inner().unwrap()).unwrap();

    let request =
        BuildRequest { root: RootSource::Oci(bench.path("saved.tar")), ..with_debian_kernel(&bench.root()) };
    let image = bench.store.build(&request, &mut |_| ()).unwrap();
    let console = console_of(&bench, &image).await;
    assert_eq!(said(&console, "said"), ["it's said, with an argument"]);
    assert_eq!(said(&console, "where"), ["upper"]);
    assert_eq!(said(&console, "gone"), ["yes"]);
}
