//! The client against a real server: every call, every error as a sentence, and the event stream.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what failed by failing"
)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use reveille_api::events::Event;
use reveille_api::token_file::{Places, TokenFile, find_token};
use reveille_api::{Anonymous, Client, ClientError, Connections, RolloverStep, Scope, Time, Wait};
use reveille_core::model::{Phase, Timestamp, VmState};
use support::{Daemon, LIMIT, name, spec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn every_call_makes_the_round_trip() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::None).await;
    let client = daemon.client(Scope::Admin);
    let hello = name("hello");

    let added = client.add_service(&spec("new.vm.test")).await.unwrap();
    assert_eq!(added.summary.name, name("new.vm.test"));
    let names: Vec<String> =
        client.services().await.unwrap().iter().map(|service| service.name.to_string()).collect();
    assert_eq!(names, ["hello.vm.test", "new.vm.test"]);
    client.remove_service(&name("new")).await.unwrap();
    assert_eq!(client.services().await.unwrap().len(), 1);

    let begun = client.wake(&hello, Wait::UntilAccepted).await.unwrap();
    assert!(!begun.done);
    let awake = client.wake(&hello, Wait::UntilDone).await.unwrap();
    assert_eq!((awake.phase, awake.state, awake.done), (Phase::Active, VmState::Active, true));
    assert_eq!(client.service(&hello).await.unwrap().summary.phase, Phase::Active);
    daemon.memory.open_connections("hello.vm.test", 1);
    let busy = client.hibernate(&hello, Connections::Keep, Wait::UntilDone).await.unwrap_err();
    assert_eq!(busy.to_string(), "hello has 1 open connections");
    let asleep = client.hibernate(&hello, Connections::Cut, Wait::UntilDone).await.unwrap();
    assert_eq!(asleep.phase, Phase::Hibernated);
    assert_eq!(client.terminate(&hello, Wait::UntilDone).await.unwrap().phase, Phase::Off);

    let why = client.why(&hello, 2).await.unwrap();
    assert_eq!((why.decisions.len(), why.wakes.len()), (2, 1));
    assert_eq!(why.wakes[0].stages_ms.reached().collect::<Vec<_>>(), [("decided", 0.25), ("ready", 133.4)]);
    let page = client.wakes(&hello, None, 3).await.unwrap();
    let older = client.wakes(&hello, page.next_cursor.as_deref(), 3).await.unwrap();
    let seqs: Vec<u64> = page.items.iter().chain(&older.items).map(|wake| wake.seq).collect();
    assert_eq!((seqs, older.next_cursor), (vec![5, 4, 3, 2, 1], None));
    assert_eq!(client.host().await.unwrap().zones, [name("vm.test")]);
}

#[tokio::test]
async fn a_refusal_is_one_sentence_with_its_problem() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::Read).await;
    let error = daemon.client(Scope::Read).service(&name("nobody")).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no service nobody; `reveille service list` shows what there is");
    assert_eq!(error.problem().map(|problem| &*problem.kind), Some("/problems/unknown-service"));

    let nobody = Client::new(&daemon.url()).unwrap();
    let error = nobody.wake(&name("hello"), Wait::UntilDone).await.unwrap_err().to_string();
    assert!(error.contains("--token-file"), "{error}");

    let mut wrong = spec("new.vm.test");
    wrong.policy.idle_ms = 1;
    wrong.image = String::new();
    let error = daemon.client(Scope::Admin).add_service(&wrong).await.unwrap_err();
    assert_eq!(error.problem().unwrap().faults.len(), 2);
    assert!(error.to_string().contains("idle_ms = 1: 100 to"), "{error}");
}

#[tokio::test]
async fn who_is_not_there_is_told_with_what_to_do() {
    // Bound, so that no other test gets the port, but not listening.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let free = socket.local_addr().unwrap();
    let error = Client::new(&format!("http://{free}")).unwrap().host().await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("no daemon answers at http://{free}; start one with")), "{error}");

    for url in
        ["", "127.0.0.1:8053", "https://localhost", "http://", "http://a/b", "http://u@h", "http://h?x"]
    {
        assert!(matches!(Client::new(url), Err(ClientError::BadUrl { .. })), "{url}");
    }
    for url in ["http://localhost:8053", "http://[::1]:8053/", "http://127.0.0.1"] {
        assert!(Client::new(url).is_ok(), "{url}");
    }
}

/// A server that answers every connection with these bytes.
async fn other_server(answer: Vec<u8>) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1_024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(&answer).await;
        }
    });
    (address, task)
}

#[tokio::test]
async fn what_is_no_reveille_is_told_and_never_read_without_end() {
    let page = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>".to_vec();
    let missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec();
    for answer in [page, missing] {
        let (address, task) = other_server(answer).await;
        let error = Client::new(&format!("http://{address}")).unwrap().host().await.unwrap_err();
        assert!(matches!(error, ClientError::NotUnderstood { .. }), "{error}");
        task.abort();
    }
    let mut huge = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    huge.resize(reveille_api::client::RESPONSE_BYTES_MAX + 4_096, b' ');
    for answer in [huge, b"SSH-2.0-OpenSSH\r\n".to_vec()] {
        let (address, task) = other_server(answer).await;
        let error = Client::new(&format!("http://{address}")).unwrap().host().await.unwrap_err();
        assert!(matches!(error, ClientError::Broken { .. }), "{error}");
        task.abort();
    }
}

#[tokio::test]
async fn the_command_line_of_the_same_user_needs_no_arguments() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::None).await;
    let dir = tempfile::tempdir().unwrap();
    let places = Places::of(vec![dir.path().join("reveille")]);
    let _file = TokenFile::write(&places, daemon.api, daemon.token(Scope::Admin)).unwrap();
    let client = Client::new(&format!("http://localhost:{}", daemon.api.port())).unwrap();
    let token = find_token(None, None, &places, &client.addresses().await.unwrap()).unwrap();
    assert!(client.with_token(token).wake(&name("hello"), Wait::UntilDone).await.unwrap().done);
}

#[tokio::test]
async fn zones_are_listed_and_their_keys_rolled() {
    let daemon = Daemon::start(&[], Anonymous::None).await;
    let client = daemon.client(Scope::Admin);
    let zones: Vec<String> = client.zones().await.unwrap().iter().map(|zone| zone.name.to_string()).collect();
    assert_eq!(zones, ["lab.test", "vm.test"]);
    let zone = name("vm.test");
    assert_eq!(client.zone_keys(&zone).await.unwrap().next_step, "nothing");
    assert_eq!(client.rollover(&zone, RolloverStep::Begin).await.unwrap().next_step, "begun");
    assert_eq!(client.rollover(&zone, RolloverStep::DsSeen).await.unwrap().next_step, "seen");
    let refused = |error: ClientError| error.problem().map(|problem| (problem.status, problem.kind.clone()));
    let unsigned = client.rollover(&name("lab.test"), RolloverStep::Begin).await.unwrap_err();
    assert!(unsigned.to_string().contains("not signed"), "{unsigned}");
    assert_eq!(refused(unsigned).unwrap().0, 409);
    let unknown = client.zone_keys(&name("no.test")).await.unwrap_err();
    assert!(unknown.to_string().contains("reveille zone list"), "{unknown}");
    assert_eq!(refused(unknown).unwrap().0, 404);
    assert_eq!(client.dns().await.unwrap().queries["udp"], 12);
}

fn removed(at: u64, service: &str) -> Event {
    Event::Removed { at: Time(Timestamp::from_ms(at)), service: name(service) }
}

async fn next(stream: &mut reveille_api::client::EventStream) -> Option<Event> {
    tokio::time::timeout(LIMIT, stream.next()).await.expect("an event").unwrap()
}

#[tokio::test]
async fn events_arrive_as_they_happen_and_only_those_asked_for() {
    let daemon = Daemon::start(&["hello.vm.test", "echo.vm.test"], Anonymous::None).await;
    let client = daemon.client(Scope::Operate);
    let mut all = client.events(None).await.unwrap();
    let mut echo = client.events(Some(&name("echo.vm.test"))).await.unwrap();
    client.wake(&name("hello"), Wait::UntilDone).await.unwrap();
    daemon.memory.events.send(removed(1, "echo.vm.test")).unwrap();
    match next(&mut all).await {
        Some(Event::Phase { service, phase: Phase::Active, .. }) => {
            assert_eq!(service, name("hello.vm.test"))
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(next(&mut all).await, Some(removed(1, "echo.vm.test")));
    assert_eq!(next(&mut echo).await, Some(removed(1, "echo.vm.test")));

    let stranger = Client::new(&daemon.url()).unwrap().events(None).await.err().unwrap();
    assert_eq!(stranger.problem().map(|problem| problem.status), Some(401));

    // An open stream does not keep the server from stopping, and its end is an end, not an error.
    daemon.stop().await;
    assert_eq!(next(&mut all).await, None);
}

#[tokio::test]
async fn a_slow_reader_is_told_how_much_it_missed() {
    let daemon = Daemon::start(&[], Anonymous::Read).await;
    let mut stream = Client::new(&daemon.url()).unwrap().events(None).await.unwrap();
    // This test's runtime has one thread: the stream's task does not run between these sends, and the channel
    // keeps four.
    for at in 1..=10 {
        daemon.memory.events.send(removed(at, "hello.vm.test")).unwrap();
    }
    assert_eq!(next(&mut stream).await, Some(Event::Lagged { missed: 6 }));
    assert_eq!(next(&mut stream).await, Some(removed(7, "hello.vm.test")));
}

#[tokio::test]
async fn connections_that_ask_nothing_keep_nobody_out_and_interrupt_nobody() {
    /// More than there are places for.
    const IDLE: usize = 300;
    /// Less than after which an idle connection is closed anyway.
    const WAIT_MAX: Duration = Duration::from_secs(10);
    const ASKED: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::Read).await;
    let mut events = Client::new(&daemon.url()).unwrap().events(None).await.unwrap();
    let (mut idle, mut answer) = (Vec::new(), [0; 1_024]);
    for number in 0..IDLE {
        let mut stream = TcpStream::connect(daemon.api).await.unwrap();
        // Each other one asks at least once.
        if number % 2 == 0 {
            stream.write_all(ASKED).await.unwrap();
            let read = tokio::time::timeout(WAIT_MAX, stream.read(&mut answer)).await;
            let read = read.unwrap_or_else(|_| panic!("no answer on connection {number}")).unwrap();
            assert!(answer[..read].starts_with(b"HTTP/1.1 200 "), "{number}");
        }
        idle.push(stream);
    }
    // Those that have waited longest are closed, and the others are not.
    assert_eq!(idle[0].read(&mut answer).await.unwrap(), 0);
    let last = idle.last_mut().unwrap();
    last.write_all(ASKED).await.unwrap();
    assert!(last.read(&mut answer).await.unwrap() > 0);
    // Nor is who waits for what happens.
    daemon.memory.events.send(removed(1, "hello.vm.test")).unwrap();
    assert_eq!(next(&mut events).await, Some(removed(1, "hello.vm.test")));
}

#[tokio::test]
async fn readers_of_events_are_limited_and_a_place_is_free_again_when_one_leaves() {
    let daemon = Daemon::start(&[], Anonymous::Read).await;
    let client = Client::new(&daemon.url()).unwrap();
    let mut streams = Vec::new();
    let refused = loop {
        match client.events(None).await {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
        assert!(streams.len() < 1_000);
    };
    assert_eq!(refused.problem().map(|problem| &*problem.kind), Some("/problems/too-many-streams"));
    streams.clear();
    let again = async {
        while client.events(None).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, again).await.expect("the places are free again");
}
