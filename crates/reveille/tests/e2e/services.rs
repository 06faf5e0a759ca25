//! Services that come and go while the daemon runs.

use std::net::SocketAddr;

use crate::small::word;
use crate::wire;
use crate::world::{HELLO, World};

#[test]
fn a_service_that_is_added_is_woken_by_its_first_packet_and_leaves_nothing_when_it_is_removed() {
    let mut world = World::new().service(HELLO).start();
    let added = world.json(&["service", "add", "more.vm.test", "--image", "demo", "--port", "tcp/8080"]);
    assert_eq!(
        (word(&added["phase"]), word(&added["address"])),
        ("off".to_owned(), world.address(2).to_string())
    );
    let listed = world.json(&["service", "list"]);
    let names: Vec<String> =
        listed.as_array().unwrap().iter().map(|service| word(&service["name"])).collect();
    assert_eq!(names, ["hello.vm.test", "more.vm.test"]);
    let twice = world.refused(&["service", "add", "more.vm.test", "--image", "demo", "--port", "tcp/8080"]);
    assert!(twice.contains("exists already"), "{twice}");

    let page = world.page_at(2);
    assert_eq!(page.service, "more");
    world.kill9();
    world.restart();
    assert_eq!(world.page_at(2).nonce, page.nonce, "kept over a crash, though no file declares it");

    world.json(&["service", "remove", "more"]);
    assert_eq!(world.vms(), []);
    let gone = world.dig(&["A", "more.vm.test"]);
    assert!(gone.contains("status: NXDOMAIN"), "{gone}");
    assert!(wire::connect(SocketAddr::new(world.address(2).into(), 8_080)).is_err(), "nobody listens there");
    let unknown = world.refused(&["wake", "more"]);
    assert!(unknown.contains("there is no service more"), "{unknown}");
}
