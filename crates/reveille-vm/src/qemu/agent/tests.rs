//! An agent at the other end that does what it should not.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::task::JoinHandle;

use super::*;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn at_once() -> Instant {
    Instant::now() + Duration::from_millis(20)
}

/// What is sent for a command with these arguments; `None` ends the connection.
type Answer = fn(&str, &Value) -> Option<Vec<u8>>;

/// The other end: answers a line with what `answer` makes of it.
fn serve(before: &'static [u8], answer: Answer) -> (Agent, JoinHandle<Vec<String>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let serving = tokio::spawn(async move {
        let (reading, mut writing) = theirs.into_split();
        writing.write_all(before).await.unwrap();
        let mut asked = Vec::new();
        let mut reading = BufReader::new(reading);
        loop {
            let mut line = Vec::new();
            if reading.read_until(b'\n', &mut line).await.unwrap_or(0) == 0 {
                return asked;
            }
            let line = line.strip_prefix(&[DELIMITER]).unwrap_or(&line);
            let command: Value = serde_json::from_slice(line).unwrap();
            let name = command["execute"].as_str().unwrap();
            asked.push(name.to_owned());
            match answer(name, &command["arguments"]) {
                Some(bytes) if writing.write_all(&bytes).await.is_ok() => {}
                Some(_) | None => return asked,
            }
        }
    });
    (Agent::over(ours), serving)
}

fn said(value: Value) -> Option<Vec<u8>> {
    Some(format!("{value}\n").into_bytes())
}

fn synced(arguments: &Value) -> Option<Vec<u8>> {
    Some([&[DELIMITER], format!("{{\"return\": {}}}\n", arguments["id"]).as_bytes()].concat())
}

#[tokio::test]
async fn answers_of_an_earlier_session_are_not_taken_for_ours() {
    let (mut agent, _serving) = serve(
        b"urn\": 1}\n\xff{\"return\": 4711}\n{\"return\": \"frozen\"}\n",
        |name, arguments| match name {
            "guest-sync-delimited" => synced(arguments),
            "guest-fsfreeze-status" => said(json!({ "return": "thawed" })),
            _ => said(json!({ "error": { "class": "CommandNotFound", "desc": "no\u{7} such" } })),
        },
    );
    assert_eq!(agent.freeze_status(soon()).await.unwrap(), Freeze::Thawed);
    let refused = agent.freeze(soon()).await.unwrap_err();
    assert_eq!(refused.to_string(), "the guest's agent refused `guest-fsfreeze-freeze`: no such");
    // A refusal is an answer: no new beginning is needed.
    assert_eq!(agent.freeze_status(soon()).await.unwrap(), Freeze::Thawed);
}

#[tokio::test]
async fn a_late_answer_is_not_taken_for_that_of_the_next_command() {
    let (mut agent, serving) = serve(b"", |name, arguments| match name {
        // What it had been silent on comes first.
        "guest-sync-delimited" => Some([b"{\"return\": 7}\n".to_vec(), synced(arguments).unwrap()].concat()),
        "guest-fsfreeze-thaw" => Some(Vec::new()),
        _ => said(json!({ "return": 3 })),
    });
    assert!(matches!(
        agent.thaw(at_once()).await,
        Err(AgentError::Silent { command: "guest-fsfreeze-thaw" })
    ));
    assert_eq!(agent.freeze(soon()).await.unwrap(), 3);
    drop(agent);
    let asked = serving.await.unwrap();
    let sync = "guest-sync-delimited";
    assert_eq!(asked, [sync, "guest-fsfreeze-thaw", sync, "guest-fsfreeze-freeze"]);
}

#[tokio::test]
async fn nothing_is_asked_of_an_agent_that_does_not_answer() {
    let (mut agent, serving) = serve(b"", |_, _| Some(Vec::new()));
    assert!(matches!(agent.set_time(1, at_once()).await, Err(AgentError::Silent { .. })));
    drop(agent);
    assert_eq!(serving.await.unwrap(), ["guest-sync-delimited"]);

    let (mut agent, _serving) = serve(b"", |_, _| None);
    assert!(matches!(agent.ping(soon()).await, Err(AgentError::Closed)));
    assert!(matches!(agent.ping(soon()).await, Err(AgentError::Closed)));
}

#[tokio::test]
async fn floods_and_lies_end_in_an_error() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let flood = tokio::spawn(async move { while theirs.write_all(&[b'x'; 65_536]).await.is_ok() {} });
    let mut agent = Agent::over(ours);
    assert!(matches!(agent.ping(soon()).await, Err(AgentError::Garbage(WireFault::Flood))));
    drop(agent);
    flood.await.unwrap();

    let (mut agent, _serving) = serve(b"", |name, arguments| match name {
        "guest-sync-delimited" => synced(arguments),
        "guest-exec" => said(json!({ "return": { "pid": "\u{1b}[2Jone" } })),
        "guest-info" => {
            said(json!({ "return": { "supported_commands": [1, {}, { "name": "a\nb" }], "version": 9 } }))
        }
        "guest-network-get-interfaces" => {
            said(json!({ "return": [{ "name": "eth0", "ip-addresses": 4 }, { "no": 1 }, 5] }))
        }
        _ => said(json!({ "return": -1, "more": [] })),
    });
    let program = Program { path: "/bin/true", arguments: &[], input: b"", output: false };
    let odd = agent.run(program, soon()).await.unwrap_err().to_string();
    assert!(!odd.contains('\u{1b}'), "{odd:?}");
    let info = agent.info(soon()).await.unwrap();
    assert_eq!((info.version.as_str(), info.commands), ("", BTreeSet::from(["ab".to_owned()])));
    let interfaces = agent.interfaces(soon()).await.unwrap();
    assert_eq!(interfaces, [Interface { name: "eth0".to_owned(), mac: None, addresses: Vec::new() }]);
    assert!(matches!(agent.thaw(soon()).await, Err(AgentError::Odd { .. })));
}

#[tokio::test]
async fn a_program_that_never_ends_is_not_waited_for() {
    let (mut agent, _serving) = serve(b"", |name, arguments| match name {
        "guest-sync-delimited" => synced(arguments),
        "guest-exec" if arguments["path"] == "/ends" => said(json!({ "return": { "pid": 1 } })),
        "guest-exec" => said(json!({ "return": { "pid": 2 } })),
        _ if arguments["pid"] == 1 => {
            said(json!({ "return": { "exited": true, "exitcode": 3, "out-data": "Zm9v" } }))
        }
        _ => said(json!({ "return": { "exited": false } })),
    });
    let ends = Program { path: "/ends", arguments: &["x"], input: b"y", output: true };
    let exited = agent.run(ends, soon()).await.unwrap();
    assert_eq!(exited, Exited { code: Some(3), output: b"foo".to_vec() });
    let endless = Program { path: "/endless", ..ends };
    // While it is started, asked after, or between two such questions: that depends on the host.
    assert!(matches!(agent.run(endless, at_once()).await, Err(AgentError::Silent { .. })));
}
