//! What happens to one service, and the whole plan after it.

use super::world::*;
use crate::model::*;

#[test]
fn a_query_boots_what_has_never_run_and_many_queries_make_one_wake() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, policy());
    assert_eq!(world.plan(0), NOTHING);
    for _ in 0..100 {
        world.wake(&hello, 5).unwrap();
    }
    assert_eq!(
        world.plan(5),
        ["i1 boot: a DNS query of type 1 from 127.0.0.1 asked for it, the first of 100"]
    );
    world.wake(&hello, 6).unwrap();
    assert_eq!(world.plan(6), ["look at 20005"]);
    world.report(1, Report::Running, 200);
    assert_eq!(world.fleet.gate(InstanceId(1), at(200)), Gate::Hold, "a booting guest serves nobody");
    world.report(1, Report::Ready, 3_000);
    assert_eq!(world.phase(1), (Phase::Active, Rung::Active));
    assert_eq!(world.fleet.gate(InstanceId(1), at(3_000)), Gate::Open);
    assert_eq!(world.fleet.service(&hello).unwrap().demand, None);
}

#[test]
fn idle_is_drained_then_captured_and_restored_on_demand() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, policy());
    world.up(1, &hello, [0, 100, 3_000]);
    assert_eq!(world.plan(3_000), ["look at 13000"]);
    let traffic =
        Event::Traffic { instance: InstanceId(1), open_connections: 0, last_packet: Some(at(4_000)) };
    world.fleet.apply(traffic, at(13_000)).unwrap();
    assert_eq!(world.plan(13_000), ["look at 14000"], "traffic moves the time of sleep");
    assert_eq!(
        world.plan(14_000),
        [
            "i1 drain idle 10000 force false: no connection and no packet for 10.0 s (limit 10.0 s), awake for 13.9 s"
        ]
    );
    assert_eq!(world.plan(14_000), NOTHING, "the relay has not answered yet");
    world.report(1, Report::GateClosed, 14_000);
    assert_eq!(world.plan(14_000), ["i1 capture: the last look found no traffic"]);
    world.report(1, Report::Captured { version: version(1) }, 14_010);
    assert_eq!(world.phase(1), (Phase::Hibernated, Rung::Local));
    assert_eq!(world.plan(14_010), NOTHING);
    world.wake(&hello, 60_000).unwrap();
    assert_eq!(
        world.plan(60_000),
        ["i1 restore from local: a DNS query of type 1 from 127.0.0.1 asked for it"]
    );
    assert!(world.fleet.instance(InstanceId(1)).unwrap().version.is_some(), "intact until the vCPUs run");
    world.report(1, Report::Running, 60_040);
    assert_eq!(world.fleet.instance(InstanceId(1)).unwrap().version, None, "consumed");
    assert_eq!(world.fleet.gate(InstanceId(1), at(60_040)), Gate::Open, "its ports were open when it slept");
    world.report(1, Report::Ready, 60_150);
    assert_eq!(world.fleet.instance(InstanceId(1)).unwrap().restores.percentile_ms(50), Some(150));
}

#[test]
fn an_answer_that_may_still_be_held_keeps_it_awake_where_that_is_asked_for() {
    for (dns_lease, sleeps) in [(DnsLease::Uncovered, 13_000), (DnsLease::Always, 40_000)] {
        let mut world = World::new(4);
        let hello = world.add(1, "hello", 0, Policy { dns_lease, ..policy() });
        world.up(1, &hello, [0, 100, 3_000]);
        for until in [40_000, 20_000] {
            let answered = Event::Answered { instance: InstanceId(1), until: at(until) };
            world.fleet.apply(answered, at(3_000)).unwrap();
        }
        assert_eq!(world.plan(3_000), [format!("look at {sleeps}")]);
        assert!(world.plan(sleeps)[0].starts_with("i1 drain"));
    }
}

#[test]
fn an_open_connection_keeps_it_awake_however_long() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, policy());
    world.up(1, &hello, [0, 100, 3_000]);
    for hour in 1..48 {
        let now = hour * 3_600_000;
        let traffic = Event::Traffic { instance: InstanceId(1), open_connections: 1, last_packet: None };
        world.fleet.apply(traffic, at(now)).unwrap();
        assert_eq!(world.plan(now), [format!("look at {}", now + 10_000)]);
    }
    let refused = world
        .fleet
        .apply(Event::SleepAsked { service: hello.clone(), how: SleepAsked::WhenIdle }, at(200_000_000));
    assert_eq!(refused, Err(RequestError::Busy { service: hello, open_connections: 1 }));
}

#[test]
fn a_client_at_the_last_look_keeps_it_awake() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, policy());
    world.up(1, &hello, [0, 100, 3_000]);
    world.plan(13_000);
    world.report(1, Report::GateBusy { open_connections: 1, last_packet: at(13_000) }, 13_000);
    assert_eq!(world.phase(1), (Phase::Active, Rung::Active));
    assert_eq!(world.plan(13_000), ["look at 23000"]);
}

#[test]
fn a_client_during_the_capture_turns_it_back_or_wakes_it_at_once() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, policy());
    world.up(1, &hello, [0, 100, 3_000]);
    world.plan(13_000);
    world.report(1, Report::GateClosed, 13_000);
    world.plan(13_000);
    world.wake(&hello, 13_001).unwrap();
    let abandon =
        "i1 abandon capture: a DNS query of type 1 from 127.0.0.1 asked for it while it went to sleep";
    assert_eq!(world.plan(13_001), [abandon]);
    assert_eq!(world.plan(13_002), NOTHING, "asked once");
    let mut late = World { fleet: world.fleet.clone() };
    world.report(1, Report::CaptureAbandoned, 13_003);
    assert_eq!(world.phase(1), (Phase::Active, Rung::Active));
    assert_eq!(world.plan(13_003), ["look at 23003"]);
    late.report(1, Report::Captured { version: version(1) }, 13_003);
    assert_eq!(
        late.plan(13_003),
        ["i1 restore from local: a DNS query of type 1 from 127.0.0.1 asked for it"]
    );
}

#[test]
fn a_client_while_draining_opens_the_gate_again() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, policy());
    world.asleep(1, &hello);
    world.up(1, &hello, [20_000, 20_010, 20_100]);
    world.plan(31_000);
    assert_eq!(world.phase(1).0, Phase::Draining);
    world.wake(&hello, 31_001).unwrap();
    assert_eq!(
        world.plan(31_001),
        ["i1 undrain: a DNS query of type 1 from 127.0.0.1 asked for it while it went to sleep"]
    );
    assert_eq!(world.phase(1), (Phase::Active, Rung::Active));
}

#[test]
fn a_failed_start_is_retried_with_back_off_then_refused_then_tried_afresh() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, policy());
    let cause = Cause::StartFailed { detail: "no memory".into() };
    world.wake(&hello, 0).unwrap();
    world.plan(0);
    world.report(1, Report::Lost { cause: cause.clone() }, 100);
    assert_eq!(world.plan(100), ["i1 kill, leaving All: a process of the failed start may be left"]);
    assert_eq!(world.plan(100), NOTHING, "nothing starts before the old process is gone");
    world.report(1, Report::Fenced { version: None }, 110);
    assert_eq!(
        world.plan(110),
        [
            "i1 wait until Some(600): 1 starts failed in a row, the last because the start failed: no memory",
            "look at 600"
        ]
    );
    assert_eq!(
        world.plan(600),
        [
            "i1 boot: a DNS query of type 1 from 127.0.0.1 asked for it; 1 starts failed before, the last because the start failed: no memory"
        ]
    );
    world.report(1, Report::Lost { cause: cause.clone() }, 700);
    world.plan(700);
    world.report(1, Report::Fenced { version: None }, 710);
    assert_eq!(world.plan(710), NOTHING, "gave up: nobody is kept waiting");
    assert_eq!(world.fleet.gate(InstanceId(1), at(710)), Gate::Refuse);
    assert_eq!(
        world.wake(&hello, 10_700),
        Err(RequestError::GaveUp { service: hello.clone(), cause, wait_ms: 20_000 })
    );
    assert_eq!(world.fleet.gate(InstanceId(1), at(30_700)), Gate::Hold);
    world.wake(&hello, 30_700).unwrap();
    assert_eq!(world.plan(30_700).len(), 1, "a later request is the way out, without a person");
    assert_eq!(world.phase(1).0, Phase::Booting);
}

#[test]
fn a_start_that_takes_too_long_is_given_up_and_its_process_ended() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, policy());
    world.wake(&hello, 0).unwrap();
    world.plan(0);
    world.report(1, Report::Running, 100);
    assert_eq!(
        world.plan(20_000),
        ["i1 give up start (it was still warming after 20000 ms): it was not ready after 20.0 s"]
    );
    assert_eq!(world.plan(20_000), ["i1 kill, leaving All: a process of the failed start may be left"]);
    let late = Event::Reported { instance: InstanceId(1), start: 1, report: Report::Ready };
    assert!(world.fleet.apply(late, at(20_001)).is_err(), "too late to be ready");
}

#[test]
fn a_version_that_does_not_restore_is_tried_again_and_then_booted_cold() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, Policy { attempts_max: 5, ..policy() });
    world.asleep(1, &hello);
    world.wake(&hello, 20_000).unwrap();
    assert_eq!(world.plan(20_000).len(), 1);
    let cause = Cause::VmmDied { detail: "odd".into() };
    let mut now = 20_000;
    for expected in ["restore from local", "boot"] {
        world.lose(1, cause.clone(), Some(version(1)), now);
        now += 10_000;
        let plan = world.plan(now);
        assert!(plan[0].starts_with(&format!("i1 {expected}")), "{plan:?}");
    }
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, policy());
    world.asleep(1, &hello);
    world.wake(&hello, 20_000).unwrap();
    world.plan(20_000);
    let cause = Cause::VersionUnusable { detail: "other CPU".into() };
    world.report(1, Report::Lost { cause }, 20_001);
    world.plan(20_001);
    world.report(1, Report::Fenced { version: Some(version(1)) }, 20_002);
    let plan = world.plan(30_000);
    assert!(plan[0].starts_with("i1 boot"), "no second try of what cannot fit: {plan:?}");
}

#[test]
fn a_host_that_cannot_start_anything_costs_no_guest() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, Policy { attempts_max: 3, ..policy() });
    world.asleep(1, &hello);
    let mut now = 20_000;
    let hosts_fault = Cause::StartFailed { detail: "no room".into() };
    let anybodys = Cause::StartTimedOut { limit_ms: 3_000, phase: Phase::Restoring };
    for number in 0..7 {
        // Refused while it is given up; from its end on the request is tried afresh.
        let _ = world.wake(&hello, now);
        let plan = world.plan(now);
        assert!(plan[0].starts_with("i1 restore from local"), "{plan:?}");
        // One of another kind among them is one, and not the last of many.
        let cause = if number == 2 { anybodys.clone() } else { hosts_fault.clone() };
        world.lose(1, cause, Some(version(1)), now);
        now += 30_000;
    }
}

#[test]
fn what_an_armed_process_could_not_load_is_tried_once_in_a_fresh_one() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, Policy { rest: Rung::Armed, attempts_max: 5, ..policy() });
    world.asleep(1, &hello);
    world.plan(13_010);
    world.report(1, Report::Armed, 13_020);
    world.wake(&hello, 20_000).unwrap();
    let mut now = 20_000;
    for expected in ["restore from armed", "restore from local", "boot"] {
        let plan = world.plan(now);
        assert!(plan[0].starts_with(&format!("i1 {expected}")), "{plan:?}");
        let cause = Cause::VersionUnusable { detail: "load of migration failed".into() };
        world.lose(1, cause, Some(version(1)), now);
        now += 10_000;
    }
}

#[test]
fn a_lost_instance_starts_on_the_next_request_without_a_pause() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, policy());
    world.up(1, &hello, [0, 100, 3_000]);
    world.report(1, Report::Lost { cause: Cause::VmmHung { waited_ms: 1_000 } }, 5_000);
    assert_eq!(world.plan(5_000), ["i1 kill, leaving All: a process of the failed start may be left"]);
    world.report(1, Report::Fenced { version: None }, 5_001);
    assert_eq!(world.plan(5_001), NOTHING, "nobody asks");
    world.wake(&hello, 5_002).unwrap();
    assert_eq!(
        world.plan(5_002),
        [
            "i1 boot: a DNS query of type 1 from 127.0.0.1 asked for it after it was lost: its QEMU process did not answer for 1000 ms"
        ]
    );
}

#[test]
fn what_rests_armed_is_armed_after_it_slept_and_restored_from_there() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, Policy { rest: Rung::Armed, ..policy() });
    world.asleep(1, &hello);
    assert_eq!(world.plan(13_020), ["i1 arm: its policy is to sleep on the rung armed"]);
    world.wake(&hello, 13_030).unwrap();
    assert_eq!(world.plan(13_030), NOTHING, "arming is nearly over; it is not started twice");
    world.report(1, Report::Armed, 13_050);
    let plan = world.plan(13_050);
    assert!(plan[0].starts_with("i1 restore from armed"), "{plan:?}");
}

#[test]
fn a_failed_arming_does_not_hinder_a_wake() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, Policy { rest: Rung::Armed, backoff_ms_max: 30_000, ..policy() });
    world.asleep(1, &hello);
    world.plan(13_020);
    let cause = Cause::StartFailed { detail: "no memory".into() };
    world.report(1, Report::RestFailed { cause }, 13_050);
    assert_eq!(world.plan(13_050), ["look at 43050"]);
    world.wake(&hello, 13_060).unwrap();
    let plan = world.plan(13_060);
    assert!(plan[0].starts_with("i1 restore from local"), "{plan:?}");
}

#[test]
fn a_failed_capture_leaves_it_running_and_is_tried_again_later() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, Policy { backoff_ms_max: 30_000, ..policy() });
    world.up(1, &hello, [0, 100, 3_000]);
    world.plan(13_000);
    world.report(1, Report::GateClosed, 13_000);
    world.plan(13_000);
    let cause = Cause::CaptureFailed { detail: "disk full".into() };
    world.report(1, Report::CaptureFailed { cause: cause.clone() }, 13_010);
    assert_eq!(world.phase(1), (Phase::Active, Rung::Active));
    assert_eq!(world.fleet.instance(InstanceId(1)).unwrap().sleep_retry, Some((at(43_010), cause)));
    let waits = "i1 wait until Some(43010): it runs on: the hibernation failed: disk full";
    assert_eq!(world.plan(13_010), [waits, "look at 43010"]);
    // An operator's order is tried at once, and once: after it failed too, the pause counts again.
    let asked = Event::SleepAsked { service: hello, how: SleepAsked::WhenIdle };
    world.fleet.apply(asked, at(14_000)).unwrap();
    world.plan(14_000);
    world.report(1, Report::GateClosed, 14_000);
    world.plan(14_000);
    let cause = Cause::CaptureFailed { detail: "disk full".into() };
    world.report(1, Report::CaptureFailed { cause }, 14_010);
    assert_eq!(world.plan(14_010), [&waits.replace("43010", "44010"), "look at 44010"]);
}

#[test]
fn a_removed_service_is_ended_first_and_then_forgotten() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, policy());
    world.asleep(1, &hello);
    world.fleet.apply(Event::RemoveAsked { service: hello.clone() }, at(20_000)).unwrap();
    assert_eq!(world.plan(20_000), ["i1 kill, leaving Nothing: the service was removed"]);
    assert_eq!(world.wake(&hello, 20_001), Err(RequestError::Retiring(hello.clone())));
    world.report(1, Report::Fenced { version: None }, 20_010);
    assert!(world.fleet.service(&hello).is_none() && world.fleet.instance(InstanceId(1)).is_none());
    assert_eq!(world.plan(20_011), NOTHING);
}

#[test]
fn a_terminated_service_boots_next_time() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, policy());
    world.asleep(1, &hello);
    let ended = Event::SleepAsked { service: hello.clone(), how: SleepAsked::Terminate };
    world.fleet.apply(ended, at(20_000)).unwrap();
    assert_eq!(world.plan(20_000), ["i1 kill, leaving Disk: an operator ended it"]);
    world.report(1, Report::Fenced { version: None }, 20_010);
    assert_eq!(world.phase(1), (Phase::Off, Rung::Cold));
    world.wake(&hello, 20_020).unwrap();
    assert!(world.plan(20_020)[0].starts_with("i1 boot"));
}

#[test]
fn who_waits_for_a_start_is_counted_but_does_not_begin_it_again_once_an_operator_ended_it() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, policy());
    let awaited = Event::Awaited { service: hello.clone() };
    assert_eq!(world.fleet.apply(awaited.clone(), at(0)), Ok(Applied::Unchanged));
    assert_eq!(world.plan(0), NOTHING);
    world.wake(&hello, 1).unwrap();
    world.plan(1);
    assert_eq!(world.fleet.apply(awaited.clone(), at(2)), Ok(Applied::Changed));
    assert_eq!(world.fleet.service(&hello).unwrap().demand.as_ref().unwrap().asks, 2);
    let ended = Event::SleepAsked { service: hello.clone(), how: SleepAsked::Terminate };
    world.fleet.apply(ended, at(100)).unwrap();
    // A query that was answered from a view in which it boots.
    assert_eq!(world.fleet.apply(awaited.clone(), at(101)), Ok(Applied::Unchanged));
    assert_eq!(world.plan(102), ["i1 kill, leaving Disk: an operator ended it"]);
    assert_eq!(world.fleet.apply(awaited.clone(), at(103)), Ok(Applied::Unchanged));
    world.report(1, Report::Fenced { version: None }, 110);
    assert_eq!(world.plan(111), NOTHING);
    assert_eq!(world.phase(1), (Phase::Off, Rung::Cold));
    // Nor does it keep awake what an operator sends to sleep.
    world.asleep(1, &hello);
    world.up(1, &hello, [20_000, 20_010, 20_020]);
    let sleep = Event::SleepAsked { service: hello.clone(), how: SleepAsked::Force };
    world.fleet.apply(sleep, at(20_030)).unwrap();
    assert_eq!(world.fleet.apply(awaited, at(20_031)), Ok(Applied::Unchanged));
    assert_eq!(world.plan(20_032), ["i1 drain idle 0 force true: an operator asked for it"]);
}

#[test]
fn a_report_of_an_earlier_start_changes_nothing() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, policy());
    world.asleep(1, &hello);
    world.wake(&hello, 20_000).unwrap();
    world.plan(20_000);
    let stale = Event::Reported { instance: InstanceId(1), start: 1, report: Report::Running };
    assert_eq!(world.fleet.apply(stale, at(20_001)), Ok(Applied::Stale));
    assert_eq!(world.phase(1).0, Phase::Restoring);
}

// --- Versions in the object store --------------------------------------------------------------------------------

#[test]
fn a_service_is_woken_at_its_time_once_and_sleeps_again() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, policy());
    world.asleep(1, &hello);
    let schedule = |at| Event::WakeAt { service: hello.clone(), at };
    assert_eq!(world.fleet.apply(schedule(Some(at(90_000))), at(20_000)).unwrap(), Applied::Changed);
    assert_eq!(world.fleet.apply(schedule(Some(at(90_000))), at(20_000)).unwrap(), Applied::Unchanged);
    assert_eq!(world.plan(20_000), ["look at 90000"]);
    assert_eq!(world.fleet.due(at(89_999)), []);
    assert_eq!(world.fleet.due(at(90_003)), [(hello.clone(), at(90_000))]);
    let trigger = Trigger::Schedule { due: at(90_000) };
    world.fleet.apply(Event::WakeAsked { service: hello.clone(), trigger }, at(90_003)).unwrap();
    assert_eq!(world.fleet.due(at(90_003)), []);
    assert_eq!(world.plan(90_003), ["i1 restore from local: its schedule asked for it"]);
    world.report(1, Report::Running, 90_010);
    world.report(1, Report::Ready, 90_100);
    // What has its jobs done sleeps as always.
    assert_eq!(world.plan(90_100), ["look at 100100"]);

    // A time that comes while it is awake has come; one that is taken back does not.
    world.fleet.apply(schedule(Some(at(95_000))), at(91_000)).unwrap();
    assert_eq!(world.plan(91_000), ["look at 95000"]);
    world.fleet.apply(schedule(None), at(91_000)).unwrap();
    assert_eq!(world.plan(91_000), ["look at 100100"]);
    world.fleet.apply(schedule(Some(at(95_000))), at(91_000)).unwrap();
    let trigger = Trigger::Schedule { due: at(95_000) };
    world.fleet.apply(Event::WakeAsked { service: hello.clone(), trigger }, at(95_000)).unwrap();
    assert_eq!(world.fleet.due(at(95_000)), []);
}

#[test]
fn a_guest_that_does_not_want_to_sleep_is_asked_again_later() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, policy());
    world.up(1, &hello, [0, 100, 3_000]);
    world.plan(13_000);
    world.report(1, Report::GateClosed, 13_000);
    world.plan(13_000);
    let cause = Cause::Vetoed { reason: "a backup runs".into() };
    world.report(1, Report::CaptureFailed { cause }, 13_050);
    assert_eq!(world.phase(1), (Phase::Active, Rung::Active));
    let plan = world.plan(13_050);
    assert!(plan[0].ends_with("the guest does not want to sleep now: a backup runs"), "{plan:?}");
}
