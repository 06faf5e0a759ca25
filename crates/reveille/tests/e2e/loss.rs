//! A guest that is lost: noticed, told, and started again by the next request.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;

use crate::small::{from_environment, say, send, word, write_program};
use crate::wire;
use crate::world::{HELLO, World};

#[test]
fn a_killed_and_a_hung_qemu_are_noticed_told_and_replaced() {
    let world = World::new().service(HELLO).start();
    let first = world.page();

    let mut connection = wire::connect(SocketAddr::new(world.address(1).into(), 7_007)).unwrap();
    connection.write_all(b"x").unwrap();
    connection.read_exact(&mut [0]).unwrap();
    send(world.vm().pid, Signal::KILL);
    let seen = noticed(&world, "its QEMU process ended: killed (SIGKILL)");
    say(&format!("QEMU killed: noticed after {seen} ms"));
    assert!(connection.read(&mut [0]).is_err(), "a broken connection must not look like an orderly end");
    let second = recovered(&world, &first.nonce, "its QEMU process ended: killed (SIGKILL)");

    let hung = world.vm().pid;
    send(hung, Signal::STOP);
    let seen = noticed(&world, "its QEMU process did not answer for ");
    say(&format!("QEMU stopped: noticed after {seen} ms"));
    recovered(&world, &second, "its QEMU process did not answer for ");
    assert_ne!(world.vm().pid, hung, "the hung process is ended");
}

/// Waits until the service counts as lost because of `cause`; returns how long that took, in milliseconds.
fn noticed(world: &World, cause: &str) -> u128 {
    let began = Instant::now();
    world.until_phase("hello.vm.test", "failed");
    let took = began.elapsed().as_millis();
    let why = world.why("hello");
    assert!(word(&why["failure"]["cause"]).starts_with(cause), "{}", why["failure"]);
    assert_eq!(why["failure"]["gave_up"], false);
    world.until_vms(0);
    took
}

/// The next request starts a new guest, and `why` tells what became of the old one; returns the new nonce.
fn recovered(world: &World, old_nonce: &str, cause: &str) -> String {
    let page = world.page();
    assert_ne!(page.nonce, old_nonce);
    let shown = world.until_phase("hello.vm.test", "active");
    assert_eq!(shown["failure"], Value::Null, "over");
    let story = world.why("hello");
    let told = |decision: &Value| word(&decision["why"]).contains(&format!("after it was lost: {cause}"));
    assert!(story["decisions"].as_array().unwrap().iter().any(told), "{story:#}");
    page.nonce
}

/// Nothing but busybox: a web server, and a page that ends it.
const INIT: &str = r#"#!/bin/sh
mkdir -p /www
od -An -N8 -tx1 /dev/urandom | tr -d ' \n' >/www/nonce
httpd -p 8080 -h /www
while :; do sleep 1000; done
"#;
const END_SERVER: &str = "#!/bin/sh\nkillall httpd\n";

#[test]
fn a_guest_whose_port_died_is_noticed_told_and_replaced() {
    let world = World::new().own_images();
    let root = world.path("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox"))
        .expect("busybox-static is missing; `make test` installs it");
    for applet in ["sh", "mkdir", "od", "tr", "httpd", "sleep", "killall"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    write_program(&root.join("sbin/init"), INIT);
    write_program(&root.join("www/cgi-bin/end"), END_SERVER);
    let (root, state, cache) = (root, world.path("state"), from_environment("REVEILLE_TEST_CACHE"));
    let built = world.json(&[
        "image",
        "build",
        "plain",
        "--root",
        root.to_str().unwrap(),
        "--state-dir",
        state.to_str().unwrap(),
        "--package-cache",
        cache.to_str().unwrap(),
    ]);
    assert_eq!(built["init"], "/sbin/init");

    let world = world
        .service(
            r#"
[[service]]
name = "plain.vm.test"
image = "plain"
ports = ["tcp/8080"]
"#,
        )
        .start();
    let at = SocketAddr::new(world.address(1).into(), 8_080);
    let nonce = || wire::http(at, "GET", "/nonce", None).unwrap().body;
    let first = nonce();
    let process = world.vm().pid;
    // The answer dies with the server that gives it.
    drop(wire::http(at, "GET", "/cgi-bin/end", None));
    let began = Instant::now();
    world.until_phase("plain.vm.test", "failed");
    say(&format!("guest port dead: noticed after {} ms", began.elapsed().as_millis()));
    let why = world.why("plain");
    let cause = word(&why["failure"]["cause"]);
    assert!(
        cause.starts_with("the service's port was dead: the guest refused a connection to port 8080"),
        "{cause}"
    );
    world.until_vms(0);
    assert_ne!(nonce(), first);
    assert_ne!(world.vm().pid, process);
}
