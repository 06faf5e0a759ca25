//! What processes of guests hold of the host's memory (proc_pid_smaps(5)).

use std::fs;
use std::path::Path;

/// The process that works in `directory`, as each QEMU of the daemon does in its instance's.
pub fn process_in(directory: &Path) -> Option<u32> {
    let directory = directory.canonicalize().ok()?;
    let pids = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory))
}

/// Memory of a process in KiB; what it shares with others counts in part (PSS).
pub fn proportional_kib(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    field(&text, "Pss:")
}

/// How much of the file `name`, the guest's memory, a process has touched, in KiB.
pub fn touched_kib(pid: u32, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let mut lines = text.lines();
    let mut sum = None;
    while let Some(line) = lines.next() {
        // The head of a mapping: addresses, rights, offset, device, inode, path.
        if line.split('/').next_back() == Some(name) && line.contains('-') {
            let rss = lines.by_ref().find_map(|line| field(line, "Rss:"));
            sum = Some(sum.unwrap_or(0) + rss?);
        }
    }
    sum
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}
