//! What a guest is asked through its agent, before it sleeps and after it woke.
//!
//! A restored guest does not know that it slept: its clock stands where it stood, and its random generator goes on as
//! that of every other guest restored from the same version would. A program of the boot stage's waits to put both right
//! (`image/refresh.S`); roots without the boot stage have their own programs do it, if they have any that can.
//!
//! Nothing secret is in an argument list: random bytes go in by standard input.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reveille_core::model::Cause;
use tokio::time::Instant;

use super::agent::{Agent, AgentError, Exited, Program, random};
use super::refresher::{Faults, SEED_BYTES};
use super::version::{Listener, Listeners};
use super::vm::Vm;
use crate::driver::{
    AgentState, BeforeSleep, ExecError, GuestProgram, Launch, Link, ProgramEnded, Refreshed, Tap,
};

/// Longest wait until a guest knows that it is a clone: without that it is not let run for clients.
pub const INTRODUCE_MS_MAX: u64 = 20_000;
/// Longest freeze of a guest's file systems.
const FREEZE_MS_MAX: u64 = 2_000;
/// Longest thaw. The guest is of no use before.
const THAW_MS_MAX: u64 = 10_000;
/// Longest look whether an agent answers.
const PING_MS_MAX: u64 = 500;
/// What is run in a guest that woke, if it is there.
const AFTER_WAKE: &str = "/etc/reveille/after-wake";
/// What may keep a guest from sleeping, in the guest.
const BEFORE_SLEEP: &str = "/etc/reveille/before-sleep";
/// Longest reason of such a program that is shown, in characters.
const REASON_CHARS_MAX: usize = 200;

/// What the shell of a root without the refresher is given: it does the same, as far as it has programs for it, and its
/// exit status is the refresher's answer.
const FALLBACK: &str = r#"PATH=/usr/sbin:/usr/bin:/sbin:/bin
bad=0
date -u -s "@$now" >/dev/null || bad=1
if command -v python3 >/dev/null; then
    printf %s "$seed" | python3 -c 'import fcntl,struct,sys
seed = bytes.fromhex(sys.stdin.read())
with open("/dev/urandom", "wb", buffering=0) as pool:
    fcntl.ioctl(pool, 0x40085203, struct.pack("ii", 8 * len(seed), len(seed)) + seed)
    fcntl.ioctl(pool, 0x5207, 0)' || bad=$((bad + 2))
elif command -v perl >/dev/null; then
    printf %s "$seed" | perl -e 'my $seed = pack "H*", <STDIN>;
open my $pool, ">", "/dev/urandom" or exit 1;
my $info = pack("ii", 8 * length $seed, length $seed) . $seed;
ioctl($pool, 0x40085203, $info) && ioctl($pool, 0x5207, 0) or exit 1' || bad=$((bad + 2))
else
    bad=$((bad + 2))
fi
[ ! -x /etc/reveille/after-wake ] || bad=$((bad + 4))
exit $bad
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
    match vm.listeners().await {
        Ok(Listeners { agent: Listener::Present, .. }) => {
            let deadline = within(PING_MS_MAX);
            let info = vm.ask_agent(async |agent| agent.info(deadline).await).await;
            info.map_or(AgentState::Silent, |info| AgentState::Answers { version: info.version })
        }
        Ok(_) | Err(_) => AgentState::None,
    }
}

/// Puts right what a restored guest cannot know, within `limit`, and runs its own after-wake program.
pub async fn refresh(vm: &Vm, limit: Duration) -> Refreshed {
    let Listeners { agent, refresher } = vm.origin().listeners;
    let deadline = Instant::now() + limit;
    let faults = match (refresher, agent) {
        (Listener::Present, _) => match vm.ask_refresher(async |one| one.refresh(deadline).await).await {
            Ok(faults) => faults,
            Err(error) => return Refreshed::Missed(error.to_string()),
        },
        (_, Listener::Present) => match vm.ask_agent(async |agent| by_shell(agent, deadline).await).await {
            Ok(faults) => faults,
            Err(error) => return Refreshed::Missed(error.to_string()),
        },
        (_, _) => return Refreshed::NoAgent,
    };
    if let Some(fault) = faults.told() {
        return Refreshed::Missed(fault.to_owned());
    }
    if !faults.after_wake || agent != Listener::Present {
        return Refreshed::Done;
    }
    let hook = Program { path: AFTER_WAKE, arguments: &[], input: b"", output: true };
    match vm.ask_agent(async |agent| agent.run(hook, deadline).await).await {
        Ok(Exited { code: Some(0), .. }) => Refreshed::Done,
        Ok(Exited { code, output }) => {
            Refreshed::Missed(format!("after-wake in the guest failed: {}", reason(code, &output)))
        }
        Err(error) => Refreshed::Missed(format!("after-wake in the guest: {error}")),
    }
}

/// Has the guest's own programs do it.
async fn by_shell(agent: &mut Agent, deadline: Instant) -> Result<Faults, AgentError> {
    // Answered before the time is told: what lies in the port is not taken up later, with a time that has passed.
    agent.sync(deadline).await?;
    let script = fallback()?;
    let shell = Program { path: "/bin/sh", arguments: &["-s"], input: script.as_bytes(), output: false };
    let exited = agent.run(shell, deadline).await?;
    // What the last line of the script found, or which of its programs failed.
    Ok(match exited.code {
        Some(code @ 0..=7) => Faults::from_bits(u8::try_from(code).unwrap_or(u8::MAX)),
        Some(_) | None => Faults::from_bits(u8::MAX),
    })
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
    if !has_agent(vm).await {
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

/// Runs a program in the guest.
pub async fn exec(vm: &Vm, program: GuestProgram<'_>, limit: Duration) -> Result<ProgramEnded, ExecError> {
    if !has_agent(vm).await {
        return Err(ExecError::NoAgent);
    }
    let GuestProgram { path, arguments, input } = program;
    let (deadline, program) = (Instant::now() + limit, Program { path, arguments, input, output: true });
    match vm.ask_agent(async |agent| agent.run(program, deadline).await).await {
        Ok(Exited { code, output }) => Ok(ProgramEnded { code, output }),
        Err(error) => Err(ExecError::Failed(error.to_string())),
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

/// Whether the guest's file systems are frozen for a capture: where nothing outlives the guest there is nothing to keep
/// in order.
pub fn freezes(launch: &Launch) -> bool {
    launch.disk.is_some()
}

/// Freezes the guest's file systems, so that the disk is what a guest that was shut down would have left; without an
/// agent, or when it does not want to, the disk is as after a loss of power. What is frozen is thawed by [`thaw`].
pub async fn freeze(vm: &Vm, launch: &Launch) -> bool {
    if !freezes(launch) || !has_agent(vm).await {
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

/// Thaws the file systems of a guest that may have been frozen for a capture of which nothing came, or that was restored:
/// it sleeps frozen. Nothing is done where none is.
pub async fn thaw_again(vm: &Vm, launch: &Launch) {
    if freezes(launch) && has_agent(vm).await {
        thaw(vm).await;
    }
}

/// Thaws the guest's file systems.
pub async fn thaw(vm: &Vm) {
    let deadline = within(THAW_MS_MAX);
    if let Err(error) = vm.ask_agent(async |agent| agent.thaw(deadline).await).await {
        tracing::error!(pid = vm.process.pid, %error, "the guest's file systems may still be frozen");
    }
}

async fn has_agent(vm: &Vm) -> bool {
    vm.listeners().await.is_ok_and(|listeners| listeners.agent == Listener::Present)
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
    fn the_scripts_are_such_that_a_shell_can_read_them() {
        for script in [FALLBACK, INTRODUCE] {
            let status = std::process::Command::new("/bin/busybox").args(["sh", "-n", "-c", script]).status();
            assert!(status.unwrap().success());
        }
    }
}
