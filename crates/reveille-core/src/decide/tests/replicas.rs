//! Stories of a service that takes several instances.

use super::world::*;
use crate::model::*;

/// A host with one replicable service, whose instances carry ten clients each, awake since 200.
fn awake(limits: HostLimits) -> (World, DomainName) {
    let mut world = World { fleet: Fleet::new(limits) };
    let scaled = Policy {
        instances_max: 4,
        capacity: 10,
        target_percent: 100,
        stable_ms: 10_000,
        panic_ms: 2_000,
        scale_down_delay_ms: 5_000,
        ..policy()
    };
    let name = world.add(1, "web", 0, policy());
    let spec = world.fleet.service(&name).unwrap().spec.clone();
    let spec = ServiceSpec { kind: Kind::Replicable, policy: scaled, ..spec };
    world.fleet.apply(Event::Respecified { spec: Box::new(spec) }, at(0)).unwrap();
    world.up(1, &name, [0, 100, 200]);
    (world, name)
}

impl World {
    /// As the loop does: clients use so much, and what is decided is done.
    fn used(&mut self, name: &DomainName, in_use: u32, ms: u64) -> Vec<String> {
        self.fleet.apply(Event::Used { service: name.clone(), in_use }, at(ms)).unwrap();
        self.plan(ms)
    }

    fn replicated(&mut self, name: &DomainName, replica: u64, ms: u64) {
        let event = Event::Replicated { service: name.clone(), replica: InstanceId(replica) };
        self.fleet.apply(event, at(ms)).unwrap();
    }

    fn clients_of(&mut self, id: u64, open_connections: u32, ms: u64) {
        let instance = InstanceId(id);
        self.fleet.apply(Event::Traffic { instance, open_connections, last_packet: None }, at(ms)).unwrap();
    }

    /// A second and a third instance, ready at 1,200.
    fn three(&mut self, name: &DomainName) {
        self.used(name, 25, 1_000);
        for id in [2, 3] {
            self.replicated(name, id, 1_000);
            self.plan(1_000);
            self.report(id, Report::Running, 1_100);
            self.report(id, Report::Ready, 1_200);
        }
    }
}

/// Whether one of the lines begins like that.
fn begins(plan: &[String], with: &str) -> bool {
    plan.iter().any(|line| line.starts_with(with))
}

const CROWD: &str =
    "3 instances carry what its clients use: 25.0 at a time of late, a crowd; one is to carry 10";

#[test]
fn a_crowd_has_one_more_instance_after_another_until_they_carry_it() {
    let (mut world, name) = awake(HostLimits::default());
    assert_eq!(world.used(&name, 10, 900), ["look at 10200"]);
    assert_eq!(world.used(&name, 40, 1_900)[0], CROWD.replace("3 inst", "i1 replicate 2: 3 inst"));
    world.replicated(&name, 2, 1_900);
    let plan = world.plan(1_900);
    assert_eq!(plan[0], CROWD.replace("3 inst", "i1 replicate 3: 3 inst"));
    assert_eq!(plan[1], CROWD.replace("3 inst", "i2 boot: 3 inst"));
    world.replicated(&name, 3, 1_900);
    assert_eq!(world.plan(1_900)[0], CROWD.replace("3 inst", "i3 boot: 3 inst"));
    for id in [2, 3] {
        world.report(id, Report::Running, 2_000);
        world.report(id, Report::Ready, 2_100);
    }
    assert_eq!(world.plan(2_100), NOTHING, "there are as many as it takes");
    assert_eq!(world.fleet.serving(world.fleet.service(&name).unwrap()), 3);
}

#[test]
fn one_that_is_not_needed_takes_nobody_new_and_ends_when_its_clients_are_gone() {
    let (mut world, name) = awake(HostLimits::default());
    world.three(&name);
    world.clients_of(3, 2, 1_300);
    let mut plans = (2..40).map(|second| (second, world.used(&name, 5, second * 1_000)));
    let (second, plan) = plans.find(|(_, plan)| begins(plan, "i2 drain")).unwrap();
    assert!(second > 11, "not before the stable window and the delay have passed: {second}");
    let drained: Vec<&str> = plan.iter().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(drained[..2], ["i2 drain idle 0 force false", "i3 drain idle 0 force false"]);
    let ms = second * 1_000;
    assert!(!begins(&world.plan(ms), "i2"), "whoever came after the last count is not cut");
    world.clients_of(2, 0, ms);
    assert!(begins(&world.plan(ms), "i2 kill, leaving Nothing"), "it had no client");
    world.report(2, Report::Fenced { version: None }, ms + 100);
    assert!(!begins(&world.plan(ms + 200), "i3"), "its clients are not cut");
    world.clients_of(3, 0, ms + 300);
    assert!(begins(&world.plan(ms + 300), "i3 kill, leaving Nothing"));
    world.report(3, Report::Fenced { version: None }, ms + 400);
    assert!(world.fleet.service(&name).unwrap().replicas.is_empty());
    assert_eq!(world.fleet.instances().count(), 1);
    assert_eq!(world.fleet.held().memory_mib, 128, "what they held is given back");
}

#[test]
fn one_that_is_needed_again_while_its_clients_leave_takes_new_ones() {
    let (mut world, name) = awake(HostLimits::default());
    world.three(&name);
    world.clients_of(3, 1, 1_300);
    let ms = (2..40).map(|second| second * 1_000).find(|ms| begins(&world.used(&name, 15, *ms), "i3 drain"));
    let ms = ms.unwrap();
    assert_eq!(world.phase(3), (Phase::Draining, Rung::Active));
    world.used(&name, 40, ms + 1_000);
    world.used(&name, 60, ms + 2_000);
    assert_eq!(world.phase(3), (Phase::Active, Rung::Active));
}

#[test]
fn the_primary_sleeps_last_and_is_started_again_while_others_serve_for_it() {
    let (mut world, name) = awake(HostLimits::default());
    world.three(&name);
    // Lost, and fenced: clients go on being let in.
    world.lose(1, Cause::VmmDied { detail: "killed".into() }, None, 2_000);
    assert_eq!(world.fleet.gate(InstanceId(1), at(2_000)), Gate::Open);
    let plan = world.plan(2_600);
    assert!(plan[0].starts_with("i1 boot: 3 instances carry"), "{plan:?}");
    world.report(1, Report::Running, 2_700);
    world.report(1, Report::Ready, 2_800);
    // Nobody uses it any more, and it has been idle for longer than its policy says.
    for second in 3..30 {
        let plan = world.used(&name, 0, second * 1_000);
        let sleeps = plan.iter().any(|line| line.starts_with("i1 drain"));
        let alone = world.fleet.service(&name).unwrap().replicas.is_empty();
        assert!(!sleeps || alone, "{plan:?}");
        for id in [2, 3] {
            if world.fleet.instance(InstanceId(id)).is_some() {
                world.clients_of(id, 0, second * 1_000);
            }
            let ends = format!("i{id} kill");
            if plan.iter().any(|line| line.starts_with(&ends)) {
                world.report(id, Report::Fenced { version: None }, second * 1_000);
            }
        }
    }
    assert_eq!(world.phase(1).0, Phase::Draining, "at last it goes to sleep itself");
}

#[test]
fn with_the_service_all_its_instances_end_and_it_is_gone_only_after_them() {
    let (mut world, name) = awake(HostLimits::default());
    world.three(&name);
    world.clients_of(2, 5, 1_300);
    world.fleet.apply(Event::RemoveAsked { service: name.clone() }, at(2_000)).unwrap();
    let plan = world.plan(2_000);
    assert_eq!(plan[0], "i2 kill, leaving Nothing: the service was removed");
    assert!(plan[1].starts_with("i3 kill") && !plan.iter().any(|line| line.starts_with("i1")), "{plan:?}");
    world.report(2, Report::Fenced { version: None }, 2_100);
    world.report(3, Report::Fenced { version: None }, 2_100);
    assert!(world.plan(2_200)[0].starts_with("i1 kill, leaving Nothing"));
    world.report(1, Report::Fenced { version: None }, 2_300);
    assert_eq!((world.fleet.services().count(), world.fleet.instances().count()), (0, 0));
}

#[test]
fn the_budget_of_the_host_holds_for_them_too() {
    let limits = HostLimits { memory_mib_max: 256, ..HostLimits::default() };
    let (mut world, name) = awake(limits);
    world.used(&name, 25, 1_000);
    for id in [2, 3] {
        world.replicated(&name, id, 1_000);
    }
    let plan = world.plan(1_000);
    assert!(plan.iter().any(|line| line.starts_with("i2 boot")), "{plan:?}");
    let waits =
        "i3 wait until None: it needs 128 MiB and 128 of 256 MiB are held; 0 go to sleep to make room";
    assert!(plan.iter().any(|line| line == waits), "{plan:?}");
    assert!(world.fleet.held().memory_mib <= 256);
}

#[test]
fn one_that_does_not_start_is_replaced_after_a_pause_and_the_demand_of_the_service_is_not_its() {
    let (mut world, name) = awake(HostLimits::default());
    world.used(&name, 15, 1_000);
    world.replicated(&name, 2, 1_000);
    world.plan(1_000);
    let cause = Cause::StartFailed { detail: "no memory".into() };
    world.report(2, Report::Lost { cause }, 1_100);
    world.plan(1_100);
    world.report(2, Report::Fenced { version: None }, 1_200);
    assert_eq!(world.fleet.gate(InstanceId(1), at(1_200)), Gate::Open, "the others go on");
    let plan = world.used(&name, 15, 2_000);
    assert!(!plan.iter().any(|line| line.starts_with("i2 boot")), "not at once again: {plan:?}");
    for second in 3..34 {
        world.used(&name, 15, second * 1_000);
    }
    assert!(world.fleet.instance(InstanceId(2)).is_none_or(|row| row.retiring), "it makes place for another");
}

#[test]
fn a_single_service_never_has_a_second_instance() {
    let mut world = World::new(4);
    let name = world.add(1, "db", 0, policy());
    world.up(1, &name, [0, 100, 200]);
    assert_eq!(world.used(&name, 5_000, 1_000), ["look at 10200"]);
    let event = Event::Replicated { service: name.clone(), replica: InstanceId(2) };
    assert_eq!(world.fleet.apply(event, at(1_000)), Err(RequestError::NotReplicable(name)));
    let spec = world.fleet.services().next().unwrap().spec.clone();
    let faults = ServiceSpec { policy: Policy { instances_max: 2, ..policy() }, ..spec }.faults();
    assert_eq!(faults[0].key, "policy.instances_max");
}
