//! What a guest is asked through its agent, before it sleeps and after it woke.
//!
//! A restored guest does not know that it slept: its clock stands where it stood, and its random generator goes on as
//! that of every other guest restored from the same version would. One program of the boot stage's puts both right in
//! one call (`image/refresh.S`); roots without the boot stage have their own programs do it, if they have any that can.
//!
//! Nothing secret is in an argument list: random bytes go in by standard input.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reveille_core::model::Cause;
use tokio::time::Instant;

use super::agent::{Agent, AgentError, Exited, Program, random};
use super::version::AgentNote;
use super::vm::Vm;
use crate::driver::{AgentState, BeforeSleep, Launch, Link, Refreshed, Tap};
use crate::image::REFRESH_PATH;

/// Fresh random bytes for a guest.
const SEED_BYTES: usize = 64;
/// What the program says when it did not all succeed: `refresh.S`.
const CLOCK_BEHIND: i64 = 201;
const POOL_STALE: i64 = 202;
const BOTH: i64 = 203;
/// Longest wait until a guest knows that it is a clone: without that it is not let run for clients.
pub const INTRODUCE_MS_MAX: u64 = 20_000;
/// Longest freeze of a guest's file systems.
const FREEZE_MS_MAX: u64 = 2_000;
/// Longest thaw. The guest is of no use before.
const THAW_MS_MAX: u64 = 10_000;
/// Longest look whether an agent answers.
const PING_MS_MAX: u64 = 500;
/// What may keep a guest from sleeping, in the guest.
const BEFORE_SLEEP: &str = "/etc/reveille/before-sleep";
/// Longest reason of such a program that is shown, in characters.
const REASON_CHARS_MAX: usize = 200;

/// What a root without the boot stage's program is given to its shell: the same, as far as it has programs for it.
const FALLBACK: &str = r#"PATH=/usr/sbin:/usr/bin:/sbin:/bin
date -u -s "@$now" >/dev/null || exit 201
if command -v python3 >/dev/null; then
    printf %s "$seed" | python3 -c 'import fcntl,struct,sys
seed = bytes.fromhex(sys.stdin.read())
with open("/dev/urandom", "wb", buffering=0) as pool:
    fcntl.ioctl(pool, 0x40085203, struct.pack("ii", 8 * len(seed), len(seed)) + seed)
    fcntl.ioctl(pool, 0x5207, 0)' || exit 202
elif command -v perl >/dev/null; then
    printf %s "$seed" | perl -e 'my $seed = pack "H*", <STDIN>;
open my $pool, ">", "/dev/urandom" or exit 1;
my $info = pack("ii", 8 * length $seed, length $seed) . $seed;
ioctl($pool, 0x40085203, $info) && ioctl($pool, 0x5207, 0) or exit 1' || exit 202
else
    exit 202
fi
if [ -x /etc/reveille/after-wake ]; then exec /etc/reveille/after-wake; fi
"#;

/// Tells a guest that it is a copy: host name, hardware address, and addresses where it has its own. Its arguments:
/// name, hardware address, then with a tap device address, gateway, IPv6 address, IPv6 gateway.
const INTRODUCE: &str = r#"PATH=/.reveille/bin:/usr/sbin:/usr/bin:/sbin:/bin
set -e
echo "$1" >/proc/sys/kernel/hostname
if [ -f /etc/hostname ]; then echo "$1" >/etc/hostname; fi
for card in /sys/class/net/*; do
    if [ -e "$card/device" ]; then break; fi
done
card=${card##*/}
ip link set dev "$card" address "$2"
[ -n "$3" ] || exit 0
ip address flush dev "$card" scope global
ip address add "$3/32" dev "$card"
ip route add "$4" dev "$card"
ip route add default via "$4"
[ -n "$5" ] || exit 0
ip -6 address add "$5/128" dev "$card"
ip -6 route add default via "$6" dev "$card"
"#;

/// What is known of the guest's agent now.
pub async fn state(vm: &Vm) -> AgentState {
    match vm.agent().await {
        Ok(AgentNote::Present) => {
            let deadline = within(PING_MS_MAX);
            let info = vm.ask_agent(async |agent| agent.info(deadline).await).await;
            info.map_or(AgentState::Silent, |info| AgentState::Answers { version: info.version })
        }
        Ok(AgentNote::NoPort | AgentNote::Silent) | Err(_) => AgentState::None,
    }
}

/// Puts right what a restored guest cannot know, within `limit`.
pub async fn refresh(vm: &Vm, limit: Duration) -> Refreshed {
    if vm.origin().agent != AgentNote::Present {
        return Refreshed::NoAgent;
    }
    let deadline = Instant::now() + limit;
    let refreshed = vm.ask_agent(async |agent| refresh_with(agent, deadline).await).await;
    match refreshed.map(|exited| fault_of(&exited)) {
        Ok(None) => Refreshed::Done,
        Ok(Some(fault)) => Refreshed::Missed(fault),
        Err(error) => Refreshed::Missed(error.to_string()),
    }
}

async fn refresh_with(agent: &mut Agent, deadline: Instant) -> Result<Exited, AgentError> {
    // Answered before the time is told: what lies in the port is not taken up later, with a time that has passed.
    agent.sync(deadline).await?;
    let record = record()?;
    let own = Program { path: REFRESH_PATH, arguments: &[], input: &record, output: false };
    match agent.run(own, deadline).await {
        // There is no such program.
        Err(AgentError::Refused { .. }) => {
            let script = fallback()?;
            let shell =
                Program { path: "/bin/sh", arguments: &["-s"], input: script.as_bytes(), output: false };
            agent.run(shell, deadline).await
        }
        ended => ended,
    }
}

/// What did not succeed.
fn fault_of(exited: &Exited) -> Option<String> {
    Some(match exited.code {
        Some(0) => return None,
        Some(CLOCK_BEHIND) => "the guest's clock could not be set".to_owned(),
        Some(POOL_STALE) => "the guest's random generator could not be seeded".to_owned(),
        Some(BOTH) => "neither the guest's clock nor its random generator could be set".to_owned(),
        Some(code) => format!("after-wake in the guest ended with exit status {code}"),
        None => "after-wake in the guest was ended by a signal".to_owned(),
    })
}

/// The input of `refresh.S`.
fn record() -> Result<Vec<u8>, AgentError> {
    let seed = random::<SEED_BYTES>()?;
    let bytes = u32::try_from(SEED_BYTES).unwrap_or(0);
    let now = since_1970();
    let mut record = Vec::with_capacity(24 + SEED_BYTES);
    record.extend(now.as_secs().to_le_bytes());
    record.extend(u64::from(now.subsec_nanos()).to_le_bytes());
    record.extend((8 * bytes).to_le_bytes());
    record.extend(bytes.to_le_bytes());
    record.extend(seed);
    Ok(record)
}

fn fallback() -> Result<String, AgentError> {
    let mut script = format!("now={}\nseed=", since_1970().as_secs());
    for byte in random::<SEED_BYTES>()? {
        // Writing to a String does not fail.
        let _ = write!(script, "{byte:02x}");
    }
    script.push('\n');
    script.push_str(FALLBACK);
    Ok(script)
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Tells a clone who it is, with a fresh clock and random generator. The guest runs, and no client reaches it.
pub async fn introduce(vm: &Vm, launch: &Launch) -> Result<(), Cause> {
    let deadline = within(INTRODUCE_MS_MAX);
    let failed = |detail: String| Cause::StartFailed {
        detail: format!("the guest could not be told that it is a clone: {detail}"),
    };
    match refresh(vm, Duration::from_millis(INTRODUCE_MS_MAX)).await {
        Refreshed::Done => {}
        Refreshed::NoAgent => return Err(failed("it has no agent".to_owned())),
        Refreshed::Missed(detail) => return Err(failed(detail)),
    }
    let (name, mac) = (launch.hostname(), launch.own_mac());
    let addresses = match &launch.link {
        Link::Stream => Vec::new(),
        Link::Tap(Tap { address, gateway, v6, .. }) => {
            let mut all = vec![address.to_string(), gateway.to_string()];
            all.extend(v6.iter().flat_map(|(address, gateway)| [address.to_string(), gateway.to_string()]));
            all
        }
    };
    let mut arguments = vec!["sh", "-s", "--", name, mac.as_str()];
    arguments.extend(addresses.iter().map(String::as_str));
    let told = vm.ask_agent(async |agent| {
        let own = Program {
            path: "/.reveille/busybox",
            arguments: &arguments,
            input: INTRODUCE.as_bytes(),
            output: true,
        };
        match agent.run(own, deadline).await {
            Err(AgentError::Refused { .. }) => {
                let arguments = arguments.get(1..).unwrap_or_default();
                agent.run(Program { path: "/bin/sh", arguments, ..own }, deadline).await
            }
            ended => ended,
        }
    });
    match told.await {
        Ok(Exited { code: Some(0), .. }) => Ok(()),
        Ok(exited) => Err(failed(format!("its shell ended with {:?}", exited.code))),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Asks the guest whether it may sleep.
pub async fn before_sleep(vm: &Vm, limit: Duration) -> BeforeSleep {
    let ready = BeforeSleep::Ready { wake_at: None };
    if !matches!(vm.agent().await, Ok(AgentNote::Present)) {
        return ready;
    }
    let deadline = Instant::now() + limit;
    let hook = Program { path: BEFORE_SLEEP, arguments: &[], input: b"", output: true };
    match vm.ask_agent(async |agent| agent.run(hook, deadline).await).await {
        Ok(Exited { code: Some(0), output }) => BeforeSleep::Ready { wake_at: wake_at(&output) },
        Ok(Exited { code, output }) => BeforeSleep::Veto { reason: reason(code, &output) },
        // There is no such program, or the agent may not run any.
        Err(AgentError::Refused { .. }) => ready,
        Err(error) => {
            tracing::warn!(pid = vm.process.pid, %error, "before-sleep in the guest was not heard out");
            ready
        }
    }
}

/// The first line of what a program says, or its exit status.
fn reason(code: Option<i64>, output: &[u8]) -> String {
    let output = String::from_utf8_lossy(output);
    let line = output.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with(WAKE_AT));
    match (line, code) {
        (Some(line), _) => {
            line.chars().filter(|character| !character.is_control()).take(REASON_CHARS_MAX).collect()
        }
        (None, Some(code)) => format!("exit status {code}"),
        (None, None) => "it was ended by a signal".to_owned(),
    }
}

/// What a guest says to be woken at a time.
const WAKE_AT: &str = "wake-at ";

/// The time in the last line that begins with `wake-at`.
fn wake_at(output: &[u8]) -> Option<String> {
    let output = String::from_utf8_lossy(output);
    let asked = output.lines().rev().find_map(|line| line.trim().strip_prefix(WAKE_AT))?;
    Some(asked.trim().chars().filter(char::is_ascii_graphic).take(REASON_CHARS_MAX).collect())
}

/// Freezes the guest's file systems, so that the disk is what a guest that was shut down would have left; without an
/// agent, or when it does not want to, the disk is as after a loss of power. What is frozen is thawed by [`thaw`].
pub async fn freeze(vm: &Vm) -> bool {
    if !matches!(vm.agent().await, Ok(AgentNote::Present)) {
        return false;
    }
    let deadline = within(FREEZE_MS_MAX);
    match vm.ask_agent(async |agent| agent.freeze(deadline).await).await {
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(pid = vm.process.pid, %error, "the guest's file systems are not frozen");
        }
    }
    // Also what was asked in vain may have been done, or be done yet.
    true
}

/// Thaws the guest's file systems; nothing is done where none is frozen.
pub async fn thaw(vm: &Vm) {
    let deadline = within(THAW_MS_MAX);
    if let Err(error) = vm.ask_agent(async |agent| agent.thaw(deadline).await).await {
        tracing::error!(pid = vm.process.pid, %error, "the guest's file systems may still be frozen");
    }
}

fn within(limit_ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(limit_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_before_it_sleeps() {
        assert_eq!(wake_at(b"backing up\nwake-at +3600\n").unwrap(), "+3600");
        assert_eq!(
            wake_at(b"wake-at 1\n wake-at \x1b[2026-01-02T03:04:05Z \n").unwrap(),
            "[2026-01-02T03:04:05Z"
        );
        assert_eq!(wake_at(b"nothing"), None);
        assert_eq!(reason(Some(1), b"\n a backup runs\nmore"), "a backup runs");
        assert_eq!(reason(Some(3), b"wake-at +5\n"), "exit status 3");
        assert_eq!(reason(None, &[0xff; 0]), "it was ended by a signal");
        assert!(reason(Some(1), &[b'x'; 4096]).len() <= REASON_CHARS_MAX);
    }

    #[test]
    fn the_record_is_what_the_program_reads() {
        let record = record().unwrap();
        assert_eq!(record.len(), 88);
        assert_eq!(record[16..24], [0, 2, 0, 0, 64, 0, 0, 0]);
        assert!(record[24..].iter().any(|byte| *byte != 0));
    }

    #[test]
    fn the_scripts_are_such_that_a_shell_can_read_them() {
        for script in [FALLBACK, INTRODUCE] {
            let status = std::process::Command::new("/bin/busybox").args(["sh", "-n", "-c", script]).status();
            assert!(status.unwrap().success());
        }
    }
}
