//! The QEMU machine protocol: one JSON object per line over a Unix socket, commands answered by number, events
//! in between (QEMU's `docs/interop/qmp-spec`).
//!
//! One task reads; commands write under a lock and wait for the answer that carries their number. A heartbeat
//! and a capture can so go on at the same time. A command that is given up leaves the connection usable unless it
//! was cut in the middle of a line.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Map, Value, json};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Longest line that is read; the longest that QEMU sends on our questions is its schema (about 0.4 MB).
const LINE_BYTES_MAX: usize = 4 << 20;
/// Events that a slow listener may lag behind before it loses the oldest.
const EVENTS_MAX: usize = 256;
/// Commands that may wait for their answer at a time on one connection.
const PENDING_MAX: usize = 64;
/// Bytes asked for in one read.
const READ_BYTES: usize = 16 << 10;
/// Longest wait for the greeting and the end of the negotiation.
pub const HELLO_MS_MAX: u64 = 5_000;
/// Longest wait for the answer to an ordinary command.
pub const COMMAND_MS_MAX: u64 = 10_000;

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket could not be connected to.
    #[error("the control socket cannot be reached: {0}")]
    Connect(#[source] io::Error),
    /// No answer in time; the process may be stopped or stuck.
    #[error("QEMU did not answer `{command}` within {waited_ms} ms")]
    Timeout {
        /// The command, or `greeting`.
        command: &'static str,
        /// The limit.
        waited_ms: u64,
    },
    /// QEMU refused the command.
    #[error("QEMU refused `{command}`: {desc}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's sentence.
        desc: String,
    },
    /// The connection ended, mostly because the process did.
    #[error("QEMU closed its control socket")]
    Closed,
    /// What came over the socket is not the protocol.
    #[error("QEMU's control socket answered with something else than QMP: {0}")]
    Protocol(String),
    /// More commands wait for an answer than may.
    #[error("{PENDING_MAX} commands already wait for QEMU's answer")]
    TooMany,
}

/// Something that QEMU tells by itself.
#[derive(Debug, Clone)]
pub struct Event {
    /// `STOP`, `RESUME`, `MIGRATION`, `SHUTDOWN`, …
    pub name: String,
    /// Its details; `Null` without any.
    pub data: Value,
}

/// A negotiated connection.
#[derive(Debug)]
pub struct Qmp {
    shared: Arc<Shared>,
    writing: tokio::sync::Mutex<()>,
    next_id: AtomicU64,
    reader: JoinHandle<()>,
    /// `7.2.22` or the like, from the greeting.
    pub version: String,
}

#[derive(Debug)]
struct Shared {
    stream: UnixStream,
    inbox: Mutex<Inbox>,
    events: broadcast::Sender<Event>,
}

#[derive(Debug, Default)]
struct Inbox {
    pending: HashMap<u64, oneshot::Sender<Result<Value, String>>>,
    /// Why the guest ended, as QEMU told it (`guest-reset`, `guest-shutdown`, `guest-panicked`, `host-signal`).
    farewell: Option<String>,
    closed: bool,
}

impl Qmp {
    /// Connects to the socket at `path` and negotiates.
    ///
    /// # Errors
    /// [`QmpError::Connect`] at once when nobody listens; the others as of [`Qmp::negotiate`].
    pub async fn connect(path: &Path) -> Result<Self, QmpError> {
        let stream = UnixStream::connect(path).await.map_err(QmpError::Connect)?;
        Self::negotiate(stream).await
    }

    /// Negotiates on a connected socket.
    ///
    /// # Errors
    /// [`QmpError::Timeout`] without a greeting within [`HELLO_MS_MAX`].
    pub async fn negotiate(stream: UnixStream) -> Result<Self, QmpError> {
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let shared = Arc::new(Shared { stream, inbox: Mutex::default(), events });
        let (hello, greeting) = oneshot::channel();
        let reader = tokio::spawn(read(Arc::clone(&shared), hello));
        let mut qmp = Self {
            shared,
            writing: tokio::sync::Mutex::default(),
            next_id: AtomicU64::new(1),
            reader,
            version: String::new(),
        };
        let greeting = match timeout(Duration::from_millis(HELLO_MS_MAX), greeting).await {
            Ok(Ok(greeting)) => greeting?,
            Ok(Err(_)) => return Err(QmpError::Closed),
            Err(_) => return Err(QmpError::Timeout { command: "greeting", waited_ms: HELLO_MS_MAX }),
        };
        let number = |key| greeting.pointer(&format!("/QMP/version/qemu/{key}")).and_then(Value::as_u64);
        let (Some(major), Some(minor), Some(micro)) = (number("major"), number("minor"), number("micro"))
        else {
            return Err(QmpError::Protocol(shorten(&greeting.to_string())));
        };
        qmp.version = format!("{major}.{minor}.{micro}");
        qmp.command_within("qmp_capabilities", json!({}), HELLO_MS_MAX).await?;
        Ok(qmp)
    }

    /// The events from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Why the guest ended, if QEMU told so before it went.
    pub fn farewell(&self) -> Option<String> {
        self.shared.lock().farewell.clone()
    }

    /// Whether all that there was to read has been read.
    pub fn is_read_out(&self) -> bool {
        self.reader.is_finished()
    }

    /// The socket, to ask who is at its other end.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.shared.stream.as_fd()
    }

    /// Carries out a command.
    ///
    /// # Errors
    /// As [`Qmp::command_within`], with the limit [`COMMAND_MS_MAX`].
    pub async fn command(&self, name: &'static str, arguments: Value) -> Result<Value, QmpError> {
        self.command_within(name, arguments, COMMAND_MS_MAX).await
    }

    /// Carries out a command that is answered within `limit_ms`.
    ///
    /// # Errors
    /// Refused by QEMU, no answer in time, or the connection ended.
    pub async fn command_within(
        &self,
        name: &'static str,
        arguments: Value,
        limit_ms: u64,
    ) -> Result<Value, QmpError> {
        self.exchange(name, arguments, None, limit_ms).await
    }

    /// Hands QEMU a file under a name (`getfd`), for a later `fd:` address.
    ///
    /// # Errors
    /// As [`Qmp::command`].
    pub async fn pass_file(&self, fd_name: &str, file: OwnedFd) -> Result<(), QmpError> {
        self.exchange("getfd", json!({ "fdname": fd_name }), Some(file), COMMAND_MS_MAX).await.map(|_| ())
    }

    async fn exchange(
        &self,
        name: &'static str,
        arguments: Value,
        file: Option<OwnedFd>,
        limit_ms: u64,
    ) -> Result<Value, QmpError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut command = Map::new();
        command.insert("execute".to_owned(), name.into());
        if arguments.as_object().is_some_and(|map| !map.is_empty()) {
            command.insert("arguments".to_owned(), arguments);
        }
        command.insert("id".to_owned(), id.into());
        let mut line = Value::Object(command).to_string();
        line.push('\n');

        let answer = self.shared.expect(id)?;
        // Whatever happens from here on, also when this future is dropped, the entry does not stay.
        let _forget = Forget { shared: &self.shared, id };
        let limit = Duration::from_millis(limit_ms);
        let exchanged = timeout(limit, async {
            self.write(line.as_bytes(), file).await?;
            match answer.await {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(desc)) => Err(QmpError::Refused { command: name, desc }),
                Err(_) => Err(QmpError::Closed),
            }
        });
        exchanged.await.unwrap_or(Err(QmpError::Timeout { command: name, waited_ms: limit_ms }))
    }

    async fn write(&self, line: &[u8], file: Option<OwnedFd>) -> Result<(), QmpError> {
        let _turn = self.writing.lock().await;
        let mut whole = WholeLine { shared: &self.shared, finished: false };
        let mut sent = 0;
        while sent < line.len() {
            let rest = line.get(sent..).unwrap_or_default();
            // The file goes with the first byte, so that QEMU has it when it reads the command.
            let file = file.as_ref().filter(|_| sent == 0);
            let send = || send_some(self.shared.stream.as_fd(), rest, file.map(AsFd::as_fd));
            sent +=
                self.shared.stream.async_io(Interest::WRITABLE, send).await.map_err(|_| QmpError::Closed)?;
        }
        whole.finished = true;
        Ok(())
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inbox> {
        // The inbox is consistent after every statement, so a panic elsewhere does not spoil it.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, id: u64) -> Result<oneshot::Receiver<Result<Value, String>>, QmpError> {
        let mut inbox = self.lock();
        if inbox.closed {
            return Err(QmpError::Closed);
        }
        if inbox.pending.len() >= PENDING_MAX {
            return Err(QmpError::TooMany);
        }
        let (sender, receiver) = oneshot::channel();
        inbox.pending.insert(id, sender);
        Ok(receiver)
    }

    fn close(&self) {
        let mut inbox = self.lock();
        inbox.closed = true;
        inbox.pending.clear();
    }

    /// Sorts one line into the inbox or the events.
    fn take(&self, mut message: Value) {
        if let Some(name) = message.get("event").and_then(Value::as_str).map(str::to_owned) {
            let data = message.get_mut("data").map(Value::take).unwrap_or_default();
            if name == "SHUTDOWN" {
                let reason = data.get("reason").and_then(Value::as_str).unwrap_or("unknown");
                self.lock().farewell.get_or_insert_with(|| reason.to_owned());
            } else if name == "GUEST_PANICKED" {
                self.lock().farewell = Some("guest-panicked".to_owned());
            }
            // Nobody listening is no error.
            let _ = self.events.send(Event { name, data });
            return;
        }
        let Some(sender) =
            message.get("id").and_then(Value::as_u64).and_then(|id| self.lock().pending.remove(&id))
        else {
            return;
        };
        let answer = match message.get("error") {
            Some(error) => Err(error.get("desc").and_then(Value::as_str).unwrap_or("no reason").to_owned()),
            None => Ok(message.get_mut("return").map(Value::take).unwrap_or_default()),
        };
        // The asker may have given up.
        let _ = sender.send(answer);
    }
}

/// Forgets a command that nobody waits for any more.
struct Forget<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.lock().pending.remove(&self.id);
    }
}

/// Closes the connection if a line was cut in the middle: what followed would be nonsense to QEMU.
struct WholeLine<'a> {
    shared: &'a Shared,
    finished: bool,
}

impl Drop for WholeLine<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.shared.close();
        }
    }
}

/// Sends as much as fits, with the file if there is one.
fn send_some(socket: BorrowedFd<'_>, bytes: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = file.as_slice();
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(files));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
        .map_err(Into::into)
}

/// Reads lines until the connection ends; the first goes to `hello`.
async fn read(shared: Arc<Shared>, hello: oneshot::Sender<Result<Value, QmpError>>) {
    let mut hello = Some(hello);
    let mut buffer = Vec::new();
    let fault = read_lines(&shared, &mut hello, &mut buffer).await;
    if let Some(hello) = hello {
        // The connection may have been given up.
        let _ = hello.send(Err(fault));
    }
    shared.close();
}

async fn read_lines(
    shared: &Shared,
    hello: &mut Option<oneshot::Sender<Result<Value, QmpError>>>,
    buffer: &mut Vec<u8>,
) -> QmpError {
    loop {
        if shared.stream.readable().await.is_err() {
            return QmpError::Closed;
        }
        let old = buffer.len();
        buffer.resize(old + READ_BYTES, 0);
        let got = match shared.stream.try_read(buffer.get_mut(old..).unwrap_or_default()) {
            Ok(0) => return QmpError::Closed,
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => return QmpError::Closed,
        };
        buffer.truncate(old + got);
        // Only the new bytes can hold a line's end; a long line is so not searched again and again.
        let mut searched = old;
        while let Some(end) =
            buffer.get(searched..).and_then(|new| new.iter().position(|&byte| byte == b'\n'))
        {
            let line: Vec<u8> = buffer.drain(..=searched + end).collect();
            searched = 0;
            match serde_json::from_slice::<Value>(&line) {
                Ok(message) => match hello.take() {
                    Some(hello) => drop(hello.send(Ok(message))),
                    None => shared.take(message),
                },
                Err(_) => return QmpError::Protocol(shorten(&String::from_utf8_lossy(&line))),
            }
        }
        if buffer.len() > LINE_BYTES_MAX {
            return QmpError::Protocol(format!("a line of more than {LINE_BYTES_MAX} bytes"));
        }
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}}, \"capabilities\": []}}\n";

    /// The other end: greets, then answers each command with what `answer` makes of its name and number.
    fn serve(stream: UnixStream, answer: fn(&str, u64) -> String) -> JoinHandle<()> {
        tokio::spawn(async move {
            let (reading, mut writing) = stream.into_split();
            writing.write_all(GREETING.as_bytes()).await.unwrap();
            let mut lines = BufReader::new(reading).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let command: Value = serde_json::from_str(&line).unwrap();
                let text = answer(command["execute"].as_str().unwrap(), command["id"].as_u64().unwrap());
                if writing.write_all(text.as_bytes()).await.is_err() {
                    break;
                }
            }
        })
    }

    #[tokio::test]
    async fn answers_find_their_commands_whatever_the_order() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        serve(theirs, |name, id| match name {
            // Answered together with the next one, in reverse order.
            "first" => String::new(),
            "second" => format!(
                "{{\"return\": \"two\", \"id\": {id}}}\n{{\"event\": \"STOP\"}}\n{{\"return\": \"one\", \"id\": {}}}\n",
                id - 1
            ),
            "bad" => {
                format!("{{\"error\": {{\"class\": \"GenericError\", \"desc\": \"no\"}}, \"id\": {id}}}\n")
            }
            _ => format!("{{\"return\": {{}}, \"id\": {id}}}\n"),
        });
        let qmp = Qmp::negotiate(ours).await.unwrap();
        assert_eq!(qmp.version, "7.2.22");
        let mut events = qmp.events();
        let (first, second) = tokio::join!(qmp.command("first", json!({})), qmp.command("second", json!({})));
        assert_eq!((first.unwrap(), second.unwrap()), (json!("one"), json!("two")));
        assert_eq!(events.recv().await.unwrap().name, "STOP");
        let refused = qmp.command("bad", json!({})).await.unwrap_err();
        assert_eq!(refused.to_string(), "QEMU refused `bad`: no");
    }

    #[tokio::test]
    async fn silence_is_a_time_out_and_leaves_nothing_behind() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        serve(theirs, |name, id| match name {
            "silent" => String::new(),
            _ => format!("{{\"return\": {{}}, \"id\": {id}}}\n"),
        });
        let qmp = Qmp::negotiate(ours).await.unwrap();
        for _ in 0..PENDING_MAX + 1 {
            let silent = qmp.command_within("silent", json!({}), 1).await;
            assert!(matches!(silent, Err(QmpError::Timeout { command: "silent", waited_ms: 1 })));
        }
        qmp.command("query-status", json!({})).await.unwrap();
    }

    #[tokio::test]
    async fn an_end_a_flood_and_nonsense_are_told_apart() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"220 mail.example ESMTP\r\n").await.unwrap();
        assert!(matches!(Qmp::negotiate(ours).await, Err(QmpError::Protocol(_))));

        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(matches!(Qmp::negotiate(ours).await, Err(QmpError::Closed)));

        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let flood = tokio::spawn(async move { while theirs.write_all(&[b'x'; 65_536]).await.is_ok() {} });
        assert!(matches!(Qmp::negotiate(ours).await, Err(QmpError::Protocol(_))));
        flood.await.unwrap();
    }

    #[tokio::test]
    async fn commands_fail_at_once_when_the_process_goes() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = serve(theirs, |name, id| match name {
            "die" => String::new(),
            _ => format!("{{\"return\": {{}}, \"id\": {id}}}\n"),
        });
        let qmp = Qmp::negotiate(ours).await.unwrap();
        let (died, ()) = tokio::join!(qmp.command("die", json!({})), async {
            tokio::task::yield_now().await;
            server.abort();
        });
        assert!(matches!(died, Err(QmpError::Closed)));
        assert!(matches!(qmp.command("later", json!({})).await, Err(QmpError::Closed)));
    }
}
