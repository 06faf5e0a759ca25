//! What dig and kdig see.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::World;

fn status(text: &str) -> &str {
    let rest = text.split("status: ").nth(1).unwrap_or_else(|| panic!("no status in {text}"));
    rest.split([',', ';']).next().unwrap()
}

#[test]
fn a_question_for_a_sleeping_service_is_answered_and_wakes_it() {
    let mut world = World::new();
    let text = world.dig(&["hello.vm.test", "A"]);
    assert_eq!(status(&text), "NOERROR");
    assert!(text.contains("hello.vm.test.\t\t5\tIN\tA\t127.64.0.1"), "{text}");
    assert!(text.contains("flags: qr aa rd;"), "{text}");
    let ask = world.wakes.try_recv().unwrap();
    assert_eq!((ask.service.to_string().as_str(), ask.qtype), ("hello.vm.test", 1));
    assert!(ask.client.is_loopback());
}
