//! Stories of a host that cannot have all at once.

use super::world::*;
use crate::model::*;

#[test]
fn starts_are_limited_and_queued_by_priority_then_by_time() {
    let mut world = World::new(2);
    let names = [("a", 0), ("b", 0), ("c", 9), ("d", 0)];
    let names: Vec<DomainName> =
        (1..).zip(names).map(|(id, (label, priority))| world.add(id, label, priority, policy())).collect();
    for (name, ms) in names.iter().zip([10, 20, 30, 5]) {
        world.wake(name, ms).unwrap();
    }
    let plan = world.plan(40);
    assert!(plan[0].starts_with("i3 boot"), "the highest priority first: {plan:?}");
    assert!(plan[1].starts_with("i4 boot"), "then who waited longest: {plan:?}");
    assert_eq!(
        &plan[2..],
        [
            "i1 wait until None: 0 of 2 starts are under way and 0 others go first",
            "i2 wait until None: 0 of 2 starts are under way and 1 others go first",
        ]
    );
    world.report(3, Report::Running, 50);
    world.report(3, Report::Ready, 60);
    let plan = world.plan(60);
    assert!(plan[0].starts_with("i1 boot") && plan[1].starts_with("i2 wait"), "{plan:?}");
}

/// A host for `guests` guests of 128 MiB.
fn small_host(guests: u64) -> World {
    let limits = HostLimits { starts_max: 10, memory_mib_max: guests * 128, ..HostLimits::default() };
    World { fleet: Fleet::new(limits) }
}

#[test]
fn who_waits_for_room_gets_it_from_the_longest_idle_and_never_from_who_is_busy() {
    let mut world = small_host(2);
    let quick = Policy { min_on_ms: 1_000, ..policy() };
    let names =
        ["a", "b", "c"].map(|label| world.add(u64::from(label.as_bytes()[0] - b'a') + 1, label, 0, quick));
    world.wake(&names[0], 0).unwrap();
    world.wake(&names[1], 0).unwrap();
    world.plan(0);
    for id in [1, 2] {
        world.report(id, Report::Running, 100);
        world.report(id, Report::Ready, 200);
    }
    let traffic = Event::Traffic { instance: InstanceId(1), open_connections: 1, last_packet: Some(at(300)) };
    world.fleet.apply(traffic, at(300)).unwrap();
    world.plan(300);

    world.wake(&names[2], 400).unwrap();
    let plan = world.plan(400);
    assert!(
        plan.contains(
            &"i3 wait until None: it needs 128 MiB and 256 of 256 MiB are held; 0 go to sleep to make room"
                .to_owned()
        ),
        "{plan:#?}"
    );
    assert_eq!(
        plan.last().unwrap(),
        "look at 1200",
        "when the idle one has been without a packet for a second"
    );
    let plan = world.plan(1_200);
    assert_eq!(
        plan[..2],
        [
            "i2 drain idle 1000 force false: c.vm.test (priority 0) needs the room; no packet for 1.0 s, priority 0",
            "i3 wait until None: it needs 128 MiB and 256 of 256 MiB are held; 1 go to sleep to make room"
        ]
    );
    world.report(2, Report::GateClosed, 1_200);
    assert_eq!(world.plan(1_200)[0], "i2 capture: the last look found no traffic");
    world.report(2, Report::Captured { version: version(1) }, 1_210);
    assert_eq!(world.plan(1_210)[0], "i3 boot: a DNS query of type 1 from 127.0.0.1 asked for it");
    assert_eq!(world.fleet.held().memory_mib, 256);
}

#[test]
fn who_goes_to_sleep_by_itself_is_not_told_again_to_make_room() {
    let mut world = small_host(1);
    let idle = Policy { idle_ms: 1_000, min_on_ms: 0, grace_ms: 0, ..policy() };
    let (first, second) = (world.add(1, "a", 0, idle), world.add(2, "b", 0, idle));
    world.up(1, &first, [0, 100, 200]);
    world.wake(&second, 300).unwrap();
    let plan = world.plan(1_200);
    let told = plan.iter().filter(|line| line.starts_with("i1 ")).count();
    assert_eq!(told, 1, "{plan:#?}");
    assert!(plan.iter().any(|line| line.contains("1 go to sleep to make room")), "{plan:#?}");
}

#[test]
fn a_lower_priority_makes_room_and_a_higher_one_does_not() {
    let mut world = small_host(1);
    let quick = Policy { min_on_ms: 0, ..policy() };
    let (low, high) = (world.add(1, "low", 0, quick), world.add(2, "high", 9, quick));
    world.up(2, &high, [0, 1, 2]);
    world.wake(&low, 3_000).unwrap();
    let plan = world.plan(3_000);
    assert!(plan.iter().all(|line| !line.starts_with("i2 drain")), "{plan:#?}");
    // Its own idle time ends it, as it would alone.
    let plan = world.plan(10_002);
    assert!(plan[0].starts_with("i2 drain idle 10000"), "{plan:#?}");
}

#[test]
fn what_can_never_fit_waits_alone() {
    let mut world = small_host(1);
    let (large, small) = (world.add(1, "large", 9, policy()), world.add(2, "small", 0, policy()));
    let mut service = world.fleet.service(&large).unwrap().clone();
    service.spec.resources.memory_mib = 4_096;
    world.fleet = {
        let mut fleet = Fleet::new(world.fleet.limits);
        for (service, id) in [(service, 1), (world.fleet.service(&small).unwrap().clone(), 2)] {
            let instance = Instance::new(InstanceId(id), service.spec.name.clone(), at(0));
            let added = Event::Added { service: Box::new(service), instance: Box::new(instance) };
            fleet.apply(added, at(0)).unwrap();
        }
        fleet
    };
    world.wake(&large, 0).unwrap();
    world.wake(&small, 0).unwrap();
    let plan = world.plan(0);
    assert_eq!(plan[0], "i1 wait until None: it needs 4096 MiB, the host may give 128 in all");
    assert!(plan[1].starts_with("i2 boot"), "{plan:#?}");
}

#[test]
fn a_paused_instance_is_let_run_and_gives_its_room_to_who_is_asked_for() {
    let mut world = small_host(1);
    let paused = world.add(1, "paused", 0, Policy { rest: Rung::Paused, ..policy() });
    let other = world.add(2, "other", 0, policy());
    world.asleep(1, &paused);
    assert_eq!(world.plan(13_010), ["i1 pause: its policy is to sleep on the rung paused"]);
    world.report(1, Report::Paused, 13_500);
    assert_eq!(world.phase(1), (Phase::Hibernated, Rung::Paused));
    assert_eq!(world.fleet.held().memory_mib, 128);
    world.wake(&other, 14_000).unwrap();
    let plan = world.plan(14_000);
    assert!(plan[0].starts_with("i1 disarm: other.vm.test (priority 0) needs the room"), "{plan:#?}");
    world.report(1, Report::Disarmed, 14_010);
    let plan = world.plan(14_010);
    assert!(plan[0].starts_with("i2 boot"), "{plan:#?}");
    assert!(plan.iter().all(|line| !line.starts_with("i1 pause")), "there is no room: {plan:#?}");
}

#[test]
fn who_is_kept_warm_and_wanted_gives_way_to_whom_it_would_wait_behind() {
    let limits = HostLimits { starts_max: 10, memory_mib_max: 128, ..HostLimits::default() };
    let mut world = World { fleet: Fleet::new(limits) };
    let paused = world.add(1, "paused", 0, Policy { rest: Rung::Paused, ..policy() });
    let first = world.add(2, "first", 1, policy());
    world.asleep(1, &paused);
    world.plan(13_010);
    world.report(1, Report::Paused, 13_500);
    // Both at once; only one has room, and the other has it.
    world.wake(&paused, 14_000).unwrap();
    world.wake(&first, 14_000).unwrap();
    let plan = world.plan(14_000);
    assert!(plan[0].starts_with("i1 disarm: first.vm.test (priority 1) needs the room"), "{plan:#?}");
    world.report(1, Report::Disarmed, 14_010);
    let plan = world.plan(14_010);
    assert!(plan[0].starts_with("i2 boot") && plan[1].starts_with("i1 wait"), "{plan:#?}");
}
