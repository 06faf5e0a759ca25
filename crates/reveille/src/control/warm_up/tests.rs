use std::collections::VecDeque;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::control::cable::Stream;
use crate::control::ready::NotReady;
use crate::profiles;

/// A guest on loopback: an HTTP service, and programs that end as they are told.
struct Guest {
    port: u16,
    /// What was asked for, in order.
    asked: Arc<Mutex<Vec<String>>>,
    /// How the next programs end; after these all end well.
    ends: Mutex<VecDeque<Result<ProgramEnded, ExecError>>>,
    ran: Mutex<Vec<Vec<String>>>,
}

#[async_trait]
impl Cable for Guest {
    async fn connect(&self, port: u16) -> Result<Box<dyn Stream>, NotReady> {
        if port != 80 {
            return Err(NotReady::Refused { port });
        }
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await;
        Ok(Box::new(stream.map_err(|error| NotReady::Unreachable { detail: error.to_string() })?))
    }
}

#[async_trait]
impl Programs for Guest {
    async fn exec(&self, program: GuestProgram<'_>, _: Duration) -> Result<ProgramEnded, ExecError> {
        let mut said = vec![program.path.to_owned()];
        said.extend(program.arguments.iter().map(|argument| (*argument).to_owned()));
        self.ran.lock().unwrap().push(said);
        let next = self.ends.lock().unwrap().pop_front();
        next.unwrap_or_else(|| Ok(ProgramEnded { code: Some(0), output: b"7 bytes\n".to_vec() }))
    }
}

impl Guest {
    async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        tokio::spawn(serve(listener, Arc::clone(&asked)));
        Self { port, asked, ends: Mutex::default(), ran: Mutex::default() }
    }

    async fn run(&self, set: &str, limit: Duration) -> Ended {
        let (profile, faults) = profiles::read(set);
        assert_eq!(faults, []);
        let spec = serde_json::json!({"name": "a.vm.test", "image": "i", "ports": ["udp/53", "tcp/80"]});
        let spec = Arc::new(serde_json::from_value(spec).unwrap());
        let order = Order {
            role: reveille_core::model::Role::Primary,
            instance: InstanceId(1),
            start: 1,
            spec,
            warm_up: Some(WarmUpSet::Restore),
        };
        let deadline = Instant::now() + limit;
        let (programs, cable, set) = (self, self, WarmUpSet::Restore);
        Run { programs, order: &order, cable, set, deadline }.set(&profile.restore).await
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

async fn serve(listener: TcpListener, asked: Arc<Mutex<Vec<String>>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let asked = Arc::clone(&asked);
        tokio::spawn(async move {
            let (mut head, mut part) = (Vec::new(), [0; 1_024]);
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read(&mut part).await {
                    Ok(count) if count > 0 => head.extend_from_slice(&part[..count]),
                    Ok(_) | Err(_) => break,
                }
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let Some(path) = head.split(' ').nth(1).map(str::to_owned) else { return };
            let (status, body) = match path.as_str() {
                "/list" => (200, "/a\n# no path\n  /b\n/with space\n".to_owned()),
                "/gone" => (404, String::new()),
                "/hang" => return std::future::pending().await,
                _ => (200, "x".repeat(1_000)),
            };
            asked.lock().unwrap().push(path);
            let length = body.len();
            let reply =
                format!("HTTP/1.1 {status} S\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
            let _ = stream.write_all(reply.as_bytes()).await;
        });
    }
}

const LONG: Duration = Duration::from_secs(30);
/// What a request that is never answered is waited for.
const SHORT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn urls_are_asked_for_in_order_and_as_often_as_is_said() {
    let guest = Guest::start().await;
    let set = r#"
        [restore]
        [[restore.step]]
        wait_for = { ready = true }
        [[restore.step]]
        http = { paths = ["/front"], list = "/list", times = 2, parallel = 1 }
    "#;
    let ended = guest.run(set, LONG).await;
    assert_eq!((ended.result(), ended.runs), (WarmUpResult::Done, 1), "{:?}", ended.steps);
    assert_eq!(guest.asked(), ["/list", "/front", "/a", "/b", "/front", "/a", "/b"]);
    assert_eq!(ended.steps[1].detail, "6 answers, 6000 bytes");
    // What is too much is not asked for, and a list that is not there is no fault beside paths.
    let set = r#"
        [restore]
        [[restore.step]]
        http = { paths = ["/front"], list = "/gone" }
        [[restore.step]]
        http = { list = "/gone" }
        [[restore.step]]
        http = { paths = ["/gone", "/front"], port = 80 }
        [[restore.step]]
        http = { paths = ["/"], port = 81 }
    "#;
    let ended = guest.run(set, LONG).await;
    assert_eq!(ended.result(), WarmUpResult::Incomplete);
    let details: Vec<&str> = ended.steps.iter().map(|step| step.detail.as_str()).collect();
    assert_eq!(
        details,
        [
            "1 answers, 1000 bytes; without the list: GET /gone was answered with status 404",
            "GET /gone was answered with status 404",
            "1 requests failed (GET /gone was answered with status 404); 1 answers, 1000 bytes",
            "1 requests failed (the guest refused a connection to port 81); 0 answers, 0 bytes",
        ]
    );
}

#[tokio::test]
async fn connections_are_open_together_and_what_is_sent_has_to_be_answered() {
    let guest = Guest::start().await;
    let set = r#"
        [restore]
        [[restore.step]]
        tcp = { connections = 8 }
        [[restore.step]]
        tcp = { connections = 2, send = "GET / HTTP/1.1\r\n\r\n", expect = "200 S" }
        [[restore.step]]
        tcp = { send = "GET /gone HTTP/1.1\r\n\r\n", expect = "200 S" }
        [[restore.step]]
        tcp = { port = 443 }
    "#;
    let ended = guest.run(set, LONG).await;
    let details: Vec<&str> = ended.steps.iter().map(|step| step.detail.as_str()).collect();
    let expected = [
        "8 connections",
        "2 connections",
        "1 of 1 connections: port 80 did not answer with \"200 S\"",
        "1 of 1 connections: the guest refused a connection to port 443",
    ];
    assert_eq!(details, expected);
}

#[tokio::test]
async fn each_failure_leads_to_what_its_step_says() {
    let step = |policy: &str| {
        format!(
            "[restore]\n[[restore.step]]\nname = \"first\"\nexec = {{ path = \"/first\", args = [\"x\"] }}\n{policy}\n\
             [[restore.step]]\nname = \"second\"\nexec = {{ path = \"/second\" }}\n"
        )
    };
    let bad = || Ok(ProgramEnded { code: Some(3), output: b"\n no table\nmore".to_vec() });
    let cases = [
        // (policy, how often it fails, runs, programs run, result)
        ("", 1, 1, 2, WarmUpResult::Incomplete),
        ("retries = 2", 2, 1, 4, WarmUpResult::Done),
        ("on_failure = \"fail\"", 1, 1, 1, WarmUpResult::Failed),
        ("on_failure = \"retry\"", 2, 3, 4, WarmUpResult::Done),
        ("on_failure = \"retry\"", 9, SET_RUNS_MAX, 3, WarmUpResult::Failed),
    ];
    for (policy, failures, runs, programs, result) in cases {
        let guest = Guest::start().await;
        *guest.ends.lock().unwrap() = (0..failures).map(|_| bad()).collect();
        let ended = guest.run(&step(policy), LONG).await;
        let ran = guest.ran.lock().unwrap().len();
        assert_eq!((ended.runs, ran, ended.result()), (runs, programs, result), "{policy} {failures}");
        if result == WarmUpResult::Failed {
            let failed = ("first".to_owned(), "it ended with status 3: no table".to_owned());
            assert_eq!(ended.failed, Some(failed));
        }
        assert_eq!(guest.ran.lock().unwrap()[0], ["/first", "x"]);
    }
}

#[tokio::test]
async fn a_set_has_its_time_and_what_is_not_done_by_then_has_failed() {
    let guest = Guest::start().await;
    let set = r#"
        [restore]
        [[restore.step]]
        http = { paths = ["/hang"] }
        timeout_ms = 60000
        retries = 5
        [[restore.step]]
        name = "late"
        exec = { path = "/late" }
    "#;
    let ended = guest.run(set, SHORT).await;
    let seen: Vec<(WarmUpResult, u32)> = ended.steps.iter().map(|step| (step.result, step.tries)).collect();
    assert_eq!(seen, [(WarmUpResult::Failed, 1), (WarmUpResult::Skipped, 0)]);
    assert_eq!(
        (ended.result(), ended.steps[1].detail.as_str()),
        (WarmUpResult::Incomplete, "there was no time left for it")
    );
    assert!(guest.ran.lock().unwrap().is_empty());
    let ended = guest.run(&format!("{set}on_failure = \"retry\"\n"), SHORT).await;
    assert_eq!((ended.result(), ended.runs), (WarmUpResult::Failed, 1), "and is not begun again");
}

#[tokio::test]
async fn a_guest_without_an_agent_is_told_so_and_files_are_read_by_its_shell() {
    let guest = Guest::start().await;
    guest.ends.lock().unwrap().push_back(Err(ExecError::NoAgent));
    let set = r#"
        [restore]
        [[restore.step]]
        exec = { path = "/etc/reveille/warm-up" }
        [[restore.step]]
        prefetch = { files = ["/var/cache/*", "/srv/a b"], mib_max = 1 }
    "#;
    let ended = guest.run(set, LONG).await;
    assert_eq!(ended.steps[0].detail, "the guest has no agent; add qemu-guest-agent to its image");
    assert_eq!(ended.steps[1].detail, "7 bytes");
    let shell = ["/bin/sh", "-s", "--", "1048576", "/var/cache/*", "/srv/a b"];
    assert_eq!(guest.ran.lock().unwrap()[1], shell);
}

#[test]
fn the_script_that_reads_files_takes_what_there_is_and_no_more() {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a b"), "x".repeat(700)).unwrap();
    std::fs::write(dir.path().join("c"), "x".repeat(600)).unwrap();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    let read = |left: &str| {
        let pattern = format!("{}/*", dir.path().display());
        let nothing = format!("{}/nothing*", dir.path().display());
        let mut shell = Command::new("/bin/sh");
        shell.args(["-s", "--", left, &nothing, &pattern]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = shell.spawn().unwrap();
        child.stdin.take().unwrap().write_all(steps::PREFETCH.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(read("100000"), (true, "1300 bytes\n".to_owned()));
    assert_eq!(read("1000"), (true, "1000 bytes\n".to_owned()));
}
