//! Services with a warm-up profile: clients are let in when it is over, whatever becomes of it.

use super::world::*;
use crate::model::*;
use crate::warm_up::WarmUpSet;

fn with_profile(profile: &str) -> (World, DomainName) {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, policy());
    name_profile(&mut world, &hello, profile);
    (world, hello)
}

fn name_profile(world: &mut World, name: &DomainName, profile: &str) {
    let mut spec = world.fleet.service(name).unwrap().spec.clone();
    spec.profile = Some(profile.to_owned());
    world.fleet.apply(Event::Respecified { spec: Box::new(spec) }, at(0)).unwrap();
}

fn row(world: &World) -> &Instance {
    world.fleet.instance(InstanceId(1)).unwrap()
}

#[test]
fn nobody_is_let_in_before_the_set_is_over_and_what_it_took_is_part_of_the_wake() {
    let (mut world, hello) = with_profile("cache-heavy");
    world.wake(&hello, 0).unwrap();
    world.plan(0);
    assert_eq!(row(&world).warm_up(), Some(WarmUpSet::Boot));
    world.report(1, Report::Running, 100);
    world.report(1, Report::WarmedUp { took_ms: Some(2_000) }, 2_500);
    assert_eq!(world.fleet.gate(InstanceId(1), at(2_500)), Gate::Hold, "it booted, and is not ready yet");
    world.report(1, Report::Ready, 2_600);
    world.down(1, 1, [13_000, 13_010]);

    world.wake(&hello, 20_000).unwrap();
    world.plan(20_000);
    assert_eq!(row(&world).warm_up(), Some(WarmUpSet::Restore));
    world.report(1, Report::Running, 20_100);
    assert_eq!(world.fleet.gate(InstanceId(1), at(20_100)), Gate::Hold, "its restore set is under way");
    // A daemon that takes it over knows that.
    let (again, step) = reconcile(row(&world).clone(), Found::Running, at(20_150));
    assert_eq!((step, again.warm_up()), (Reconciled::Adopt, Some(WarmUpSet::Restore)));
    world.report(1, Report::WarmedUp { took_ms: Some(250) }, 20_400);
    assert_eq!(world.fleet.gate(InstanceId(1), at(20_400)), Gate::Open, "before it is known to be ready");
    world.report(1, Report::Ready, 20_450);
    let local = row(&world).measured.on(Rung::Local).unwrap();
    assert_eq!(local.warm_ups.percentile_ms(50), Some(250));
    assert_eq!(local.wakes.percentile_ms(50), Some(450));
    assert_eq!(row(&world).measured.on(Rung::Cold).unwrap().warm_ups.percentile_ms(50), Some(2_000));
    world.down(1, 2, [31_000, 31_010]);
    assert_eq!(
        row(&world).likely_wakes().percentile_ms(50),
        Some(450),
        "the next one is expected to take it"
    );
}

#[test]
fn a_set_that_fails_is_a_start_that_failed_and_one_that_takes_too_long_as_well() {
    let (mut world, hello) = with_profile("compute-heavy");
    world.wake(&hello, 0).unwrap();
    world.plan(0);
    world.report(1, Report::Running, 100);
    let cause = Cause::WarmUpFailed { step: "build".into(), detail: "status 1".into() };
    world.lose(1, cause.clone(), None, 5_000);
    assert_eq!((world.phase(1).0, row(&world).failure.as_ref().unwrap().attempts), (Phase::Failed, 1));
    assert_eq!(row(&world).failure.as_ref().unwrap().cause.to_string(), cause.to_string());
    let plan = world.plan(5_600);
    assert!(plan[0].starts_with("i1 boot"), "{plan:?}");
    world.report(1, Report::Running, 5_700);
    let plan = world.plan(25_700);
    assert!(plan[0].starts_with("i1 give up start (it was still warming after 20000 ms)"), "{plan:?}");
}

#[test]
fn who_was_paused_is_warm_and_who_goes_without_a_profile_is_let_in_at_once() {
    let mut world = World::new(4);
    let hello = world.add(1, "hello", 0, Policy { rest: Rung::Paused, ..policy() });
    name_profile(&mut world, &hello, "cache-heavy");
    world.wake(&hello, 0).unwrap();
    world.plan(0);
    world.report(1, Report::Running, 100);
    world.report(1, Report::WarmedUp { took_ms: None }, 110);
    world.report(1, Report::Ready, 3_000);
    assert!(row(&world).measured.on(Rung::Cold).unwrap().warm_ups.percentile_ms(50).is_none());
    world.down(1, 1, [13_000, 13_010]);
    world.plan(13_010);
    world.report(1, Report::Paused, 13_500);
    world.wake(&hello, 14_000).unwrap();
    world.plan(14_000);
    assert_eq!(row(&world).warm_up(), None, "it was warmed up before it was stopped");
    world.report(1, Report::Running, 14_005);
    assert_eq!(world.fleet.gate(InstanceId(1), at(14_005)), Gate::Open);
}

#[test]
fn auto_sees_what_clients_wait_with_the_restore_set_and_without_it() {
    let (mut world, hello) = with_profile("auto");
    world.asleep(1, &hello);
    let mut taken = Vec::new();
    for round in 0..8_u64 {
        let asked = 100_000 * (round + 1);
        world.wake(&hello, asked).unwrap();
        world.plan(asked);
        let takes = row(&world).warm_up().is_some();
        taken.push(takes);
        world.report(1, Report::Running, asked + 50);
        if takes {
            world.report(1, Report::WarmedUp { took_ms: Some(300) }, asked + 350);
        }
        let answer = Event::FirstAnswer { instance: InstanceId(1), waited_ms: if takes { 400 } else { 150 } };
        world.fleet.apply(answer, at(asked + 400)).unwrap();
        world.report(1, Report::Ready, asked + 400);
        world.down(1, round + 2, [asked + 12_000, asked + 12_010]);
    }
    assert_eq!(taken, [true, true, true, false, false, false, false, false]);
}
