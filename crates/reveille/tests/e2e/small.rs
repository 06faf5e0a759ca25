//! What all tests use: waiting, signals, figures.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

/// Longest wait for anything that has to happen: a cold boot under emulation on a busy machine takes its time.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Pause between two looks.
pub const LOOK: Duration = Duration::from_millis(5);
/// Sends a signal; a process that has ended already is left alone.
pub fn send(pid: i32, signal: Signal) {
    let _ = rustix::process::kill_process(Pid::from_raw(pid).unwrap(), signal);
}

/// Polls for something that has to happen.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(LOOK);
    }
}

/// Prints a figure, also when the test passes.
pub fn say(figure: &str) {
    let _ = writeln!(io::stderr(), "    {figure}");
}

/// A JSON string's content.
pub fn word(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no word")).to_owned()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What `make test` prepares.
pub fn from_environment(variable: &str) -> PathBuf {
    std::env::var_os(variable).map(PathBuf::from).unwrap_or_else(|| {
        panic!("{variable} is not set: run `make test`, which builds the demo image and says where it is")
    })
}

/// Writes an executable file, and its directories.
pub fn write_program(path: &Path, content: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o755).open(path).unwrap();
    file.write_all(content.as_bytes()).unwrap();
}
