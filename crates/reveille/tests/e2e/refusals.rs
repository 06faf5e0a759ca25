//! Bad input and a host that is not as it should be: one sentence each, and nothing done by halves.

use std::fs;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use crate::small::{from_environment, text, write_program};
use crate::world::{Exit, HELLO, World};

/// A fault of every kind.
const FAULTY: &str = r#"
[daemon]
stop_ms_max = 5
on_stop = "sleep"
[dns]
listen = ["127.0.0.1:5300", "127.0.0.1:5300"]
status_allow = ["10.0.0.0/33"]
[api]
listen = "192.0.2.1:8053"
[relay]
pool = "127.64.0.1/10"
[host]
starts_max = 0
[policy]
idle_ms = 1
rest = "cold"
colour = "red"
[[zone]]
name = "vm.test"
[[zone]]
name = "vm.test"
[[service]]
name = "a.vm.test"
image = "demo"
ports = ["tcp/0"]
[[service]]
name = "b.vm.test"
image = "demo"
ports = ["tcp/80", "tcp/80"]
resources = { cpus = 0, memory_mib = 1 }
ready = { check = "http", port = 81, path = "health" }
[[service]]
name = "b.example"
image = "demo"
ports = []
"#;
/// Keys, and what is allowed instead where that is not plain from the key.
const NAMED: [&str; 21] = [
    "daemon.stop_ms_max = 5",
    "1000 to 600000",
    "daemon.on_stop",
    "dns.listen = 127.0.0.1:5300",
    "dns.status_allow = 10.0.0.0/33",
    "api.listen = 192.0.2.1:8053",
    "relay.pool = 127.64.0.1/10",
    "host.starts_max = 0",
    "policy.idle_ms = 1",
    "100 to 2592000000",
    "policy.rest = cold",
    "policy.colour",
    "zone.name = vm.test",
    "service \"a.vm.test\".ports",
    "service \"b.vm.test\".ports = tcp/80",
    "service \"b.vm.test\".resources.cpus = 0",
    "service \"b.vm.test\".resources.memory_mib = 1",
    "service \"b.vm.test\".ready.port = 81",
    "service \"b.vm.test\".ready.path",
    "service \"b.example\".name = b.example",
    "service \"b.example\".ports",
];

#[test]
fn every_fault_of_a_config_file_is_named_at_once() {
    let world = World::new();
    let file = world.path("faulty.toml");
    fs::write(&file, FAULTY).unwrap();
    let file = file.to_str().unwrap();
    for verb in ["check", "serve"] {
        let complaint = world.refused(&[verb, "--config", file]);
        let missing: Vec<&str> = NAMED.into_iter().filter(|key| !complaint.contains(key)).collect();
        assert!(missing.is_empty(), "{verb} does not name {missing:?}:\n{complaint}");
    }
    let output = world.run(&["--json", "check", "--config", file]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], false);
    assert!(report["faults"].as_array().unwrap().len() >= 15, "{report:#}");

    fs::write(file, "[dns\nlisten = 3").unwrap();
    let complaint = world.refused(&["check", "--config", file]);
    assert!(complaint.contains("is not valid TOML") && complaint.contains("line 1"), "{complaint}");
    let complaint = world.refused(&["serve", "--config", "/nowhere/reveille.toml"]);
    assert!(complaint.contains("cannot read /nowhere/reveille.toml"), "{complaint}");
}

#[test]
fn a_taken_port_is_named_and_nothing_is_started_by_halves() {
    let mut world = World::new().service(HELLO);
    let (dns, api) = (world.dns(), world.api());
    let stable = SocketAddr::new(world.address(1).into(), 7_007);
    let taken = "taken by";

    let held = UdpSocket::bind(dns).unwrap();
    refused_start(&mut world, &[&dns.to_string(), taken]);
    drop(held);
    let held = TcpListener::bind(dns).unwrap();
    refused_start(&mut world, &[&dns.to_string(), taken]);
    drop(held);
    let held = TcpListener::bind(api).unwrap();
    refused_start(&mut world, &[&api.to_string(), "another"]);
    drop(held);
    let held = UdpSocket::bind(stable).unwrap();
    refused_start(&mut world, &[&stable.to_string(), taken, "udp/7007"]);
    drop(held);
    let held = TcpListener::bind(stable).unwrap();
    refused_start(&mut world, &[&stable.to_string(), taken, "tcp/7007"]);
    drop(held);
    world.restart();
}

#[test]
fn a_missing_or_broken_qemu_is_named_with_the_remedy() {
    let mut world = World::new().service(HELLO);
    let qemu = std::env::var("REVEILLE_TEST_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".to_owned());
    world.change("qemu", "binary", "\"qemu-system-nowhere\"");
    refused_start(&mut world, &["qemu-system-nowhere", "install the package qemu-system-x86"]);
    let broken = world.path("broken-qemu");
    write_program(&broken, "#!/bin/sh\necho 'no such thing' >&2\nexit 3\n");
    world.change("qemu", "binary", format!("{broken:?}"));
    refused_start(&mut world, &["broken-qemu", "not a working QEMU"]);
    world.change("qemu", "binary", format!("\"{qemu}\""));
    world.restart();
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused_and_the_first_serves_on() {
    let world = World::new().service(HELLO).start();
    let nonce = world.page().nonce;
    let config = fs::read_to_string(world.path("reveille.toml")).unwrap();
    let other = config.replace(&world.dns().to_string(), &format!("{}:5300", world.address(251)));
    let other = other.replace(&world.api().to_string(), &format!("{}:8053", world.address(251)));
    fs::write(world.path("other.toml"), other).unwrap();
    let complaint = world.refused(&["serve", "--config", world.path("other.toml").to_str().unwrap()]);
    assert!(complaint.contains("another daemon") && complaint.contains("state directory"), "{complaint}");
    one_sentence(&complaint);
    world.vm();
    assert_eq!(world.page().nonce, nonce);
}

#[test]
fn a_service_whose_image_is_gone_is_a_servfail_with_the_reason() {
    let world = World::new()
        .policy("attempts_max", 2)
        .policy("backoff_ms", 10)
        .service(
            r#"
[[service]]
name = "lost.vm.test"
image = "nowhere"
ports = ["tcp/8080"]
"#,
        )
        .start();
    let failed = world.refused(&["wake", "lost"]);
    assert!(failed.contains("there is no image `nowhere`"), "{failed}");
    let answer = world.dig(&["A", "lost.vm.test"]);
    assert!(answer.contains("status: SERVFAIL") && answer.contains("EDE: 14 (Not Ready)"), "{answer}");
    let why = world.why("lost");
    assert_eq!(
        (&why["failure"]["attempts"], &why["failure"]["gave_up"]),
        (&2.into(), &true.into()),
        "{why:#}"
    );
    assert!(why["failure"]["cause"].as_str().unwrap().contains("there is no image `nowhere`"), "{why:#}");
    // A client is told at once, too.
    assert!(world.try_page(world.address(1)).is_err());
    assert_eq!(world.vms(), []);
}

#[test]
fn wrong_use_ends_with_status_two_and_a_daemon_that_is_not_there_with_one() {
    let world = World::new();
    for wrong in [
        &[][..],
        &["frobnicate"],
        &["wake"],
        &["wake", "hello", "--loudly"],
        &["serve", "--config"],
        &["image", "build", "x"],
        &["service", "add", "x.vm.test", "--image", "demo", "--port", "sctp/9"],
        &["wake", "no_such..name"],
    ] {
        let output = world.run(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {}", text(&output.stderr));
    }
    assert_eq!(world.run(&["--help"]).status.code(), Some(0));
    assert_eq!(world.run(&["--version"]).status.code(), Some(0));
    for verb in [&["wake", "hello"][..], &["service", "list"], &["why", "hello"]] {
        let complaint = world.refused(verb);
        assert!(complaint.contains(&world.api().to_string()), "{complaint}");
    }
}

#[test]
fn what_is_no_image_is_refused_with_the_reason_and_leaves_nothing() {
    let world = World::new().own_images();
    let (empty, root, state) = (world.path("empty"), world.path("root"), world.path("state"));
    fs::create_dir(&empty).unwrap();
    write_program(&root.join("sbin/init"), "#!/bin/sh\n");
    let whole = world.path("whole");
    fs::create_dir_all(whole.join("sbin")).unwrap();
    fs::copy("/bin/busybox", whole.join("sbin/init")).unwrap();
    let text_file = world.path("text");
    fs::write(&text_file, "no kernel at all\n".repeat(1_000)).unwrap();
    let kernel = from_environment("REVEILLE_TEST_KERNEL");
    let build = |root: &Path, kernel: &Path, more: &[&str]| {
        let state = state.to_str().unwrap();
        let (root, kernel) = (root.to_str().unwrap(), kernel.to_str().unwrap());
        let base = ["image", "build", "x", "--root", root, "--kernel", kernel, "--state-dir", state];
        let complaint = world.refused(&[&base, more].concat());
        one_sentence(&complaint);
        complaint
    };
    let nowhere = Path::new("/nowhere");
    for (complaint, said) in [
        (build(&empty, &kernel, &[]), "no init"),
        (build(&root, &kernel, &["--init", "/bin/nothing"]), "`/bin/nothing` is not in the root"),
        (build(&root, &kernel, &[]), "`/bin/sh`, which is not in the root"),
        (build(&whole, &text_file, &[]), "is not a kernel"),
        (build(&whole, nowhere, &[]), "`/nowhere` cannot be read"),
        (build(nowhere, &kernel, &[]), "the root `/nowhere` cannot be read"),
        (build(&text_file, &kernel, &[]), "is not a directory"),
    ] {
        assert!(complaint.contains(said), "`{said}` was expected: {complaint}");
    }
    let state = state.to_str().unwrap();
    let broken = ["image", "build", "x", "--tar", text_file.to_str().unwrap(), "--state-dir", state];
    let complaint = world.refused(&broken);
    assert!(complaint.contains("is no tar archive"), "{complaint}");
    let listed = world.json(&["image", "list", "--state-dir", state]);
    assert_eq!(listed, serde_json::json!({ "images": [], "damaged": [] }));
}

/// The daemon ends at once, names all of `said` in one sentence, and leaves nothing.
fn refused_start(world: &mut World, said: &[&str]) {
    let Exit { code, log } = world.try_start().expect_err("it should not have started");
    assert_eq!(code, Some(1), "{log}");
    let complaint = log.lines().last().unwrap_or_default();
    let missing: Vec<&&str> = said.iter().filter(|word| !complaint.contains(**word)).collect();
    assert!(missing.is_empty(), "{missing:?} not in {log}");
    assert!(complaint.starts_with("reveille: "), "{log}");
    assert_eq!(world.vms(), []);
}

fn one_sentence(complaint: &str) {
    assert!(complaint.starts_with("reveille: "), "{complaint}");
    assert_eq!(complaint.trim_end().lines().count(), 1, "{complaint}");
}
