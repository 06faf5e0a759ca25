//! A client of the QEMU guest agent (`qemu-ga`): one JSON object per line over a serial port of the guest's.
//!
//! The agent is the guest's own program: it may be missing, hang, lie or shout. Each command has a time limit, what is
//! read is bounded (see `wire`), and no answer is believed further than its form. After a command that got no proper
//! answer, and on a new connection, the next one begins with `guest-sync-delimited` and a random number: answers to
//! earlier questions are passed over, and nothing is asked of an agent that does not answer this.
//!
//! The daemon stays connected as long as there is a process, asked or not: without somebody at the host's end of the
//! port the agent looks for one ten times a second.

mod wire;

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};

use self::wire::{DELIMITER, Inbox, WireFault, from_base64, quote, to_base64};

/// The name of the port at the guest's side, by which agents look for it.
pub const PORT: &str = "org.qemu.guest_agent.0";
/// Bytes asked for in one read.
const READ_BYTES: usize = 16 << 10;
/// Commands of an agent that are looked at when it tells what it can.
const COMMANDS_MAX: usize = 256;
/// Network interfaces, and addresses of each, that are taken from an answer.
const INTERFACES_MAX: usize = 64;
/// First pause between two looks whether a program in the guest has ended; it doubles up to [`LOOK_PAUSE_MAX`].
const LOOK_PAUSE: Duration = Duration::from_millis(2);
/// Longest of these pauses.
const LOOK_PAUSE_MAX: Duration = Duration::from_millis(50);
/// Longest output of a program that is taken from the guest.
const OUTPUT_BYTES_MAX: usize = 64 << 10;

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The guest has no program at its end of the port.
    #[error("the guest has no agent")]
    None,
    /// The port cannot be reached from the host's side.
    #[error("the agent's socket cannot be used: {0}")]
    Socket(#[from] io::Error),
    /// No answer in time.
    #[error("the guest's agent did not answer `{command}` in time")]
    Silent {
        /// The command.
        command: &'static str,
    },
    /// The host's side of the port was closed: mostly the process has ended.
    #[error("QEMU closed the agent's socket")]
    Closed,
    /// What came is not the protocol.
    #[error("the guest's agent sent {0}")]
    Garbage(#[from] WireFault),
    /// An answer that has not the form that it must have.
    #[error("the guest's agent answered `{command}` with {said}")]
    Odd {
        /// The command.
        command: &'static str,
        /// The beginning of the answer.
        said: String,
    },
    /// The agent refused.
    #[error("the guest's agent refused `{command}`: {desc}")]
    Refused {
        /// The command.
        command: &'static str,
        /// Its sentence.
        desc: String,
    },
}

/// What an agent says that it can do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentInfo {
    /// Its version, for people.
    pub version: String,
    /// The commands that it has and may use.
    pub commands: BTreeSet<String>,
}

/// Whether the guest's file systems are frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freeze {
    /// Programs can write.
    Thawed,
    /// Whoever writes waits.
    Frozen,
}

/// How a program in the guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exited {
    /// Its exit status; `None` when a signal ended it.
    pub code: Option<i64>,
    /// What it printed, as far as the agent and we keep it.
    pub output: Vec<u8>,
}

/// A network interface as the guest tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, if it has one.
    pub mac: Option<String>,
    /// Its addresses.
    pub addresses: Vec<String>,
}

/// A program to be run in the guest.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// Absolute path.
    pub path: &'a str,
    /// Its arguments: everybody in the guest can read them.
    pub arguments: &'a [&'a str],
    /// What it reads on its standard input.
    pub input: &'a [u8],
    /// Whether what it prints is wanted.
    pub output: bool,
}

/// A connection to a guest's agent.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    inbox: Inbox,
    /// The last command was answered, so the next answer is that of the next command.
    in_step: bool,
}

impl Agent {
    /// Connects to the host's end of the port. Whether there is an agent shows only when it is asked.
    ///
    /// # Errors
    /// Nobody listens at `path`.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self::over(UnixStream::connect(path).await?))
    }

    /// Over a connection.
    pub fn over(stream: UnixStream) -> Self {
        Self { stream, inbox: Inbox::default(), in_step: false }
    }

    /// Makes sure that an agent answers, and that answers are those to our questions.
    ///
    /// # Errors
    /// It does not until `deadline`.
    pub async fn sync(&mut self, deadline: Instant) -> Result<(), AgentError> {
        const COMMAND: &str = "guest-sync-delimited";
        self.in_step = false;
        // The agent's numbers are signed, and some JSON readers know only 53 bits.
        let id = random::<4>()?.into_iter().fold(0_u64, |id, byte| id << 8 | u64::from(byte));
        // The delimiter first: half a command of an earlier session is forgotten by the agent.
        let mut bytes = vec![DELIMITER];
        bytes.extend(line(COMMAND, json!({ "id": id })));
        self.send(COMMAND, &bytes, deadline).await?;
        loop {
            self.inbox.seek();
            match self.receive(COMMAND, deadline).await {
                Ok(answer) if answer.get("return").and_then(Value::as_u64) == Some(id) => break,
                // The end of something earlier.
                Ok(_) | Err(AgentError::Garbage(WireFault::NotJson(_))) => {}
                Err(error) => return Err(error),
            }
        }
        self.in_step = true;
        Ok(())
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// It does not until `deadline`.
    pub async fn ping(&mut self, deadline: Instant) -> Result<(), AgentError> {
        self.ask("guest-ping", json!({}), deadline).await.map(|_| ())
    }

    /// What it can do.
    ///
    /// # Errors
    /// As of every command: no proper answer until `deadline`.
    pub async fn info(&mut self, deadline: Instant) -> Result<AgentInfo, AgentError> {
        const COMMAND: &str = "guest-info";
        let answer = self.ask(COMMAND, json!({}), deadline).await?;
        let list = answer.get("supported_commands").and_then(Value::as_array);
        let list = list.ok_or_else(|| odd(COMMAND, &answer))?;
        let enabled = |command: &Value| {
            let name = command.get("name")?.as_str()?;
            let enabled = command.get("enabled").and_then(Value::as_bool).unwrap_or(true);
            enabled.then(|| quote(name.as_bytes()))
        };
        Ok(AgentInfo {
            version: answer
                .get("version")
                .and_then(Value::as_str)
                .map(|text| quote(text.as_bytes()))
                .unwrap_or_default(),
            commands: list.iter().take(COMMANDS_MAX).filter_map(enabled).collect(),
        })
    }

    /// Sets the guest's clock, to nanoseconds since 1970.
    ///
    /// # Errors
    /// As of every command. Debian's agent sets its real-time clock afterwards by `hwclock`, which may take a second,
    /// and refuses without it.
    pub async fn set_time(&mut self, now_ns: u64, deadline: Instant) -> Result<(), AgentError> {
        self.ask("guest-set-time", json!({ "time": now_ns }), deadline).await.map(|_| ())
    }

    /// Freezes the guest's file systems; returns how many.
    ///
    /// # Errors
    /// As of every command; some may be frozen nevertheless: thaw in every case.
    pub async fn freeze(&mut self, deadline: Instant) -> Result<u64, AgentError> {
        self.count("guest-fsfreeze-freeze", deadline).await
    }

    /// Thaws the guest's file systems; returns how many. Nothing is done where none is frozen.
    ///
    /// # Errors
    /// As of every command.
    pub async fn thaw(&mut self, deadline: Instant) -> Result<u64, AgentError> {
        self.count("guest-fsfreeze-thaw", deadline).await
    }

    /// Whether they are frozen.
    ///
    /// # Errors
    /// As of every command.
    pub async fn freeze_status(&mut self, deadline: Instant) -> Result<Freeze, AgentError> {
        const COMMAND: &str = "guest-fsfreeze-status";
        let answer = self.ask(COMMAND, json!({}), deadline).await?;
        match answer.as_str() {
            Some("thawed") => Ok(Freeze::Thawed),
            Some("frozen") => Ok(Freeze::Frozen),
            Some(_) | None => Err(odd(COMMAND, &answer)),
        }
    }

    /// Runs a program in the guest to its end.
    ///
    /// # Errors
    /// As of every command. After `deadline` the program may still run.
    pub async fn run(&mut self, program: Program<'_>, deadline: Instant) -> Result<Exited, AgentError> {
        const COMMAND: &str = "guest-exec";
        const LOOK: &str = "guest-exec-status";
        let mut arguments = Map::new();
        arguments.insert("path".to_owned(), program.path.into());
        if !program.arguments.is_empty() {
            arguments.insert("arg".to_owned(), program.arguments.into());
        }
        if !program.input.is_empty() {
            arguments.insert("input-data".to_owned(), to_base64(program.input).into());
        }
        arguments.insert("capture-output".to_owned(), program.output.into());
        let answer = self.ask(COMMAND, Value::Object(arguments), deadline).await?;
        let pid = answer.get("pid").and_then(Value::as_i64).ok_or_else(|| odd(COMMAND, &answer))?;
        let mut pause = LOOK_PAUSE;
        loop {
            let answer = self.ask(LOOK, json!({ "pid": pid }), deadline).await?;
            match answer.get("exited").and_then(Value::as_bool) {
                Some(true) => return Ok(exited(&answer)),
                Some(false) => {}
                None => return Err(odd(LOOK, &answer)),
            }
            if Instant::now() + pause >= deadline {
                return Err(AgentError::Silent { command: COMMAND });
            }
            sleep(pause).await;
            pause = (pause * 2).min(LOOK_PAUSE_MAX);
        }
    }

    /// The guest's network interfaces.
    ///
    /// # Errors
    /// As of every command.
    pub async fn interfaces(&mut self, deadline: Instant) -> Result<Vec<Interface>, AgentError> {
        const COMMAND: &str = "guest-network-get-interfaces";
        let answer = self.ask(COMMAND, json!({}), deadline).await?;
        let list = answer.as_array().ok_or_else(|| odd(COMMAND, &answer))?;
        let text = |value: &Value, key: &str| {
            value.get(key).and_then(Value::as_str).map(|text| quote(text.as_bytes()))
        };
        let interface = |value: &Value| {
            let addresses = value.get("ip-addresses").and_then(Value::as_array).map(Vec::as_slice);
            let addresses = addresses.unwrap_or_default().iter().take(INTERFACES_MAX);
            Some(Interface {
                name: text(value, "name")?,
                mac: text(value, "hardware-address"),
                addresses: addresses.filter_map(|address| text(address, "ip-address")).collect(),
            })
        };
        Ok(list.iter().take(INTERFACES_MAX).filter_map(interface).collect())
    }

    async fn count(&mut self, command: &'static str, deadline: Instant) -> Result<u64, AgentError> {
        let answer = self.ask(command, json!({}), deadline).await?;
        answer.as_u64().ok_or_else(|| odd(command, &answer))
    }

    /// One command and its answer.
    async fn ask(
        &mut self,
        command: &'static str,
        arguments: Value,
        deadline: Instant,
    ) -> Result<Value, AgentError> {
        if !self.in_step {
            self.sync(deadline).await?;
        }
        // Only a whole answer makes the next one ours.
        self.in_step = false;
        self.send(command, &line(command, arguments), deadline).await?;
        let mut answer = self.receive(command, deadline).await?;
        let refused = answer.get("error").map(|error| {
            let desc = error.get("desc").and_then(Value::as_str).unwrap_or("no reason");
            AgentError::Refused { command, desc: quote(desc.as_bytes()) }
        });
        match (refused, answer.get_mut("return")) {
            (Some(refused), _) => {
                self.in_step = true;
                Err(refused)
            }
            (None, Some(value)) => {
                self.in_step = true;
                Ok(value.take())
            }
            (None, None) => Err(odd(command, &answer)),
        }
    }

    async fn send(
        &mut self,
        command: &'static str,
        bytes: &[u8],
        deadline: Instant,
    ) -> Result<(), AgentError> {
        match timeout_at(deadline, self.stream.write_all(bytes)).await {
            Ok(sent) => Ok(sent.map_err(lost)?),
            Err(_) => Err(AgentError::Silent { command }),
        }
    }

    async fn receive(&mut self, command: &'static str, deadline: Instant) -> Result<Value, AgentError> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            if let Some(answer) = self.inbox.next() {
                return Ok(answer?);
            }
            let Ok(read) = timeout_at(deadline, self.stream.read(&mut buffer)).await else {
                return Err(AgentError::Silent { command });
            };
            match read.map_err(lost)? {
                0 => return Err(AgentError::Closed),
                count => self.inbox.push(buffer.get(..count).unwrap_or_default())?,
            }
        }
    }
}

/// Random bytes of the host's.
///
/// # Errors
/// The kernel has none.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}

fn lost(error: io::Error) -> AgentError {
    let gone = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
    if gone.contains(&error.kind()) { AgentError::Closed } else { AgentError::Socket(error) }
}

fn line(command: &str, arguments: Value) -> Vec<u8> {
    let mut object = Map::new();
    object.insert("execute".to_owned(), command.into());
    if arguments.as_object().is_some_and(|map| !map.is_empty()) {
        object.insert("arguments".to_owned(), arguments);
    }
    let mut line = Value::Object(object).to_string().into_bytes();
    line.push(b'\n');
    line
}

fn odd(command: &'static str, answer: &Value) -> AgentError {
    AgentError::Odd { command, said: quote(answer.to_string().as_bytes()) }
}

fn exited(answer: &Value) -> Exited {
    let output = answer.get("out-data").and_then(Value::as_str).and_then(from_base64).unwrap_or_default();
    Exited {
        code: answer.get("exitcode").and_then(Value::as_i64),
        output: output.into_iter().take(OUTPUT_BYTES_MAX).collect(),
    }
}

#[cfg(test)]
mod tests;
