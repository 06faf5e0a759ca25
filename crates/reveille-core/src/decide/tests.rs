//! Stories: what happens, and the whole plan after it.

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::model::{
    AfterCrash, AnswerPolicy, Applied, Egress, Event, Found, Gate, HostLimits, Kind, Ownership, Policy,
    PortSpec, Report, RequestError, Resources, ServiceSpec, SnapshotVersion, Trigger, reconcile,
};

const T0: u64 = 1_000_000;

pub(super) fn at(ms: u64) -> Timestamp {
    Timestamp::from_ms(T0 + ms)
}

fn query() -> Trigger {
    Trigger::Query { client: IpAddr::V4(Ipv4Addr::LOCALHOST), qtype: 1, subnet: None }
}

pub(super) fn policy() -> Policy {
    Policy {
        idle_ms: 10_000,
        min_on_ms: 2_000,
        grace_ms: 0,
        attempts_max: 2,
        backoff_ms: 500,
        cooloff_ms: 30_000,
        boot_ms_max: 20_000,
        restore_ms_max: 5_000,
        ..Policy::default()
    }
}

/// A host with services, and a clock that only the test moves.
pub(super) struct World {
    pub(super) fleet: Fleet,
}

impl World {
    fn new(starts_max: u32) -> Self {
        Self { fleet: Fleet::new(HostLimits { starts_max, ..HostLimits::default() }) }
    }

    pub(super) fn add(&mut self, id: u64, label: &str, priority: u8, policy: Policy) -> DomainName {
        let name: DomainName = format!("{label}.vm.test").parse().unwrap();
        let spec = ServiceSpec {
            name: name.clone(),
            kind: Kind::Single,
            image: "demo".into(),
            resources: Resources::default(),
            ports: vec!["tcp/8080".parse::<PortSpec>().unwrap()],
            ready: None,
            address: None,
            address6: None,
            priority,
            egress: Egress::None,
            egress_allow: Vec::new(),
            egress_deny: Vec::new(),
            policy: Policy { answer: AnswerPolicy::Immediate, ..policy },
        };
        let service = Service {
            spec,
            address: Ipv4Addr::new(127, 64, 0, 1),
            created_at: at(0),
            primary: InstanceId(id),
            demand: None,
            foreign: None,
        };
        let instance = Instance::new(InstanceId(id), name.clone(), at(0));
        let event = Event::Added { service: Box::new(service), instance: Box::new(instance) };
        self.fleet.apply(event, at(0)).unwrap();
        if self.fleet.limits.has_depot {
            let ownership = Ownership::Ours { epoch: 1, newest: None, number_last: 0 };
            self.fleet.apply(Event::Owned { service: name.clone(), ownership }, at(0)).unwrap();
        }
        name
    }

    pub(super) fn wake(&mut self, name: &DomainName, ms: u64) -> Result<Applied, RequestError> {
        self.fleet.apply(Event::WakeAsked { service: name.clone(), trigger: query() }, at(ms))
    }

    pub(super) fn report(&mut self, id: u64, report: Report, ms: u64) {
        let start = self.fleet.instance(InstanceId(id)).unwrap().start;
        self.fleet.apply(Event::Reported { instance: InstanceId(id), start, report }, at(ms)).unwrap();
    }

    /// Decides and begins everything; the plan as lines of text, the next look last.
    pub(super) fn plan(&mut self, ms: u64) -> Vec<String> {
        let plan = decide(&self.fleet, at(ms));
        let mut lines = Vec::new();
        for decision in &plan.decisions {
            let action = match &decision.action {
                Action::Boot => "boot".to_owned(),
                Action::Restore { from, keep } => {
                    format!("restore from {from}{}", if *keep { ", keeping it" } else { "" })
                }
                Action::Arm { keep } => format!("arm{}", if *keep { ", keeping it" } else { "" }),
                Action::Pause => "pause".to_owned(),
                Action::Fetch => "fetch".to_owned(),
                Action::Evict => "evict".to_owned(),
                Action::RollBack { from, number } => format!("roll back to {from} as {number}"),
                Action::Publish { number } => format!("publish {number}"),
                Action::Checkpoint { number } => format!("checkpoint {number}"),
                Action::Disarm => "disarm".to_owned(),
                Action::Drain { idle_ms, force } => format!("drain idle {idle_ms} force {force}"),
                Action::Undrain => "undrain".to_owned(),
                Action::Capture => "capture".to_owned(),
                Action::AbandonCapture => "abandon capture".to_owned(),
                Action::GiveUpStart { cause } => format!("give up start ({cause})"),
                Action::Kill { remains } => format!("kill, leaving {remains:?}"),
                Action::Wait { until } => {
                    format!("wait until {:?}", until.map(|until| until.as_ms() - T0))
                }
            };
            lines.push(format!("{} {action}: {}", decision.instance, decision.reason));
            self.fleet.begin(decision, at(ms)).unwrap();
        }
        lines.extend(plan.next_look.map(|next| format!("look at {}", next.as_ms() - T0)));
        lines
    }

    pub(super) fn phase(&self, id: u64) -> (Phase, Rung) {
        let instance = self.fleet.instance(InstanceId(id)).unwrap();
        (instance.phase, instance.rung)
    }

    /// Brings a fresh instance to sleep with version 1, at 20 s.
    pub(super) fn asleep(&mut self, id: u64, name: &DomainName) {
        self.wake(name, 0).unwrap();
        self.plan(0);
        self.report(id, Report::Running, 100);
        self.report(id, Report::Ready, 3_000);
        self.plan(13_000);
        self.report(id, Report::GateClosed, 13_000);
        self.plan(13_000);
        self.report(id, Report::Captured { version: version(1) }, 13_010);
    }
}

pub(super) fn version(number: u64) -> SnapshotVersion {
    SnapshotVersion { number, at: at(13_000), stored_bytes: 1 << 20, paused_us: 1, image: "demo".into() }
}

pub(super) const NOTHING: [&str; 0] = [];

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
    world.wake(&hello, 0).unwrap();
    world.plan(0);
    world.report(1, Report::Running, 100);
    world.report(1, Report::Ready, 3_000);
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
        world.wake(&hello, 0).unwrap();
        world.plan(0);
        world.report(1, Report::Running, 100);
        world.report(1, Report::Ready, 3_000);
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
    world.wake(&hello, 0).unwrap();
    world.plan(0);
    world.report(1, Report::Running, 100);
    world.report(1, Report::Ready, 3_000);
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
    world.wake(&hello, 0).unwrap();
    world.plan(0);
    world.report(1, Report::Running, 100);
    world.report(1, Report::Ready, 3_000);
    world.plan(13_000);
    world.report(1, Report::GateBusy { open_connections: 1, last_packet: at(13_000) }, 13_000);
    assert_eq!(world.phase(1), (Phase::Active, Rung::Active));
    assert_eq!(world.plan(13_000), ["look at 23000"]);
}

#[test]
fn a_client_during_the_capture_turns_it_back_or_wakes_it_at_once() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, policy());
    world.wake(&hello, 0).unwrap();
    world.plan(0);
    world.report(1, Report::Running, 100);
    world.report(1, Report::Ready, 3_000);
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
    world.wake(&hello, 20_000).unwrap();
    world.plan(20_000);
    world.report(1, Report::Running, 20_010);
    world.report(1, Report::Ready, 20_100);
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
        world.report(1, Report::Lost { cause: cause.clone() }, now);
        world.plan(now);
        world.report(1, Report::Fenced { version: Some(version(1)) }, now);
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
    for _ in 0..7 {
        // Refused while it is given up; from its end on the request is tried afresh.
        let _ = world.wake(&hello, now);
        let plan = world.plan(now);
        assert!(plan[0].starts_with("i1 restore from local"), "{plan:?}");
        let cause = Cause::StartFailed { detail: "no room".into() };
        world.report(1, Report::Lost { cause }, now);
        world.plan(now);
        world.report(1, Report::Fenced { version: Some(version(1)) }, now);
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
        world.report(1, Report::Lost { cause }, now);
        world.plan(now);
        world.report(1, Report::Fenced { version: Some(version(1)) }, now);
        now += 10_000;
    }
}

#[test]
fn a_lost_instance_starts_on_the_next_request_without_a_pause() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, policy());
    world.wake(&hello, 0).unwrap();
    world.plan(0);
    world.report(1, Report::Running, 100);
    world.report(1, Report::Ready, 3_000);
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
    world.wake(&hello, 0).unwrap();
    world.plan(0);
    world.report(1, Report::Running, 100);
    world.report(1, Report::Ready, 3_000);
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
    world.wake(&hello, 20_000).unwrap();
    world.plan(20_000);
    world.report(1, Report::Running, 20_010);
    world.report(1, Report::Ready, 20_020);
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

// --- Room on the host ------------------------------------------------------------------------------------------

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
    world.wake(&first, 0).unwrap();
    world.plan(0);
    world.report(1, Report::Running, 100);
    world.report(1, Report::Ready, 200);
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
    world.wake(&high, 0).unwrap();
    world.plan(0);
    world.report(2, Report::Running, 1);
    world.report(2, Report::Ready, 2);
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

// --- Versions in the object store --------------------------------------------------------------------------------

pub(super) fn with_depot() -> World {
    World { fleet: Fleet::new(HostLimits { has_depot: true, ..HostLimits::default() }) }
}

impl World {
    pub(super) fn published(
        &mut self,
        id: u64,
        number: u64,
        result: Result<SnapshotVersion, Cause>,
        ms: u64,
    ) {
        self.fleet.apply(Event::Published { instance: InstanceId(id), number, result }, at(ms)).unwrap();
    }
}

#[test]
fn a_version_goes_to_the_store_and_a_wake_does_not_wait_for_it() {
    let mut world = with_depot();
    let hello = world.add(1, "hello", 0, policy());
    world.asleep(1, &hello);
    assert_eq!(world.plan(13_010), ["i1 publish 1: the object store does not have its version yet"]);
    assert_eq!(world.plan(13_020), NOTHING, "once");
    // The files are being read: the guest goes on beside them.
    world.wake(&hello, 13_030).unwrap();
    let plan = world.plan(13_030);
    assert_eq!(
        plan[0],
        "i1 restore from local, keeping it: a DNS query of type 1 from 127.0.0.1 asked for it"
    );
    world.report(1, Report::Running, 13_040);
    world.published(1, 1, Ok(version(1)), 13_050);
    let row = world.fleet.instance(InstanceId(1)).unwrap();
    assert_eq!(row.stored, Some(version(1)));
    assert!(!row.stored_is_current, "the guest has run since");
}

#[test]
fn what_could_not_be_sent_is_sent_later() {
    let mut world = with_depot();
    let hello = world.add(1, "hello", 0, policy());
    world.asleep(1, &hello);
    world.plan(13_010);
    let cause = Cause::StoreFailed { detail: "no answer".into() };
    world.published(1, 1, Err(cause), 13_100);
    assert_eq!(world.plan(13_100), ["look at 43100"]);
    assert_eq!(world.plan(43_100), ["i1 publish 1: the object store does not have its version yet"]);
    world.published(1, 1, Ok(version(1)), 43_200);
    assert_eq!(world.plan(43_200), NOTHING);
}

#[test]
fn a_service_that_rests_remote_leaves_the_disk_and_comes_back() {
    let mut world = with_depot();
    let hello = world.add(1, "hello", 0, Policy { rest: Rung::Remote, ..policy() });
    world.asleep(1, &hello);
    world.plan(13_010);
    world.published(1, 1, Ok(version(1)), 13_100);
    assert_eq!(world.plan(13_100), ["i1 evict: its policy is to sleep on the rung remote"]);
    world.report(1, Report::Evicted, 13_110);
    assert_eq!(world.phase(1), (Phase::Hibernated, Rung::Remote));
    assert_eq!(world.plan(13_110), NOTHING);
    world.wake(&hello, 20_000).unwrap();
    assert_eq!(world.plan(20_000)[0], "i1 fetch: a DNS query of type 1 from 127.0.0.1 asked for it");
    let cause = Cause::StoreFailed { detail: "no answer".into() };
    world.report(1, Report::RestFailed { cause }, 20_100);
    assert_eq!(world.plan(20_100), ["look at 20600"], "who waits does not wait for the long pause");
    assert_eq!(world.plan(20_600)[0], "i1 fetch: a DNS query of type 1 from 127.0.0.1 asked for it");
    world.report(1, Report::Fetched { version: version(1) }, 20_700);
    let plan = world.plan(20_700);
    assert_eq!(plan[0], "i1 restore from local: a DNS query of type 1 from 127.0.0.1 asked for it");
}

#[test]
fn a_full_cache_gives_up_what_was_asked_for_longest_ago_and_keeps_what_the_store_lacks() {
    let mut world = with_depot();
    world.fleet.limits.cache_mib_max = 1;
    let (old, new) = (world.add(1, "old", 0, policy()), world.add(2, "new", 0, policy()));
    world.asleep(1, &old);
    world.wake(&new, 14_000).unwrap();
    world.plan(14_000);
    world.report(2, Report::Running, 14_100);
    world.report(2, Report::Ready, 14_200);
    world.plan(24_200);
    world.report(2, Report::GateClosed, 24_200);
    world.plan(24_200);
    world.report(2, Report::Captured { version: version(1) }, 24_300);
    let plan = world.plan(24_300);
    assert!(plan.iter().all(|line| !line.contains("evict")), "nothing is in the store: {plan:#?}");
    world.published(2, 1, Ok(version(1)), 24_400);
    world.published(1, 1, Ok(version(1)), 24_400);
    let plan = world.plan(24_400);
    assert_eq!(plan, ["i1 evict: 2 MiB of 1 are cached, and this version is needed last"]);
    world.report(1, Report::Evicted, 24_500);
    assert_eq!(world.plan(24_500), NOTHING, "and it is not fetched again");
}

#[test]
fn a_busy_guest_has_a_version_of_bounded_age() {
    let mut world = with_depot();
    let hello = world.add(1, "hello", 0, Policy { checkpoint_ms: 5_000, ..policy() });
    world.wake(&hello, 0).unwrap();
    world.plan(0);
    world.report(1, Report::Running, 100);
    world.report(1, Report::Ready, 200);
    let traffic = Event::Traffic { instance: InstanceId(1), open_connections: 1, last_packet: Some(at(300)) };
    world.fleet.apply(traffic, at(300)).unwrap();
    assert!(world.plan(300).contains(&"look at 5100".to_owned()));
    let plan = world.plan(5_100);
    assert_eq!(plan[0], "i1 checkpoint 1: its last version is 5.0 s old (limit 5.0 s)");
    assert!(world.plan(6_000).iter().all(|line| !line.contains("checkpoint")), "one at a time");
    let taken = SnapshotVersion { at: at(5_200), ..version(1) };
    let event = Event::Checkpointed { instance: InstanceId(1), number: 1, result: Ok(taken) };
    world.fleet.apply(event, at(5_900)).unwrap();
    assert!(world.plan(5_900).contains(&"look at 10200".to_owned()));
    assert!(world.plan(10_200)[0].starts_with("i1 checkpoint 2"));
}

#[test]
fn after_a_crash_the_last_version_counts_only_where_the_policy_says_so() {
    for (after_crash, next) in [(AfterCrash::Boot, "i1 boot"), (AfterCrash::LastVersion, "i1 fetch")] {
        let mut world = with_depot();
        let hello = world.add(1, "hello", 0, Policy { after_crash, ..policy() });
        world.asleep(1, &hello);
        world.plan(13_010);
        world.published(1, 1, Ok(version(1)), 13_100);
        world.wake(&hello, 14_000).unwrap();
        world.plan(14_000);
        world.report(1, Report::Running, 14_100);
        world.report(1, Report::Ready, 14_200);
        world.report(1, Report::Lost { cause: Cause::VmmDied { detail: "test".into() } }, 15_000);
        world.plan(15_000);
        world.report(1, Report::Fenced { version: None }, 15_010);
        world.wake(&hello, 15_100).unwrap();
        let plan = world.plan(15_100);
        assert!(plan[0].starts_with(next), "{plan:#?}");
    }
}

#[test]
fn a_service_that_comes_back_goes_on_from_what_the_other_host_left() {
    for rest in [Rung::Local, Rung::Armed] {
        let mut world = with_depot();
        let hello = world.add(1, "hello", 0, Policy { rest, ..policy() });
        world.asleep(1, &hello);
        world.plan(13_010);
        world.published(1, 1, Ok(version(1)), 13_100);
        if rest == Rung::Armed {
            world.plan(13_100);
            world.report(1, Report::Armed, 13_200);
        }
        let owned = |ownership| Event::Owned { service: hello.clone(), ownership };
        world.fleet.apply(owned(Ownership::Foreign("second".to_owned())), at(20_000)).unwrap();
        let plan = world.plan(20_000);
        if rest == Rung::Armed {
            assert!(plan[0].starts_with("i1 kill"), "{plan:#?}");
            world.report(1, Report::Fenced { version: Some(version(1)) }, 20_100);
        }
        assert!(world.wake(&hello, 20_200).is_err());
        // The other host slept twice with it, and fell silent.
        let ours = Ownership::Ours { epoch: 3, newest: Some((2, version(3))), number_last: 3 };
        world.fleet.apply(owned(ours), at(90_000)).unwrap();
        world.wake(&hello, 90_100).unwrap();
        let plan = world.plan(90_100);
        assert!(plan[0].starts_with("i1 fetch"), "{plan:#?}");
        // A crash of the daemon finds what lies on the disk, which is the past.
        let row = world.fleet.instance(InstanceId(1)).unwrap().clone();
        for found in [
            Found::Nothing { version: Some(version(1)) },
            Found::Untouched { version: version(1), armed: true },
        ] {
            let (row, _) = reconcile(row.clone(), found, at(90_200));
            assert_eq!((row.phase, row.rung, row.version), (Phase::Hibernated, Rung::Remote, None));
        }
    }
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
    world.wake(&hello, 0).unwrap();
    world.plan(0);
    world.report(1, Report::Running, 100);
    world.report(1, Report::Ready, 3_000);
    world.plan(13_000);
    world.report(1, Report::GateClosed, 13_000);
    world.plan(13_000);
    let cause = Cause::Vetoed { reason: "a backup runs".into() };
    world.report(1, Report::CaptureFailed { cause }, 13_050);
    assert_eq!(world.phase(1), (Phase::Active, Rung::Active));
    let plan = world.plan(13_050);
    assert!(plan[0].ends_with("the guest does not want to sleep now: a backup runs"), "{plan:?}");
}
