//! What the server answers, on the wire.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what failed by failing"
)]

mod support;

use reveille_api::{Anonymous, Scope};
use support::Daemon;

const JSON: &str = "Content-Type: application/json\r\n";
const HELLO: &str = r#"{"name":"new.vm.test","image":"demo","ports":["tcp/80"]}"#;

#[tokio::test]
async fn each_endpoint_takes_who_may_and_refuses_who_may_not() {
    use Scope::{Admin, Operate, Read};
    let endpoints = [
        ("GET", "/v1/services", "", Read, 200),
        ("GET", "/v1/services/hello", "", Read, 200),
        ("GET", "/v1/services/hello/why", "", Read, 200),
        ("GET", "/v1/services/hello/wakes", "", Read, 200),
        ("GET", "/v1/host", "", Read, 200),
        ("GET", "/v1/dns", "", Read, 200),
        ("GET", "/metrics", "", Read, 200),
        ("GET", "/v1/health", "", Read, 200),
        ("GET", "/v1/demand", "", Read, 200),
        ("GET", "/v1/services/hello/demand?hours=2&step_s=60", "", Read, 200),
        ("GET", "/v1/demand/users", "", Operate, 200),
        ("GET", "/v1/demand/users/ann", "", Operate, 200),
        ("GET", "/v1/demand/groups", "", Operate, 200),
        ("GET", "/v1/demand/groups/ann", "", Operate, 200),
        ("GET", "/v1/profiles", "", Read, 200),
        ("GET", "/v1/zones", "", Read, 200),
        ("GET", "/v1/zones/vm.test/keys", "", Read, 200),
        ("POST", "/v1/zones/vm.test/rollover", "", Admin, 200),
        ("POST", "/v1/services/hello/wake?wait=true", "", Operate, 200),
        ("POST", "/v1/services/hello/hibernate", "", Operate, 200),
        ("POST", "/v1/services/hello/terminate", "", Operate, 200),
        ("GET", "/v1/services/hello/versions", "", Read, 200),
        ("GET", "/v1/services/hello/versions/2", "", Read, 200),
        ("POST", "/v1/services/hello/versions/2/verify", "", Operate, 200),
        ("POST", "/v1/services/hello/versions/1/restore?wait=true", "", Admin, 200),
        ("POST", "/v1/services/hello/versions/2/pin", "", Admin, 204),
        ("DELETE", "/v1/services/hello/versions/2/pin", "", Admin, 204),
        ("DELETE", "/v1/services/hello/versions/2", "", Admin, 204),
        ("POST", "/v1/depot/prune?dry_run=true", "", Admin, 200),
        ("POST", "/v1/services/hello/redeploy", r#"{"image":"demo"}"#, Admin, 200),
        ("POST", "/v1/services/hello/rollback", "", Admin, 200),
        ("POST", "/v1/reload", "", Admin, 200),
        ("POST", "/v1/services", HELLO, Admin, 201),
        ("DELETE", "/v1/services/new.vm.test", "", Admin, 204),
    ];
    for anonymous in [Anonymous::Read, Anonymous::None] {
        let daemon = Daemon::start(&["hello.vm.test"], anonymous).await;
        for (method, path, body, needed, success) in endpoints {
            let more = if body.is_empty() { "" } else { JSON };
            for token in [None, Some(Read), Some(Operate), Some(Admin)] {
                let answer = daemon.ask(method, path, token, more, body).await;
                let has = token.or((anonymous == Anonymous::Read).then_some(Read));
                let expected = match has {
                    Some(has) if has >= needed => success,
                    Some(_) if token.is_some() => 403,
                    Some(_) | None => 401,
                };
                assert_eq!(
                    answer.status, expected,
                    "{method} {path} with {token:?}, {anonymous:?}: {answer:?}"
                );
                match expected {
                    401 => {
                        assert_eq!(answer.problem(), "/problems/unauthorized");
                        assert!(answer.head.contains("www-authenticate: bearer"), "{answer:?}");
                    }
                    403 => assert_eq!(answer.problem(), "/problems/scope-too-small"),
                    _ => {}
                }
            }
        }
    }
}

#[tokio::test]
async fn a_token_that_is_wrong_revoked_or_expired_opens_nothing_not_even_what_is_open() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::Read).await;
    let stranger = reveille_api::Token::generate().unwrap();
    let expired = reveille_api::Token::generate().unwrap();
    let at = Some(reveille_core::model::Timestamp::from_ms(1_000));
    let grant = reveille_api::TokenGrant { name: "old".to_owned(), scope: Scope::Admin, expires: at };
    daemon.access.grant(expired.hash(), grant).unwrap();
    let basic = format!("Basic {}", daemon.token(Scope::Admin).secret());
    let bearer = |secret: &str| format!("Bearer {secret}");
    for value in
        [bearer(stranger.secret()), bearer(expired.secret()), bearer("x"), "Bearer".to_owned(), basic]
    {
        let answer =
            daemon.ask("GET", "/v1/services", None, &format!("Authorization: {value}\r\n"), "").await;
        assert_eq!((answer.status, answer.problem().as_str()), (401, "/problems/unauthorized"), "{value}");
        assert!(!answer.body.contains("rvl_"), "a secret in an answer: {answer:?}");
    }
    daemon.access.revoke(daemon.token(Scope::Read).hash());
    assert_eq!(daemon.ask("GET", "/v1/services", Some(Scope::Read), "", "").await.status, 401);
}

#[tokio::test]
async fn what_a_proxy_passes_on_is_not_the_host_itself() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::Read).await;
    for header in ["X-Forwarded-For: 192.0.2.1\r\n", "Forwarded: for=192.0.2.1\r\n"] {
        assert_eq!(daemon.ask("GET", "/v1/services", None, header, "").await.status, 401, "{header}");
        assert_eq!(daemon.ask("GET", "/v1/services", Some(Scope::Read), header, "").await.status, 200);
    }
}

#[tokio::test]
async fn pages_of_other_sites_cannot_use_the_api() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::Read).await;
    let with_host = async |host: &str| {
        let request = format!("GET /v1/services HTTP/1.1\r\nConnection: close\r\n{host}\r\n");
        daemon.send(request.as_bytes()).await
    };
    for known in ["127.0.0.1:8053", "localhost", "[::1]:8053", "Reveille.Example"] {
        assert_eq!(with_host(&format!("Host: {known}\r\n")).await.status, 200, "{known}");
    }
    let rebound = with_host("Host: evil.example:8053\r\n").await;
    assert_eq!((rebound.status, rebound.problem().as_str()), (421, "/problems/unknown-host"));
    assert_eq!(with_host("").await.status, 400);
    let absolute =
        b"GET http://evil.example/v1/services HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(daemon.send(absolute).await.status, 421);

    let wake = async |more: &str| {
        daemon.ask("POST", "/v1/services/hello/wake", Some(Scope::Operate), more, "").await
    };
    let same = format!("Origin: http://{}\r\nSec-Fetch-Site: same-origin\r\n", daemon.api);
    assert_eq!(wake(&same).await.status, 202);
    for foreign in [
        "Origin: http://evil.example\r\n",
        "Origin: null\r\n",
        "Origin: http://127.0.0.1:1\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\n",
    ] {
        let answer = wake(foreign).await;
        assert_eq!((answer.status, answer.problem().as_str()), (403, "/problems/cross-site"), "{foreign}");
        assert!(!answer.head.contains("access-control"), "{answer:?}");
    }
}

#[tokio::test]
async fn bad_bodies_are_refused_with_the_place_of_the_fault() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::Read).await;
    let add = async |more: &str, body: &str| {
        daemon.ask("POST", "/v1/services", Some(Scope::Admin), more, body).await
    };

    for kind in ["", "Content-Type: text/plain\r\n", "Content-Type: application/x-www-form-urlencoded\r\n"] {
        let answer = add(kind, HELLO).await;
        assert_eq!((answer.status, answer.problem().as_str()), (415, "/problems/not-json"), "{kind}");
    }
    for body in ["{", "nonsense", "{\"name\":", &format!("{HELLO} and more")] {
        let answer = add(JSON, body).await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, "/problems/bad-json"), "{body}");
        assert!(answer.json()["detail"].as_str().unwrap().contains("column"), "{answer:?}");
    }
    let faulty = [
        (
            r#"{"name":"a.vm.test","image":"demo","ports":["tcp/80"],"policy":{"idle_ms":"soon"}}"#,
            "policy.idle_ms",
        ),
        (r#"{"name":"a.vm.test","image":"demo","ports":["tcp/80","tcp/0"]}"#, "ports[1]"),
        (r#"{"name":"a.vm.test","image":"demo","ports":["tcp/80"],"imge":"x"}"#, "imge"),
        (r#"{"name":"a b","image":"demo","ports":["tcp/80"]}"#, "name"),
        ("[]", "body"),
    ];
    for (body, key) in faulty {
        let answer = add(JSON, body).await;
        assert_eq!((answer.status, answer.problem().as_str()), (422, "/problems/invalid"), "{body}");
        assert_eq!(answer.json()["faults"][0]["key"], key, "{answer:?}");
    }

    // Every fault at once.
    let answer =
        add(JSON, r#"{"name":"test","image":"","ports":[],"policy":{"idle_ms":1,"rest":"cold"}}"#).await;
    assert_eq!(answer.status, 422);
    let keys: Vec<String> = answer.json()["faults"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fault| fault["key"].as_str().unwrap().to_owned())
        .collect();
    for key in ["policy.idle_ms", "policy.rest", "name", "image", "ports"] {
        assert!(keys.iter().any(|found| found == key), "{key} in {keys:?}");
    }
    // And what only the daemon can tell.
    let answer = add(JSON, &HELLO.replace("demo", "missing")).await;
    assert_eq!((answer.status, answer.json()["faults"][0]["key"].as_str()), (422, Some("image")));
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::Read).await;
    let body = format!("{{\"name\":\"{}\"}}", "x".repeat(100_000));
    let answer = daemon.ask("POST", "/v1/services", Some(Scope::Admin), JSON, &body).await;
    assert_eq!((answer.status, answer.problem().as_str()), (413, "/problems/too-large"));

    let chunk = "x".repeat(0x1_0000);
    let chunked = format!("10000\r\n{chunk}\r\n10000\r\n{chunk}\r\n0\r\n\r\n");
    let more = format!("{JSON}Transfer-Encoding: chunked\r\n");
    let bearer = daemon.token(Scope::Admin);
    let head = format!(
        "POST /v1/services HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {}\r\n{more}\r\n",
        bearer.secret()
    );
    assert_eq!(daemon.send(format!("{head}{chunked}").as_bytes()).await.status, 413, "without a length");

    let long = format!("GET /v1/services HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(40_000));
    assert_eq!(daemon.send(long.as_bytes()).await.status, 431);
}

#[tokio::test]
async fn errors_of_the_daemon_have_their_status_and_type() {
    let daemon = Daemon::start(&["hello.vm.test", "twin.a.test", "twin.b.test"], Anonymous::Read).await;
    let get = async |path: &str| daemon.ask("GET", path, None, "", "").await;
    let post = async |path: &str| daemon.ask("POST", path, Some(Scope::Operate), "", "").await;

    let answer = get("/v1/services/nobody").await;
    assert_eq!((answer.status, answer.problem().as_str()), (404, "/problems/unknown-service"));
    let answer = get("/v1/services/twin").await;
    assert_eq!((answer.status, answer.problem().as_str()), (409, "/problems/ambiguous-name"));
    assert_eq!(answer.json()["candidates"], serde_json::json!(["twin.a.test", "twin.b.test"]));
    assert_eq!(get("/v1/services/twin.b.test").await.json()["name"], "twin.b.test");
    let answer = get("/v1/services/a%20b").await;
    assert_eq!((answer.status, answer.problem().as_str()), (422, "/problems/invalid"));
    let exists = HELLO.replace("new", "hello");
    let answer = daemon.ask("POST", "/v1/services", Some(Scope::Admin), JSON, &exists).await;
    assert_eq!((answer.status, answer.problem().as_str()), (409, "/problems/exists"));

    daemon.memory.open_connections("hello.vm.test", 2);
    let answer = post("/v1/services/hello/hibernate").await;
    assert_eq!((answer.status, answer.problem().as_str()), (409, "/problems/busy"));
    assert_eq!(post("/v1/services/hello/hibernate?force=true").await.status, 200);

    daemon.memory.give_up("hello.vm.test");
    let answer = post("/v1/services/hello/wake").await;
    assert_eq!((answer.status, answer.problem().as_str()), (503, "/problems/gave-up"));
    assert!(answer.head.contains("retry-after: 2"), "rounded up: {answer:?}");
    let failure = get("/v1/services/hello").await.json()["failure"].clone();
    assert_eq!(failure["retry_at"], "1970-01-01T00:01:05.000Z");
    assert_eq!(failure["gave_up"], true);
}

#[tokio::test]
async fn paths_methods_and_arguments_that_do_not_exist_are_problems_too() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::Read).await;
    let cases = [
        ("GET", "/", 404, "/problems/no-such-path"),
        ("GET", "/v2/services", 404, "/problems/no-such-path"),
        ("PUT", "/v1/services", 405, "/problems/method-not-allowed"),
        ("GET", "/v1/services/hello/wake", 405, "/problems/method-not-allowed"),
        ("POST", "/v1/services/hello/wake?wiat=true", 400, "/problems/bad-request"),
        ("POST", "/v1/services/hello/wake?wait=perhaps", 400, "/problems/bad-request"),
        ("GET", "/v1/services/%ff", 400, "/problems/bad-request"),
        ("GET", "/v1/services?limit=0", 422, "/problems/invalid"),
        ("GET", "/v1/services?limit=1001", 422, "/problems/invalid"),
        ("GET", "/v1/services?cursor=a%20b", 422, "/problems/invalid"),
    ];
    for (method, path, status, kind) in cases {
        let answer = daemon.ask(method, path, Some(Scope::Admin), "", "").await;
        assert_eq!((answer.status, answer.problem().as_str()), (status, kind), "{method} {path}");
    }
    let answer = daemon.ask("PUT", "/v1/services", Some(Scope::Admin), "", "").await;
    assert!(answer.head.contains("allow: "), "{answer:?}");
}

#[tokio::test]
async fn what_scripts_rely_on_is_in_a_service() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::Read).await;
    let answer = daemon.ask("GET", "/v1/services/hello", None, "", "").await;
    assert!(answer.head.contains("cache-control: no-store"), "{answer:?}");
    let json = answer.json();
    let expected = serde_json::json!({
        "name": "hello.vm.test", "phase": "hibernated", "state": "inactive", "rung": "local",
        "role": "primary", "address": "127.64.0.1", "address6": null, "image": "demo", "kind": "single",
        "ports": ["tcp/8080"], "priority": 0, "open_connections": 0, "held_clients": 2,
        "last_activity": "1970-01-01T00:00:01.000Z", "failure": null, "wake_ms_p50": 180, "wake_ms_p95": 180,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&json[key], value, "{key}");
    }
    let measured = [
        serde_json::json!({ "rung": "local", "wakes": 1, "wake_ms_p50": 180, "wake_ms_p95": 180, "held_kib": null }),
        serde_json::json!({ "rung": "armed", "wakes": 0, "wake_ms_p50": null, "wake_ms_p95": null, "held_kib": 41 << 10 }),
    ];
    let rungs = json["rungs"].as_array().unwrap();
    assert_eq!(rungs.len(), measured.len());
    for (rung, expected) in rungs.iter().zip(&measured) {
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&rung[key], value, "{key}");
        }
        assert_eq!(rung["warm_up_ms_p50"], serde_json::Value::Null, "it has no profile");
    }
    assert_eq!(json["version"]["number"], 3);
    assert_eq!(json["resources"]["memory_mib"], 128);
    assert_eq!(json["policy"]["idle_ms"], 300_000);
    assert_eq!((&json["health"], &json["health_reason"]), (&"unknown".into(), &"it sleeps".into()));
    assert_eq!((&json["health_policy"]["down"], &json["metrics"]), (&3.into(), &serde_json::Value::Null));

    let why = daemon.ask("GET", "/v1/services/hello/why?limit=1", None, "", "").await.json();
    assert_eq!(why["decisions"][0]["what"], "restore from the rung armed");
    assert_eq!(why["decisions"][0]["why"], "an operator asked for it");
    assert_eq!(why["wakes"][0]["at"], "2026-11-22T01:17:05.123Z");
    assert_eq!(why["wakes"][0]["asked_by"], "a DNS query of type 1 from 192.0.2.1");
    assert_eq!(why["wakes"][0]["stages_ms"], serde_json::json!({ "decided": 0.25, "ready": 133.4 }));
    assert_eq!(why["wakes"][0]["outcome"], "ready");
    assert_eq!(why["health"], "unknown", "that of now, beside what it was");
    assert_eq!(why["health_changes"][0]["health"], "down");
    assert_eq!(why["health_changes"][0]["why"], "nothing certain was found for 7 ms");
}

#[tokio::test]
async fn lists_come_in_pages() {
    let daemon = Daemon::start(&["a.vm.test", "b.vm.test", "c.vm.test", "d.vm.test"], Anonymous::Read).await;
    let mut path = "/v1/services?limit=2".to_owned();
    let mut pages = Vec::new();
    loop {
        let page = daemon.ask("GET", &path, None, "", "").await.json();
        let names =
            page["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned());
        pages.push(names.collect::<Vec<_>>());
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/v1/services?limit=2&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(pages, [vec!["a.vm.test", "b.vm.test"], vec!["c.vm.test", "d.vm.test"]]);

    let page = daemon.ask("GET", "/v1/services/a/wakes?limit=2&cursor=4", None, "", "").await.json();
    let seqs: Vec<u64> =
        page["items"].as_array().unwrap().iter().map(|wake| wake["seq"].as_u64().unwrap()).collect();
    assert_eq!((seqs, page["next_cursor"].as_str()), (vec![3, 2], Some("2")));
}

#[tokio::test]
async fn verbs_asked_again_do_no_harm_and_say_what_is_under_way() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::Read).await;
    let post = async |path: &str| daemon.ask("POST", path, Some(Scope::Operate), "", "").await;
    let begun = post("/v1/services/hello/wake").await;
    assert_eq!((begun.status, begun.json()["done"].as_bool()), (202, Some(false)));
    let done = post("/v1/services/hello/wake?wait=true").await;
    assert_eq!((done.status, done.json()["phase"].as_str()), (200, Some("active")));
    let again = post("/v1/services/hello/wake?wait=true").await;
    assert_eq!((again.status, again.json()["changed"].as_bool()), (200, Some(false)));
}

#[tokio::test]
async fn health_is_told_to_everybody_and_readiness_truly() {
    let daemon = Daemon::start(&[], Anonymous::None).await;
    let ask = async |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: pod.internal\r\nConnection: close\r\n\r\n");
        daemon.send(request.as_bytes()).await
    };
    assert_eq!(ask("/healthz").await.status, 200);
    assert_eq!(ask("/readyz").await.status, 200);
    *daemon.memory.ready.lock().unwrap() = Err("the state is being loaded".to_owned());
    let answer = ask("/readyz").await;
    assert_eq!((answer.status, answer.problem().as_str()), (503, "/problems/not-ready"));
    assert_eq!(ask("/healthz").await.status, 200);
}

#[tokio::test]
async fn metrics_are_what_prometheus_reads() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::Read).await;
    let answer = daemon.ask("GET", "/metrics", None, "", "").await;
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{answer:?}");
    for line in [
        "reveille_dns_queries_total{transport=\"udp\"} 12",
        "reveille_dns_ways_total{way=\"fast\"} 10",
        "reveille_dns_responses_total{rcode=\"NOERROR\"} 15",
        "reveille_dns_gate_total{judged=\"rate\",verdict=\"positive_pass\"} 9",
        "reveille_dns_secondary_in_step{zone=\"vm.test\",address=\"127.0.0.1:5301\"} 1",
        "reveille_dns_truncated_total 1",
        "reveille_instances_health{health=\"down\"} 1",
        "reveille_health_probes_total{probe=\"tcp\",found=\"failed\"} 3",
        "reveille_instance_up{service=\"hello.vm.test\",instance=\"i1\"} 0",
        "reveille_instance_cpu_seconds_total{service=\"hello.vm.test\",instance=\"i1\"} 1.234000",
        "reveille_instance_memory_bytes{service=\"hello.vm.test\",instance=\"i1\"} 8192",
        "reveille_instance_reply_seconds_total{service=\"hello.vm.test\",instance=\"i1\"} 0.000750",
        "reveille_log_requests_total{event=\"refused\"} 0",
        "reveille_arrivals_dropped_total 3",
        "reveille_records_total{kind=\"query\",event=\"dropped\"} 7",
        "reveille_services_watched 5",
        "reveille_services_unwatched_total 2",
    ] {
        assert!(answer.body.lines().any(|found| found == line), "{line} is not in {}", answer.body);
    }
    // Each family is described once, before its first sample, and nothing else is there.
    let mut described = "";
    let mut families = std::collections::BTreeSet::new();
    for line in answer.body.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            described = help.split(' ').next().unwrap();
            assert!(families.insert(described), "{described} twice");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let counter = described.ends_with("_total");
            assert_eq!(kind, format!("{described} {}", if counter { "counter" } else { "gauge" }));
        } else {
            assert_eq!(line.split(['{', ' ']).next().unwrap(), described, "{line}");
            assert!(line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() >= 0.0, "{line}");
        }
    }
}
