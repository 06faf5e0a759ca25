//! Two network namespaces and the wire between them; removed when dropped.

use std::fs::{self, File};
use std::io::Write;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A host that forwards, `192.0.2.1` and `2001:db8:1::1`, and a client, `.2`, whose way to everywhere it is.
pub struct Spaces {
    name: String,
}

/// Whether namespaces can be made; says so where it cannot be overlooked if not.
pub fn may_run(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        // Not by a macro: those are silent in tests that pass.
        let _ =
            writeln!(std::io::stderr(), "NOT RUN: {test} needs root, for network namespaces and tap devices");
    }
    root
}

impl Spaces {
    pub fn new() -> Self {
        remove_strays();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let spaces = Self { name: format!("rvt-{}-{number}", std::process::id()) };
        let (host, client) = (spaces.host(), spaces.client());
        ip(&format!("netns add {host}"));
        ip(&format!("netns add {client}"));
        ip(&format!("-n {host} link set lo up"));
        ip(&format!("-n {client} link set lo up"));
        ip(&format!("-n {host} link add wire type veth peer name wire netns {client}"));
        for (space, number) in [(&host, 1), (&client, 2)] {
            ip(&format!("-n {space} address add 192.0.2.{number}/24 dev wire"));
            ip(&format!("-n {space} address add 2001:db8:1::{number}/64 dev wire nodad"));
            ip(&format!("-n {space} link set wire up"));
        }
        ip(&format!("-n {client} route add default via 192.0.2.1"));
        ip(&format!("-n {client} -6 route add default via 2001:db8:1::1"));
        spaces.on_host(|| {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        });
        spaces
    }

    pub fn host(&self) -> String {
        format!("{}-host", self.name)
    }

    pub fn client(&self) -> String {
        format!("{}-client", self.name)
    }

    /// Runs in the host's namespace, on a thread of its own.
    pub fn on_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(&self.host(), work)
    }

    /// Runs in the client's namespace, on a thread of its own.
    pub fn on_client<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(&self.client(), work)
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        for space in [self.host(), self.client()] {
            let _ = Command::new("ip").args(["netns", "del", &space]).status();
        }
    }
}

/// Runs in a namespace. Threads and processes that are made there stay there.
pub fn inside<T: Send>(space: &str, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let file = File::open(format!("/run/netns/{space}")).unwrap();
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network))
                .unwrap();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `ip`, which must succeed.
pub fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is missing");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A count of TCP in the namespace of the calling thread, such as `TCPSynRetrans`.
pub fn tcp_count(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let mut lines = text.lines();
    while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        let at = names.split(' ').position(|word| word == name);
        if let Some(at) = at {
            return values.split(' ').nth(at).unwrap().parse().unwrap();
        }
    }
    panic!("the kernel does not count {name}");
}

/// Those of tests that were killed.
fn remove_strays() {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let pid = name.strip_prefix("rvt-").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true)) {
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
    }
}
