//! A test binary that runs itself again as the process that dies, or whose disk is full.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The directory that the child writes to.
pub const DIR: &str = "REVEILLE_TEST_STORE_DIR";
/// What tells the child's lines from those of the test harness.
pub const MARK: &str = "@@ ";

/// A child that is gone when the test ends, however it ends.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This binary, to run the ignored test `name` alone.
pub fn this_test(name: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--ignored", "--nocapture", "--test-threads=1"]).env(DIR, dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// Random delays until a kill; the seed is printed.
pub struct Delays(u64);

impl Delays {
    pub fn new() -> Self {
        let seed: u64 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into();
        println!("seed {seed}");
        Self(seed)
    }

    /// The first rounds may hit the creation of the files (up to `2^early_bits` µs); later ones wait for a random step.
    pub fn next(&mut self, round: u32, early_bits: u32, late_us: u64) -> Duration {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let us = if round < 6 { self.0 >> (64 - early_bits) } else { (self.0 >> 40) % late_us };
        Duration::from_micros(us)
    }
}

/// Runs the child until it is killed after `delay`; gives the highest step that it told of.
pub fn told_until_killed(name: &str, dir: &Path, delay: Duration) -> u64 {
    let mut child = Reaped(this_test(name, dir).spawn().unwrap());
    let pid = child.0.id();
    let killer = std::thread::spawn(move || {
        std::thread::sleep(delay);
        Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap()
    });
    let mut told = 0;
    for line in BufReader::new(child.0.stdout.take().unwrap()).lines() {
        let Ok(line) = line else { break };
        if let Some(step) = line.split(MARK).nth(1) {
            told = told.max(step.parse().unwrap_or(0));
        }
    }
    killer.join().unwrap();
    child.0.wait().unwrap();
    told
}

/// The child on a file system of `mib` of its own; `None` where this host lets nobody mount one.
pub fn on_small_disk(name: &str, dir: &Path, mib: u32) -> Option<Command> {
    let own_mounts = Command::new("unshare").args(["-rm", "true"]).output();
    if !own_mounts.is_ok_and(|output| output.status.success()) {
        println!("not run: this host lets nobody mount in a namespace of its own");
        return None;
    }
    let child = this_test(name, dir);
    let mut command = Command::new("unshare");
    let mount = format!("mount -t tmpfs -o size={mib}m none \"$0\" && exec \"$@\"");
    command.args(["-rm", "sh", "-c", &mount]).arg(dir);
    command.arg(child.get_program()).args(child.get_args()).env(DIR, dir);
    Some(command)
}

/// The child says that it came through.
pub fn assert_survived(mut command: Command) {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(&format!("{MARK}survived")), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}
