//! Asking wakes: what does and what does not, how long an answer waits, and that many make one.

use std::sync::Barrier;

use serde_json::Value;

use crate::small::say;
use crate::wire;
use crate::world::{HELLO, World};

#[test]
fn a_question_wakes_what_never_ran_and_after_its_sleep_it_is_the_same_guest() {
    let world = World::new().policy("idle_ms", 1_000).service(HELLO).start();

    // Nothing of this wakes it.
    let status = world.dig(&["+short", "TXT", "_vmstate.hello.vm.test"]);
    assert!(status.contains("\"state=inactive\" \"phase=off\" \"rung=cold\""), "{status}");
    let nodata = world.dig(&["AAAA", "hello.vm.test"]);
    assert!(nodata.contains("status: NOERROR") && nodata.contains("ANSWER: 0"), "{nodata}");
    let unknown = world.dig(&["A", "none.vm.test"]);
    assert!(unknown.contains("status: NXDOMAIN"), "{unknown}");

    let address = world.dig(&["+short", "+tcp", "A", "hello.vm.test"]);
    assert_eq!(address.trim(), world.address(1).to_string());
    let first = world.page();
    assert_eq!(first.service, "hello");
    assert!(first.nonce.len() == 32 && first.nonce.bytes().all(|byte| byte.is_ascii_hexdigit()), "{first:?}");
    let wake = &world.until_wakes("hello", 1)[0];
    assert_eq!((&wake["trigger"]["by"], &wake["trigger"]["qtype"]), (&"query".into(), &1.into()), "{wake}");
    assert_eq!((&wake["from"], &wake["outcome"]), (&"cold".into(), &"ready".into()), "{wake}");
    in_order(wake, &["decided", "spawned", "running", "ready"]);

    world.until_phase("hello.vm.test", "hibernated");
    assert_eq!(world.vms(), [], "what sleeps has no process");
    for _ in 0..3 {
        let status = world.dig(&["+short", "TXT", "_vmstate.hello.vm.test"]);
        assert!(status.contains("\"phase=hibernated\" \"rung=local\" \"version="), "{status}");
    }

    let second = world.page();
    assert_eq!(second.nonce, first.nonce, "restored, not booted");
    assert!(second.requests > first.requests);
    let wakes = world.until_wakes("hello", 2);
    let wake = wakes.last().unwrap();
    assert_eq!((&wake["trigger"]["by"], &wake["from"]), (&"packet".into(), &"local".into()), "{wake}");
    in_order(wake, &["decided", "spawned", "restored", "running", "first_byte"]);
    say(&format!("wake: cold {}, local {}", wakes[0]["stages_ms"], wake["stages_ms"]));
}

/// The stages were all reached, one after the other.
fn in_order(wake: &Value, stages: &[&str]) {
    let times: Vec<f64> = stages
        .iter()
        .map(|stage| wake["stages_ms"][*stage].as_f64().unwrap_or_else(|| panic!("no {stage} in {wake}")))
        .collect();
    assert!(times.is_sorted(), "{stages:?} in {wake}");
}

#[test]
fn a_held_question_is_answered_when_the_service_is_ready_or_at_its_bound() {
    // Awake and asleep are told from each other by the answer's TTL.
    let world = World::new()
        .policy("answer", "\"hold\"")
        .policy("hold_ms_max", 4_000)
        .policy("ttl_awake_s", 77)
        .policy("ttl_asleep_s", 3)
        .service(HELLO)
        .service(
            r#"
[[service]]
name = "slow.vm.test"
image = "demo"
ports = ["tcp/8080"]
policy = { hold_ms_max = 50 }
"#,
        )
        .start();
    let nonce = world.page().nonce;
    world.put_to_sleep("hello");
    let answer = world.dig(&["+noall", "+answer", "A", "hello.vm.test"]);
    assert_eq!(world.phase("hello.vm.test"), "active", "answered before it was ready");
    assert_eq!(fields(&answer)[1], "77", "answered as what it is now: {answer}");
    assert_eq!(world.page().nonce, nonce);

    let answer = world.dig(&["+noall", "+answer", "A", "slow.vm.test"]);
    let phase = world.phase("slow.vm.test");
    assert!(["booting", "warming"].contains(&phase.as_str()), "no guest boots in 50 ms, but it is {phase}");
    let address = world.address(2).to_string();
    assert_eq!((fields(&answer)[1], fields(&answer)[4]), ("3", address.as_str()), "{answer}");
    assert_eq!(world.page_at(2).service, "slow", "and the boot was not given up");
}

fn fields(answer: &str) -> Vec<&str> {
    answer.split_whitespace().collect()
}

#[test]
fn a_hundred_clients_and_a_hundred_questions_make_one_wake() {
    const EACH: usize = 100;
    let world = World::new().service(HELLO).start();
    let nonce = world.page().nonce;
    world.put_to_sleep("hello");
    let (wakes, restores) = (world.until_wakes("hello", 1).len(), restores(&world));
    let together = Barrier::new(2 * EACH);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..EACH)
            .map(|_| {
                scope.spawn(|| {
                    together.wait();
                    world.try_page(world.address(1)).map(|page| page.nonce)
                })
            })
            .collect();
        let questions: Vec<_> = (0..EACH)
            .map(|_| {
                scope.spawn(|| {
                    together.wait();
                    wire::resolve(world.dns(), "hello.vm.test")
                })
            })
            .collect();
        for client in clients {
            assert_eq!(client.join().unwrap().unwrap(), nonce);
        }
        for question in questions {
            assert_eq!(question.join().unwrap().unwrap(), world.address(1));
        }
    });
    assert_eq!(vec![world.vm()], world.vms_of("hello.vm.test"));
    assert_eq!(restores + 1, self::restores(&world));
    let all = world.until_wakes("hello", wakes + 1);
    assert_eq!(all.len(), wakes + 1, "{all:#?}");
    let wake = all.last().unwrap();
    assert_eq!((&wake["from"], &wake["outcome"]), (&"local".into(), &"ready".into()), "{wake}");
    assert!(wake["asks"].as_u64() >= Some(1), "{wake}");
    say(&format!(
        "{EACH} clients and {EACH} questions: 1 wake, {} asks, {}",
        wake["asks"], wake["stages_ms"]
    ));
}

fn restores(world: &World) -> usize {
    world.actions("hello").iter().filter(|action| *action == "restore").count()
}
