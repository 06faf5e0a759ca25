//! DNS over HTTPS (RFC 8484) as kdig, dig and curl see it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
#[path = "common/encrypted.rs"]
mod encrypted;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;

use common::{WAIT_MAX, World, active, name, service};
use encrypted::{Encrypted, ask, run};
use reveille_core::answer::ServiceView;
use reveille_core::model::AnswerPolicy;
use reveille_dns::{BindError, EncryptedConfig};
use tempfile::TempDir;

/// A question for an A record, ID 0.
fn question(qname: &str) -> Vec<u8> {
    let mut packet = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    packet.extend(name(qname).as_wire());
    packet.extend([0, 1, 0, 1]);
    packet
}

fn in_address(message: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bits: Vec<u8> = message.iter().flat_map(|byte| (0..8).rev().map(move |n| byte >> n & 1)).collect();
    let six =
        |bits: &[u8]| (0..6).fold(0, |sum, n| sum << 1 | usize::from(bits.get(n).copied().unwrap_or(0)));
    bits.chunks(6).map(|bits| char::from(LETTERS[six(bits)])).collect()
}

/// What curl brings back: status, version of HTTP, headers, body.
struct Fetched {
    status: u16,
    version: String,
    headers: String,
    body: Vec<u8>,
}

/// Fetches with curl; `arguments` end with the address.
fn curl(dir: &Path, arguments: &[&str]) -> Fetched {
    let (headers, body) = (dir.join("headers"), dir.join("body"));
    let _ = fs::remove_file(&body);
    let fixed = ["-s", "-m", "20", "-D", headers.to_str().unwrap(), "-o", body.to_str().unwrap()];
    let said = ["-w", "%{http_code} %{http_version}"];
    let (text, output) = run("curl", &[&fixed[..], &said, arguments].concat());
    assert!(output.status.success(), "curl {arguments:?}: {output:?}");
    let (status, version) = text.split_once(' ').unwrap();
    Fetched {
        status: status.parse().unwrap(),
        version: version.to_owned(),
        headers: fs::read_to_string(headers).unwrap().to_lowercase(),
        body: fs::read(body).unwrap_or_default(),
    }
}

fn file(dir: &Path, content: &[u8]) -> PathBuf {
    let path = dir.join("message");
    fs::write(&path, content).unwrap();
    path
}

/// A server that speaks plain HTTP on a loopback address.
fn behind_a_proxy(mut world: World) -> (World, String) {
    let free = SocketAddr::from(([127, 0, 0, 53], 0));
    let config = EncryptedConfig { tls: Vec::new(), https: vec![free], https_plain: true };
    {
        let _inside = world.runtime.enter();
        world.server.listen_encrypted(&config, None).unwrap();
    }
    let address = world.server.https_addresses()[0];
    (world, format!("http://{address}/dns-query"))
}

#[test]
fn kdig_and_dig_are_answered() {
    let mut server = Encrypted::new(World::new());
    let https = server.https();
    let ca = format!("+tls-ca={}", server.ca().display());
    for (program, arguments) in [
        ("kdig", vec!["+https"]),
        ("kdig", vec!["+https", "+https-get"]),
        ("kdig", vec!["+https", &ca, "+tls-hostname=ns1.vm.test"]),
        ("dig", vec!["+https"]),
        ("dig", vec!["+https-get"]),
        ("dig", vec!["+https", &ca, "+tls-hostname=127.0.0.53"]),
    ] {
        let (text, _) = ask(program, https, &[&arguments[..], &["+short", "hello.vm.test", "A"]].concat());
        assert_eq!(text.trim(), "127.64.0.1", "{program} {arguments:?}");
        let woken = server.world.wakes.try_recv().unwrap();
        assert_eq!((woken.service, woken.client), (name("hello.vm.test"), [127, 0, 0, 1].into()));
    }
    let (text, _) = ask("kdig", https, &["+https", "+short", "big.vm.test", "TXT"]);
    assert_eq!(text.lines().count(), 60);
    let (text, _) = ask("kdig", https, &["+https", "none.vm.test", "A"]);
    assert!(text.contains("status: NXDOMAIN") && text.contains("HTTP/2"), "{text}");
}

#[test]
fn both_versions_and_methods_give_the_same_and_say_how_long_it_holds() {
    let server = Encrypted::new(World::new());
    server.world.publish(ServiceView { counter: 7, ..active(service("awake.vm.test", 2)) });
    let url = format!("https://{}/dns-query", server.https());
    let dir = server.dir.path();
    let ca = server.ca();
    let ca = ca.to_str().unwrap();
    let message = file(dir, &question("awake.vm.test"));
    let upload = format!("@{}", message.display());
    for (flag, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let post = ["-H", "content-type: application/dns-message", "--data-binary", &upload, &url];
        let get_url = format!("{url}?dns={}", in_address(&question("awake.vm.test")));
        for arguments in [&post[..], &[get_url.as_str()]] {
            let fetched = curl(dir, &[&[flag, "--cacert", ca], arguments].concat());
            assert_eq!((fetched.status, fetched.version.as_str()), (200, version), "{arguments:?}");
            assert!(
                fetched.headers.contains("content-type: application/dns-message\r"),
                "{}",
                fetched.headers
            );
            assert!(fetched.headers.contains("cache-control: max-age=60\r"), "{}", fetched.headers);
            assert!(fetched.body.ends_with(&[0, 0, 0, 60, 0, 4, 127, 64, 0, 2]), "{:?}", fetched.body);
        }
        // Asleep, absent, not told to anybody, and an error.
        for (qname, kept) in [
            ("hello.vm.test", "max-age=5"),
            ("none.vm.test", "max-age=30"),
            ("broken.vm.test", "no-store"),
            ("www.example", "no-store"),
        ] {
            let url = format!("{url}?dns={}", in_address(&question(qname)));
            let fetched = curl(dir, &[flag, "-k", &url]);
            assert_eq!(fetched.status, 200, "{qname}");
            assert!(fetched.headers.contains(&format!("cache-control: {kept}\r")), "{}", fetched.headers);
        }
    }
    assert_eq!(server.world.server.counters().sum(7), 4);
}

#[test]
fn what_is_no_question_is_told_why() {
    let server = Encrypted::new(World::new());
    let base = format!("https://{}", server.https());
    let dir = server.dir.path();
    let asked = in_address(&question("awake.vm.test"));
    let answer = {
        let mut answer = question("awake.vm.test");
        answer[2] |= 0x80;
        in_address(&answer)
    };
    let long = file(dir, &vec![0; 65_536]);
    let long = format!("@{}", long.display());
    let right_type = "content-type: application/dns-message";
    let good_path = format!("/dns-query?dns={asked}");
    let answer_path = format!("/dns-query?dns={answer}");
    let cases: [(u16, &[&str], &str); 11] = [
        (404, &[], "/"),
        (404, &[], "/resolve?name=awake.vm.test"),
        (400, &[], "/dns-query"),
        (400, &[], "/dns-query?dns=AAA="),
        (400, &[], "/dns-query?dns=AAAA"),
        (400, &[], &answer_path),
        (405, &["-X", "PUT"], &good_path),
        (405, &["-X", "DELETE"], &good_path),
        (415, &["-d", "dns"], "/dns-query"),
        (413, &["-H", right_type, "--data-binary", &long], "/dns-query"),
        (413, &["-H", right_type, "-H", "transfer-encoding: chunked", "--data-binary", &long], "/dns-query"),
    ];
    for flag in ["--http2", "--http1.1"] {
        for (status, arguments, path) in &cases {
            if *status == 413 && flag == "--http2" && arguments.len() > 4 {
                // HTTP/2 has no chunks.
                continue;
            }
            let url = format!("{base}{path}");
            let fetched = curl(dir, &[&[flag, "-k"], *arguments, &[&url]].concat());
            assert_eq!(fetched.status, *status, "{flag} {path}: {}", fetched.headers);
            assert!(fetched.headers.contains("content-type: text/plain"), "{}", fetched.headers);
            assert!(fetched.body.ends_with(b"\n"), "{path}: says why");
            assert_eq!(fetched.headers.contains("allow: get, post"), *status == 405);
        }
        // One byte less is a message, if a malformed one, and is answered by DNS.
        let message = file(dir, &[&question("awake.vm.test")[..], &vec![0; 65_535 - 31]].concat());
        let upload = format!("@{}", message.display());
        let url = format!("{base}/dns-query");
        let fetched = curl(dir, &[flag, "-k", "-H", right_type, "--data-binary", &upload, &url]);
        assert_eq!((fetched.status, fetched.body[3] & 0xf), (200, 1));
        file(dir, &vec![0; 65_536]);
        // A head that is too large.
        let cookie = format!("cookie: {}", "x".repeat(40_000));
        let (_, output) = run("curl", &["-s", "-m", "20", "-k", flag, "-f", "-H", &cookie, &url]);
        assert!(!output.status.success());
    }
    let counts = server.world.server.counts();
    // Those of HTTP itself come before ours, and an answer is no query either.
    assert!(counts.requests_refused >= 19, "{counts:?}");
}

#[test]
fn a_held_question_waits_here_too_and_keeps_no_other_back() {
    let server = Encrypted::new(World::new());
    let mut slow = service("slow.vm.test", 5);
    slow.answer = AnswerPolicy::Hold;
    slow.hold_ms_max = 3_600_000;
    server.world.publish(slow.clone());
    let base = format!("https://{}/dns-query?dns=", server.https());
    let (waits, quick) = (
        base.clone() + &in_address(&question("slow.vm.test")),
        base + &in_address(&question("awake.vm.test")),
    );
    thread::scope(|scope| {
        // Both in one connection.
        let dir = server.dir.path();
        let (out, other) = (dir.join("slow"), dir.join("quick"));
        let (out_arg, other_arg) = (out.to_str().unwrap().to_owned(), other.to_str().unwrap().to_owned());
        let client = scope.spawn(move || {
            let fixed = ["-s", "-m", "60", "-k", "--http2", "--parallel", "--parallel-max", "2"];
            run("curl", &[&fixed[..], &["-o", &out_arg, &waits, "-o", &other_arg, &quick]].concat())
        });
        server.world.until("one is held, the other one answered", |world| {
            let counts = world.server.counts();
            counts.held == 1 && fs::metadata(&other).is_ok_and(|file| file.len() > 0)
        });
        assert!(!out.exists(), "answered before it was ready");
        let mut ready = active(slow.clone());
        ready.ttl_s = 77;
        server.world.publish(ready);
        let (text, output) = client.join().unwrap();
        assert!(output.status.success(), "{text}");
        assert!(fs::read(&out).unwrap().ends_with(&[0, 0, 0, 77, 0, 4, 127, 64, 0, 5]));
    });
    assert_eq!(server.world.server.counts().wakes_asked, 1);
}

#[test]
fn many_requests_of_one_connection_are_under_way_at_a_time() {
    const REQUESTS: usize = 1_000;
    let server = Encrypted::new(World::new());
    let list = server.dir.path().join("requests");
    let url = format!("https://{}/dns-query?dns={}", server.https(), in_address(&question("awake.vm.test")));
    fs::write(&list, format!("url = \"{url}\"\noutput = /dev/null\n").repeat(REQUESTS)).unwrap();
    let fixed = ["-s", "-m", "60", "-k", "--http2", "--parallel", "--parallel-max", "90"];
    let said = ["-w", "%{http_code} %{size_download} %{num_connects}\n", "-K", list.to_str().unwrap()];
    let (text, _) = run("curl", &[&fixed[..], &said].concat());
    let length = question("awake.vm.test").len() + 16;
    // The first one connects for all of them.
    let connects =
        |number: usize| text.lines().filter(|line| *line == format!("200 {length} {number}")).count();
    assert_eq!(connects(0) + connects(1), REQUESTS, "{text}");
    let counts = server.world.server.counts();
    assert_eq!((counts.queries, counts.connections), (REQUESTS.try_into().unwrap(), 1));
}

#[test]
fn behind_a_proxy_the_client_is_who_the_proxy_says() {
    let dir = TempDir::new().unwrap();
    let (mut world, url) = behind_a_proxy(World::new());
    let get = |headers: &[&str], qname: &str| {
        let url = format!("{url}?dns={}", in_address(&question(qname)));
        let headers: Vec<&str> = headers.iter().flat_map(|header| ["-H", header]).collect();
        curl(dir.path(), &[&headers[..], &[&url]].concat())
    };
    let fetched = get(&["x-forwarded-for: 203.0.113.9, 192.0.2.7"], "hello.vm.test");
    assert_eq!((fetched.status, fetched.version.as_str()), (200, "1.1"));
    assert_eq!(world.wakes.try_recv().unwrap().client.to_string(), "192.0.2.7");
    get(&["forwarded: for=\"[2001:db8::7]:4711\";proto=https"], "hello.vm.test");
    assert_eq!(world.wakes.try_recv().unwrap().client.to_string(), "2001:db8::7");
    // HTTP/2 without TLS, as some proxies speak it.
    let address = world.server.https_addresses()[0];
    let (text, _) = ask("dig", address, &["+http-plain", "+short", "awake.vm.test", "A"]);
    assert_eq!(text.trim(), "127.64.0.2");

    // The state is for this host alone by default: no stranger gets it, whatever is written in a header.
    let status = |headers: &[&str]| {
        let mut question = question("_vmstate.hello.vm.test");
        let length = question.len();
        question[length - 3] = 16;
        let url = format!("{url}?dns={}", in_address(&question));
        let headers: Vec<&str> = headers.iter().flat_map(|header| ["-H", header]).collect();
        curl(dir.path(), &[&headers[..], &[&url]].concat()).body[3] & 0xf
    };
    assert_eq!(status(&[]), 5);
    assert_eq!(status(&["x-forwarded-for: 127.0.0.1"]), 5);
    assert_eq!(status(&["x-forwarded-for: 192.0.2.7", "forwarded: for=127.0.0.1"]), 5);
    // Where the connection is the client's own, headers say nothing.
    let server = Encrypted::new(World::with_monitors(vec!["192.0.2.0/24".parse().unwrap()]));
    let mut question = question("_vmstate.hello.vm.test");
    let length = question.len();
    question[length - 3] = 16;
    let url = format!("https://{}/dns-query?dns={}", server.https(), in_address(&question));
    let fetched = curl(dir.path(), &["-k", "-H", "x-forwarded-for: 192.0.2.7", &url]);
    assert_eq!(fetched.body[3] & 0xf, 5);
}

#[test]
fn without_tls_only_this_host_is_served() {
    let world = World::new();
    let mut server = world.server;
    let _inside = world.runtime.enter();
    let outside: SocketAddr = "192.0.2.1:8443".parse().unwrap();
    let plain = EncryptedConfig { tls: Vec::new(), https: vec![outside], https_plain: true };
    let error = server.listen_encrypted(&plain, None).unwrap_err();
    assert!(matches!(error, BindError::PlainOutside(_)));
    assert!(error.to_string().contains("dns.https.listen"), "{error}");
    // And an address that is taken names its own setting.
    let taken =
        EncryptedConfig { https: vec![server.addresses()[0]], https_plain: true, ..Default::default() };
    let error = server.listen_encrypted(&taken, None).unwrap_err().to_string();
    assert!(error.contains("is taken by") && error.contains("`dns.https.listen`"), "{error}");
    // Neither without a certificate.
    let free = SocketAddr::from(([127, 0, 0, 53], 0));
    let tls = EncryptedConfig { tls: vec![free], ..Default::default() };
    assert!(matches!(server.listen_encrypted(&tls, None), Err(BindError::NoTls(_))));
}

#[test]
fn floods_and_half_requests_are_bounded_and_others_are_served() {
    let (world, url) = behind_a_proxy(World::new());
    let address = world.server.https_addresses()[0];
    let mut streams: Vec<TcpStream> = Vec::new();
    for number in 0..600 {
        let Ok(mut stream) = TcpStream::connect(address) else { continue };
        stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
        let begun: &[u8] = match number % 3 {
            0 => b"",
            1 => b"GET /dns-query?dns=AA",
            _ => b"POST /dns-query HTTP/1.1\r\nhost: x\r\ncontent-type: application/dns-message\r\ncontent-length: 40\r\n\r\nx",
        };
        let _ = stream.write_all(begun);
        streams.push(stream);
    }
    world.until("each has a place or has been turned away", |world| {
        let counts = world.server.counts();
        counts.connections + counts.connections_refused == 600
    });
    assert_eq!(world.server.counts().connections, 512);
    // Another address of the host is another client.
    let dir = TempDir::new().unwrap();
    let url = format!("{url}?dns={}", in_address(&question("awake.vm.test")));
    let fetched = curl(dir.path(), &["--interface", "127.0.0.77", &url]);
    assert_eq!(fetched.status, 200);
    // Bodies that never come are told so.
    let mut said = String::new();
    streams.swap_remove(2).take(12).read_to_string(&mut said).unwrap();
    assert_eq!(said, "HTTP/1.1 408");
    // Closed connections make room.
    streams.clear();
    world.until("there is room again", |_| {
        let (text, _) = run("curl", &["-s", "-o", "/dev/null", "-w", "%{http_code}", &url]);
        text == "200"
    });
}
