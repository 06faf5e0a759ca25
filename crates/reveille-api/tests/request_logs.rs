//! Request logs on the wire: what is taken, what is refused and how that is said, and by whom.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what failed by failing"
)]

mod support;

use std::io::{Read, Write};

use reveille_api::types::{DemandRange, Whose};
use reveille_api::{Anonymous, Scope};
use support::{Answer, Daemon, name};

const NDJSON: &str = "Content-Type: application/x-ndjson\r\n";
const PATH: &str = "/v1/request-logs";

/// A line of a log.
fn line(user: &str, service: &str, seconds: &str) -> String {
    format!(
        "{{\"time\":\"2026-11-21T01:17:05Z\",\"user\":\"{user}\",\"service\":\"{service}\",\"seconds\":{seconds}}}\n"
    )
}

/// A request whose body comes in these pieces.
async fn send_chunked(daemon: &Daemon, more: &str, pieces: &[&[u8]]) -> Answer {
    let token = daemon.token(Scope::Operate);
    let mut request = Vec::new();
    write!(
        request,
        "POST {PATH} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
         Transfer-Encoding: chunked\r\n{NDJSON}{more}\r\n",
        daemon.api,
        token.secret(),
    )
    .unwrap();
    for piece in pieces {
        write!(request, "{:x}\r\n", piece.len()).unwrap();
        request.extend_from_slice(piece);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    daemon.send(&request).await
}

#[tokio::test]
async fn each_line_is_taken_or_named_with_what_is_wrong() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::Read).await;
    let log = [
        line("ann", "hello.vm.test", "0.5"),
        "nothing\n".to_owned(),
        line("ann", "hello.vm.test", "-1"),
        "\n".to_owned(),
        line("bob", "elsewhere.example", "2"),
        line("", "hello.vm.test", "2"),
    ]
    .concat();
    let answer = daemon.ask("POST", PATH, Some(Scope::Operate), NDJSON, &log).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let report = answer.json();
    for (what, count) in [
        ("accepted", 2),
        ("refused", 3),
        ("blank", 1),
        ("counted", 1),
        ("elsewhere", 1),
        ("dropped", 0),
        ("faults_left_out", 0),
    ] {
        assert_eq!(report[what], count, "{what}: {report}");
    }
    let faults: Vec<(u64, &str)> = report["faults"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fault| (fault["line"].as_u64().unwrap(), fault["field"].as_str().unwrap_or("")))
        .collect();
    assert_eq!(faults, [(2, ""), (3, "seconds"), (6, "user")]);
    let taken = daemon.memory.requests.lock().unwrap().clone();
    assert_eq!((taken.0.len(), taken.1), (2, 3));
    assert_eq!((&*taken.0[0].user, taken.0[0].seconds), ("ann", 0.5));
}

#[tokio::test]
async fn a_log_of_any_length_is_taken_as_it_comes_and_faults_are_named_up_to_a_number() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::Read).await;
    // Far more than another body may have, cut anywhere; every third line is wrong, and more of them than are named.
    let lines: Vec<String> = (0..60_000)
        .map(|number| if number % 3 == 2 { "{}\n".to_owned() } else { line("ann", "hello.vm.test", "1") })
        .collect();
    let log = lines.concat().into_bytes();
    let pieces: Vec<&[u8]> = log.chunks(70_001).collect();
    let answer = send_chunked(&daemon, "", &pieces).await;
    assert_eq!(answer.status, 200, "{}", answer.head);
    let report = answer.json();
    let faults = report["faults"].as_array().unwrap();
    assert_eq!((&report["accepted"], &report["refused"]), (&40_000.into(), &20_000.into()));
    assert_eq!((faults.len(), &report["faults_left_out"]), (16_384, &(20_000 - 16_384).into()));
    assert!(faults.iter().enumerate().all(|(place, fault)| fault["line"] == 3 * (place as u64 + 1)));
    let taken = daemon.memory.requests.lock().unwrap();
    assert_eq!((taken.0.len(), taken.1), (40_000, 20_000));
}

#[tokio::test]
async fn who_may_not_send_or_sends_something_else_is_told() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::Read).await;
    let log = line("ann", "hello.vm.test", "1");
    for (token, more, status, problem) in [
        (None, NDJSON, 401, "/problems/unauthorized"),
        (Some(Scope::Read), NDJSON, 403, "/problems/scope-too-small"),
        // What a form of a foreign page could send.
        (Some(Scope::Operate), "Content-Type: text/plain\r\n", 415, "/problems/not-json"),
        (Some(Scope::Operate), "Content-Type: application/json\r\n", 415, "/problems/not-json"),
    ] {
        let answer = daemon.ask("POST", PATH, token, more, &log).await;
        assert_eq!((answer.status, &*answer.problem()), (status, problem), "{answer:?}");
    }
    for coding in ["br", "gzip, zstd", "gzip\r\nContent-Encoding: gzip"] {
        let packed = format!("{NDJSON}Content-Encoding: {coding}\r\n");
        let answer = daemon.ask("POST", PATH, Some(Scope::Operate), &packed, &log).await;
        assert_eq!((answer.status, &*answer.problem()), (415, "/problems/content-coding"));
    }
    // Lines are no JSON body elsewhere.
    let answer = daemon.ask("POST", "/v1/services", Some(Scope::Admin), NDJSON, &log).await;
    assert_eq!((answer.status, &*answer.problem()), (415, "/problems/not-json"));
    assert!(daemon.memory.requests.lock().unwrap().0.is_empty());
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn a_packed_log_is_taken_as_the_same_log_is_unpacked() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::Read).await;
    let lines: Vec<String> = (0..6_000)
        .map(|number| match number % 3 {
            2 => "{}\n".to_owned(),
            _ => line(&format!("user {number}"), "hello.vm.test", "1"),
        })
        .collect();
    let log = lines.concat().into_bytes();
    for (coding, packed) in [("gzip", gzip(&log)), ("zstd", zstd::stream::encode_all(&*log, 3).unwrap())] {
        let before = daemon.memory.requests.lock().unwrap().0.len();
        let pieces: Vec<&[u8]> = packed.chunks(997).collect();
        let answer = send_chunked(&daemon, &format!("Content-Encoding: {coding}\r\n"), &pieces).await;
        assert_eq!(answer.status, 200, "{}", answer.head);
        let report = answer.json();
        assert_eq!((&report["accepted"], &report["refused"]), (&4_000.into(), &2_000.into()));
        let faults = report["faults"].as_array().unwrap();
        assert!(faults.iter().enumerate().all(|(place, fault)| fault["line"] == 3 * (place as u64 + 1)));
        let taken = daemon.memory.requests.lock().unwrap();
        assert_eq!((taken.0.len() - before, &*taken.0[before + 1].user), (4_000, "user 1"));
    }
    // The command line's own client packs nothing, and says of what is packed that it is.
    let report = daemon.client(Scope::Operate).send_whole_log(gzip(&log)).await.unwrap();
    assert_eq!((report.lines.accepted, report.faults.len()), (4_000, 2_000));
}

#[tokio::test]
async fn a_damaged_stream_is_told_with_the_line_that_was_reached_and_what_came_before_counts() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::Read).await;
    let log: String =
        (0..6_000).map(|number| line(&format!("user {number}"), "hello.vm.test", "1")).collect();
    let packed = gzip(log.as_bytes());
    let mut odd = packed.clone();
    odd[packed.len() / 2..][..8].fill(0xff);
    for broken in [&packed[..packed.len() / 2], &odd, &packed[..packed.len() - 1]] {
        let before = daemon.memory.requests.lock().unwrap().0.len();
        let answer = send_chunked(&daemon, "Content-Encoding: gzip\r\n", &[broken]).await;
        assert_eq!((answer.status, &*answer.problem()), (400, "/problems/log-damaged"), "{answer:?}");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        let taken = daemon.memory.requests.lock().unwrap().0.len() - before;
        assert!(taken > 2_000, "{taken}: {detail}");
        let taken = format!("and {taken} requests of them taken in");
        assert!(detail.contains("gzip stream is damaged") && detail.contains(&taken), "{taken}: {detail}");
        let read = detail.split_once("of its lines ").unwrap().1.split_once(' ').unwrap().0;
        // What was changed within may be lines all the same; only the checksum at the end tells.
        assert!((2_000..=6_000).contains(&read.parse::<u64>().unwrap()), "{detail}");
    }
}

#[tokio::test]
async fn a_bomb_is_refused_before_it_is_unpacked() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::Read).await;
    // 50 MB of lines that are all the same, and a gigabyte of zeros.
    let zeros = zstd::stream::encode_all(std::io::repeat(0).take(1 << 30), 1).unwrap();
    let lines = line("ann", "hello.vm.test", "1").repeat(500_000);
    for (coding, packed) in [("gzip", gzip(lines.as_bytes())), ("zstd", zeros)] {
        assert!(packed.len() < 1 << 20, "{}", packed.len());
        let pieces: Vec<&[u8]> = packed.chunks(4_096).collect();
        let answer = send_chunked(&daemon, &format!("Content-Encoding: {coding}\r\n"), &pieces).await;
        assert_eq!((answer.status, &*answer.problem()), (413, "/problems/too-dense"), "{}", answer.head);
    }
    assert!(daemon.memory.requests.lock().unwrap().0.len() < 200_000);
    // It still takes others.
    let answer =
        daemon.ask("POST", PATH, Some(Scope::Operate), NDJSON, &line("ann", "hello.vm.test", "1")).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_log_that_breaks_off_says_how_far_it_was_read() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::Read).await;
    let log = line("ann", "hello.vm.test", "1").repeat(2_000);
    let token = daemon.token(Scope::Operate);
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
         Transfer-Encoding: chunked\r\n{NDJSON}\r\n{:x}\r\n{log}\r\nno length\r\n",
        daemon.api,
        token.secret(),
        log.len(),
    );
    let answer = daemon.send(head.as_bytes()).await;
    assert_eq!((answer.status, &*answer.problem()), (400, "/problems/log-broken"), "{answer:?}");
    let detail = answer.json()["detail"].as_str().unwrap().to_owned();
    let taken = daemon.memory.requests.lock().unwrap().0.len();
    assert!(taken > 0 && detail.contains(&format!("{taken} requests of them taken in")), "{detail}");
}

#[tokio::test]
async fn the_client_sends_logs_and_reads_what_they_tell() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::None).await;
    let client = daemon.client(Scope::Operate);
    let log = line("ann", "hello.vm.test", "1") + "{\n";
    let report = client.send_log(log.into_bytes()).await.unwrap();
    assert_eq!((report.lines.accepted, report.lines.refused, report.taken.counted), (1, 1, 1));
    assert_eq!(report.faults[0].line, 2);
    assert_eq!(client.demand().await.unwrap().requests["counted"], 1);
    let users = client.demand_profiles(Whose::Users).await.unwrap();
    assert_eq!(users.iter().map(|user| &*user.name).collect::<Vec<_>>(), ["ann", "bob", "cleo"]);
    // Names are whatever a log says.
    assert_eq!(client.demand_profile(Whose::Groups, "a/b").await.unwrap().name, "a/b");
    let missing = client.demand_profile(Whose::Users, "zoe").await.unwrap_err();
    assert!(missing.to_string().contains("there is no profile of zoe among the users"), "{missing}");
    let range = DemandRange { hours: 3, step_s: 3_600 };
    assert_eq!(client.service_demand(&name("hello"), range).await.unwrap().steps.len(), 3);
    for (hours, step_s) in [(0, 60), (10_000, 3_600), (24, 40), (1, 3_601)] {
        let refused = client.service_demand(&name("hello"), DemandRange { hours, step_s }).await.unwrap_err();
        assert_eq!(refused.problem().unwrap().faults.len(), 1, "{hours} {step_s}");
    }
}
