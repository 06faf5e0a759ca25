//! How the process ends: in order at the first signal, at once at the second, whatever blocks.

use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Longest wait for calls that block, such as reads of a disk that does not answer, once all else is stopped.
const BLOCKED_WAIT_MAX: Duration = Duration::from_secs(2);
/// Time that a process has after the second signal to leave nothing behind, such as the file with its token.
const LEAVE_MAX: Duration = Duration::from_millis(500);

/// SIGINT and SIGTERM; while this is there, they do not end the process by themselves.
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// Those from now on. To be called inside a runtime.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the next.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Ends the process soon after the next signal. A thread of its own sees to it: those of the runtime may all wait
/// for something that does not come, and so may whoever takes the parts of the daemon down.
///
/// # Errors
/// If the system refuses a thread or a descriptor.
pub fn end_at_next_signal() -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let mut signals = {
        let _inside = runtime.enter();
        StopSignals::listen()?
    };
    let end = move || {
        runtime.block_on(signals.next());
        std::thread::sleep(LEAVE_MAX);
        // Nothing is said: who reads the log may be what blocks. It is what was asked for, so no failure.
        std::process::exit(0);
    };
    std::thread::Builder::new().name("second-signal".to_owned()).spawn(end)?;
    Ok(())
}

/// Ends the runtime. What still blocks a thread of it is left behind after a short while, and ends with the process.
pub fn shut_down(runtime: Runtime) {
    runtime.shutdown_timeout(BLOCKED_WAIT_MAX);
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    /// Tells the process that it is the one to be ended.
    const CHILD: &str = "REVEILLE_TEST_BLOCKED";
    const LIMIT: Duration = Duration::from_secs(60);

    struct Ended(Child);

    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_read_that_never_ends_does_not_keep_the_runtime() {
        let runtime = Builder::new_multi_thread().build().unwrap();
        // Held to the end of the test, so the read has nothing to end it.
        let (_writer, reader) = mpsc::channel::<()>();
        let (begun, has_begun) = mpsc::channel();
        runtime.spawn_blocking(move || {
            begun.send(()).unwrap();
            reader.recv()
        });
        has_begun.recv().unwrap();
        let (done, is_done) = mpsc::channel();
        std::thread::spawn(move || {
            shut_down(runtime);
            done.send(()).unwrap();
        });
        assert!(is_done.recv_timeout(LIMIT).is_ok(), "it waits for the read");
    }

    /// Takes the first signal, and then hangs inside the runtime.
    fn hang() -> ! {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut signals = StopSignals::listen().unwrap();
            println!("\nlistening");
            signals.next().await;
            end_at_next_signal().unwrap();
            println!("\nstopping");
            tokio::spawn(async {
                loop {
                    std::thread::park();
                }
            });
            loop {
                std::thread::park();
            }
        })
    }

    #[test]
    fn a_second_signal_ends_a_process_that_hangs() {
        if std::env::var_os(CHILD).is_some() {
            hang();
        }
        for second in ["TERM", "INT"] {
            let name = "stopping::tests::a_second_signal_ends_a_process_that_hangs";
            let child = Command::new("setpriv")
                .args(["--pdeathsig", "KILL"])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", name, "--nocapture"])
                .env(CHILD, "1")
                .stdout(Stdio::piped())
                .spawn();
            let mut child = Ended(child.unwrap());
            let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
            let mut say = |line: &str| assert!(lines.any(|said| said.unwrap() == line), "no {line}");
            let pid = child.0.id().to_string();
            let send = |signal: &str| {
                assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
            };
            say("listening");
            send("TERM");
            say("stopping");
            send(second);
            let begun = Instant::now();
            let status = loop {
                if let Some(status) = child.0.try_wait().unwrap() {
                    break status;
                }
                assert!(begun.elapsed() < LIMIT, "it hangs on");
                std::thread::sleep(Duration::from_millis(5));
            };
            assert!(status.success(), "{status}");
        }
    }
}
