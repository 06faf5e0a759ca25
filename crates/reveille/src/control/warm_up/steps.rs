//! What each kind of step does. What comes of it is a sentence, whether good or bad.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use reveille_core::model::{Protocol, ReadyCheck};
use reveille_core::warm_up::{Condition, Exec, Http, LISTED_MAX, Prefetch, Step, Tcp, WarmUpSet, Work};
use reveille_vm::driver::{ExecError, GuestProgram, ProgramEnded};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use super::Run;
use super::http::{Answer, get};
use crate::control::cable::Stream;
use crate::control::ready;

/// The first look of a step that waits may take so long, each further one twice as long as the one before: a guest that
/// boots loses the first packets.
const LOOK: Duration = Duration::from_millis(250);
/// The longest that one look may take.
const LOOK_MAX: Duration = Duration::from_secs(4);
/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(25);
/// Longest wait for the agent of a guest that has just booted.
const AGENT_MAX: Duration = Duration::from_secs(10);
/// Longest list of paths that is read, in bytes.
const LIST_BYTES_MAX: usize = 256 << 10;
/// Longest answer to what was sent over a connection that is looked through, in bytes.
const REPLY_BYTES_MAX: usize = 64 << 10;
/// From here on an HTTP status is an error.
const STATUS_ERROR: u16 = 400;

/// Reads files in the guest: `$1` bytes at most, of what the patterns after it stand for.
pub(super) const PREFETCH: &str = r#"PATH=/usr/sbin:/usr/bin:/sbin:/bin:/.reveille/bin
left=$1
all=0
shift
IFS=
for pattern in "$@"; do
    [ "$left" -gt 0 ] || break
    got=$(cat $pattern 2>/dev/null | head -c "$left" | wc -c)
    left=$((left - got))
    all=$((all + got))
done
echo "$all bytes"
"#;

/// What was last seen, for a step whose time runs out.
type Seen = Mutex<String>;

fn note(seen: &Seen, what: impl ToString) {
    *seen.lock().unwrap_or_else(PoisonError::into_inner) = what.to_string();
}

impl Run<'_> {
    /// One try of a step, for at most `limit`.
    pub(super) async fn attempt(&self, step: &Step, limit: Duration) -> Result<String, String> {
        let seen = Seen::default();
        let done = async {
            match &step.work {
                Work::Exec(exec) => self.exec(exec, limit, &seen).await,
                Work::Http(http) => self.http(http, &seen).await,
                Work::Tcp(tcp) => self.tcp(tcp).await,
                Work::Prefetch(prefetch) => self.prefetch(prefetch, limit, &seen).await,
                Work::WaitFor(condition) => self.wait(condition, limit, &seen).await,
            }
        };
        if let Ok(ended) = timeout(limit, done).await {
            return ended;
        }
        let seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        let so_far = if seen.is_empty() { String::new() } else { format!(": {seen}") };
        Err(format!("not done within {} ms{so_far}", limit.as_millis()))
    }

    /// The port that is meant: the service's first TCP port if none is named.
    fn port(&self, named: Option<u16>) -> Result<u16, String> {
        let first = || self.order.spec.ports.iter().find(|port| port.protocol == Protocol::Tcp);
        named
            .or_else(|| first().map(|port| port.number))
            .ok_or_else(|| "the service has no TCP port, and the step names none".to_owned())
    }

    // --- Programs --------------------------------------------------------------------------------------------

    async fn exec(&self, exec: &Exec, limit: Duration, seen: &Seen) -> Result<String, String> {
        let arguments: Vec<&str> = exec.args.iter().map(String::as_str).collect();
        let program = GuestProgram { path: &exec.path, arguments: &arguments, input: b"" };
        told(&self.program(program, limit, seen).await?)
    }

    async fn prefetch(&self, prefetch: &Prefetch, limit: Duration, seen: &Seen) -> Result<String, String> {
        let bytes = (prefetch.mib_max << 20).to_string();
        let mut arguments = vec!["-s", "--", bytes.as_str()];
        arguments.extend(prefetch.files.iter().map(String::as_str));
        let shell = GuestProgram { path: "/bin/sh", arguments: &arguments, input: PREFETCH.as_bytes() };
        told(&self.program(shell, limit, seen).await?)
    }

    /// Runs a program; one whose guest has just booted may have to wait for its agent.
    async fn program(
        &self,
        program: GuestProgram<'_>,
        limit: Duration,
        seen: &Seen,
    ) -> Result<ProgramEnded, String> {
        let began = Instant::now();
        loop {
            match self.programs.exec(program, limit).await {
                Err(error @ ExecError::NoAgent)
                    if self.set == WarmUpSet::Boot && began.elapsed() < AGENT_MAX =>
                {
                    note(seen, error);
                    sleep(LOOK_PAUSE).await;
                }
                ended => return ended.map_err(|error| error.to_string()),
            }
        }
    }

    // --- HTTP ------------------------------------------------------------------------------------------------

    async fn http(&self, http: &Http, seen: &Seen) -> Result<String, String> {
        let port = self.port(http.port)?;
        let bytes_max = http.mib_max << 20;
        let (mut paths, mut without_list) = (http.paths.clone(), String::new());
        if let Some(list) = &http.list {
            match self.listed(port, list).await {
                Ok(listed) => paths.extend(listed),
                Err(error) if paths.is_empty() => return Err(error),
                Err(error) => without_list = format!("; without the list: {error}"),
            }
        }
        let (bytes, answers, failed) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(Vec::new()));
        let asked = (0..http.times).flat_map(|_| paths.iter());
        let each = stream::iter(asked).for_each_concurrent(parallel(http.parallel), async |path| {
            let read = bytes.load(Ordering::Relaxed);
            if read >= bytes_max {
                return;
            }
            // Those that are under way together do not read more than there is either.
            let share = (bytes_max - read).div_ceil(u64::from(http.parallel.max(1)));
            match get(self.cable, port, path, (share, 0)).await {
                Ok(Answer { status, bytes: got, .. }) if status < STATUS_ERROR => {
                    bytes.fetch_add(got, Ordering::Relaxed);
                    let count = answers.fetch_add(1, Ordering::Relaxed) + 1;
                    note(seen, format!("{count} answers so far"));
                }
                Ok(Answer { status, .. }) => {
                    push(&failed, format!("GET {path} was answered with status {status}"));
                }
                Err(error) => push(&failed, error),
            }
        });
        each.await;
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (answers, bytes) = (answers.into_inner(), bytes.into_inner());
        let summary = format!("{answers} answers, {bytes} bytes{without_list}");
        match failed.first() {
            None if bytes >= bytes_max => Ok(format!("{summary}; mib_max is reached")),
            None => Ok(summary),
            Some(first) => Err(format!("{} requests failed ({first}); {summary}", failed.len())),
        }
    }

    /// The paths that the service lists.
    async fn listed(&self, port: u16, list: &str) -> Result<Vec<String>, String> {
        let bytes_max = u64::try_from(LIST_BYTES_MAX).unwrap_or(u64::MAX);
        let answer = get(self.cable, port, list, (bytes_max, LIST_BYTES_MAX)).await?;
        if answer.status >= STATUS_ERROR {
            return Err(format!("GET {list} was answered with status {}", answer.status));
        }
        let text = String::from_utf8_lossy(&answer.kept);
        let path = |line: &&str| line.starts_with('/') && !line.contains([' ', '\t']);
        Ok(text.lines().map(str::trim).filter(path).take(LISTED_MAX).map(str::to_owned).collect())
    }

    // --- Connections -----------------------------------------------------------------------------------------

    async fn tcp(&self, tcp: &Tcp) -> Result<String, String> {
        let port = self.port(tcp.port)?;
        let sent = tcp.sent();
        let opened = (0..tcp.connections).map(|_| self.open(port, &sent, tcp.expect.as_deref()));
        // Each is open until all are.
        let (mut open, mut failed) = (Vec::new(), Vec::new());
        for opened in join_all(opened).await {
            match opened {
                Ok(stream) => open.push(stream),
                Err(error) => failed.push(error),
            }
        }
        let count = open.len();
        for stream in open {
            ready::part(stream);
        }
        match failed.first() {
            None => Ok(format!("{count} connections")),
            Some(first) => Err(format!("{} of {} connections: {first}", failed.len(), tcp.connections)),
        }
    }

    async fn open(&self, port: u16, sent: &[u8], expect: Option<&str>) -> Result<Box<dyn Stream>, String> {
        let mut stream = self.cable.connect(port).await.map_err(|error| error.to_string())?;
        let broken = |error: std::io::Error| format!("the connection to port {port} broke: {error}");
        stream.write_all(sent).await.map_err(broken)?;
        if sent.is_empty() && expect.is_none() {
            return Ok(stream);
        }
        let (mut reply, mut part) = (Vec::new(), [0; 1_024]);
        loop {
            let count = stream.read(&mut part).await.map_err(broken)?;
            reply.extend_from_slice(part.get(..count).unwrap_or_default());
            let wanted = expect.unwrap_or_default().as_bytes();
            if !reply.is_empty() && contains(&reply, wanted) {
                return Ok(stream);
            }
            if count == 0 || reply.len() > REPLY_BYTES_MAX {
                let with = expect.map(|text| format!(" with {text:?}")).unwrap_or_default();
                return Err(format!("port {port} did not answer{with}"));
            }
        }
    }

    // --- Waiting ---------------------------------------------------------------------------------------------

    async fn wait(&self, condition: &Condition, limit: Duration, seen: &Seen) -> Result<String, String> {
        let began = Instant::now();
        // A program in the guest is not ended by ending the wait for it.
        let mut look = if matches!(condition, Condition::Exec(_)) { limit } else { LOOK };
        loop {
            match timeout(look, self.is_so(condition, limit, seen)).await {
                Ok(Ok(())) => return Ok(format!("after {} ms", began.elapsed().as_millis())),
                Ok(Err(not_yet)) => note(seen, not_yet),
                Err(_) => look = (look * 2).min(LOOK_MAX),
            }
            sleep(LOOK_PAUSE).await;
        }
    }

    async fn is_so(&self, condition: &Condition, limit: Duration, seen: &Seen) -> Result<(), String> {
        let passes = async |check: ReadyCheck| {
            ready::check(self.cable, &check, LOOK_MAX).await.map_err(|not_ready| not_ready.to_string())
        };
        match condition {
            Condition::Ready => passes(self.order.spec.ready_check()).await,
            Condition::Port(port) => passes(ReadyCheck::Tcp { port: *port }).await,
            Condition::Http { port, path, status } => {
                let answer = get(self.cable, self.port(*port)?, path, (0, 0)).await?;
                let fits = status.map_or(answer.status < STATUS_ERROR, |wanted| answer.status == wanted);
                if fits {
                    Ok(())
                } else {
                    Err(format!("GET {path} was answered with status {}", answer.status))
                }
            }
            Condition::Exec(exec) => self.exec(exec, limit, seen).await.map(drop),
        }
    }
}

fn parallel(requests: u32) -> usize {
    usize::try_from(requests).unwrap_or(1)
}

fn push(failed: &Mutex<Vec<String>>, error: String) {
    failed.lock().unwrap_or_else(PoisonError::into_inner).push(error);
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    wanted.is_empty() || bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// What a program says: its first line, or how it failed.
fn told(ended: &ProgramEnded) -> Result<String, String> {
    let output = String::from_utf8_lossy(&ended.output);
    let line = output.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    match ended.code {
        Some(0) => Ok(line.to_owned()),
        Some(code) if line.is_empty() => Err(format!("it ended with status {code}")),
        Some(code) => Err(format!("it ended with status {code}: {line}")),
        None => Err("it was ended by a signal".to_owned()),
    }
}
