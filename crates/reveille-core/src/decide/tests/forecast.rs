//! Rungs ahead of demand.

use super::world::*;
use crate::decide::*;
use crate::forecast::gaps::Piece;
use crate::model::{Applied, Event, ForecastMode, Policy, Report};

/// Busy for 30 s after the arrival, quiet until a minute, likely for half a minute, and then never again.
const BUSY_QUIET_DUE: [(u64, f64); 4] = [(30_000, 60.0), (60_000, 0.0), (90_000, 60.0), (3_600_000, 0.0)];

fn decided(mode: ForecastMode) -> Policy {
    Policy { forecast: mode, change_mib_hours: 0, ..policy() }
}

fn foresee(world: &mut World, name: &DomainName, since: u64, pieces: &[(u64, f64)], ms: u64) -> Applied {
    let mut from_ms = 0;
    let piece = |(until_ms, per_hour): &(u64, f64)| {
        let piece = Piece { from_ms, until_ms: *until_ms, per_hour: *per_hour };
        from_ms = *until_ms;
        piece
    };
    let foresight =
        Foresight { since: at(since), pieces: pieces.iter().map(piece).collect(), of_group: false };
    world.fleet.apply(Event::Foreseen { service: name.clone(), foresight }, at(ms)).unwrap()
}

/// The actions of a plan, without their reasons.
fn acts(lines: &[String]) -> Vec<&str> {
    lines.iter().map(|line| line.split(": ").next().unwrap()).collect()
}

#[test]
fn a_service_sleeps_when_nobody_is_expected_and_is_awake_before_somebody_is() {
    let mut world = World::new(4);
    let name = world.add(1, "a", 0, decided(ForecastMode::On));
    world.up(1, &name, [0, 100, 3_000]);
    foresee(&mut world, &name, 3_000, &BUSY_QUIET_DUE, 3_000);
    // It is not its idle time of 10 s that counts.
    assert_eq!(world.plan(20_000), ["look at 33000"]);
    let plan = world.plan(33_000);
    assert_eq!(acts(&plan), ["i1 drain idle 10000 force false", "look at 63000"]);
    assert!(
        plan[0].ends_with(
            "after 30.0 s without traffic it is best kept local: 0.00 arrivals an hour are expected; held \
             0.000 GiB, late wakes as much as 0.000; armed as much as 0.031"
        ),
        "{plan:?}"
    );
    world.report(1, Report::GateClosed, 33_000);
    world.plan(33_000);
    world.report(1, Report::Captured { version: version(1) }, 33_100);
    assert_eq!(world.plan(33_100), ["look at 63000"]);
    assert_eq!(acts(&world.plan(63_000)), ["i1 restore from local", "look at 93000"]);
    world.report(1, Report::Running, 63_100);
    world.report(1, Report::Ready, 63_200);
    assert_eq!(world.plan(63_200), ["look at 93000"]);
    // Nobody came.
    assert_eq!(acts(&world.plan(93_000))[0], "i1 drain idle 10000 force false");
    world.report(1, Report::GateClosed, 93_000);
    world.plan(93_000);
    world.report(1, Report::Captured { version: version(2) }, 93_100);
    world.fleet.take_due(at(93_100));
    assert_eq!(world.plan(93_100), NOTHING);
    assert_eq!(world.phase(1), (Phase::Hibernated, Rung::Local));
}

#[test]
fn what_is_known_of_its_group_alone_is_said_to_be() {
    let mut world = World::new(4);
    let name = world.add(1, "a", 0, decided(ForecastMode::On));
    world.up(1, &name, [0, 100, 3_000]);
    let pieces = vec![Piece { from_ms: 0, until_ms: 600_000, per_hour: 0.0 }];
    let foresight = Foresight { since: at(3_000), pieces, of_group: true };
    world.fleet.apply(Event::Foreseen { service: name, foresight }, at(3_000)).unwrap();
    let plan = world.plan(20_000);
    assert!(plan[0].ends_with("(as services of its group do, it was asked for once)"), "{plan:?}");
}

#[test]
fn without_a_say_of_its_own_a_forecast_is_in_the_record_alone() {
    let mut world = World::new(4);
    let name = world.add(1, "a", 0, decided(ForecastMode::Only));
    world.up(1, &name, [0, 100, 3_000]);
    foresee(&mut world, &name, 3_000, &BUSY_QUIET_DUE, 3_000);
    // Its idle time is over before it would go by the forecast.
    let plan = world.plan(13_000);
    assert_eq!(acts(&plan), ["i1 drain idle 10000 force false", "look at 33000"]);
    world.report(1, Report::GateClosed, 13_000);
    world.plan(13_000);
    world.report(1, Report::Captured { version: version(1) }, 13_100);
    let plan = world.plan(13_100);
    assert_eq!(acts(&plan), ["i1 wait until Some(33000)", "look at 33000"]);
    assert!(plan[0].contains("with forecast = \"on\" it would be kept active: 60.00 arrivals"), "{plan:?}");
    assert_eq!(world.plan(33_000), ["look at 63000"]);
    assert_eq!(acts(&world.plan(63_000)), ["i1 wait until Some(93000)", "look at 93000"]);
    assert_eq!(world.phase(1), (Phase::Hibernated, Rung::Local));
    // Off: not even that.
    let off = world.add(2, "b", 0, decided(ForecastMode::Off));
    assert_eq!(foresee(&mut world, &off, 3_000, &BUSY_QUIET_DUE, 3_000), Applied::Unchanged);
}

#[test]
fn a_forecast_of_another_gap_says_nothing() {
    let mut world = World::new(4);
    let name = world.add(1, "a", 0, decided(ForecastMode::On));
    world.up(1, &name, [0, 100, 3_000]);
    foresee(&mut world, &name, 3_000, &BUSY_QUIET_DUE, 3_000);
    // Somebody came of whom the forecast does not know: the idle time decides.
    let traffic =
        Event::Traffic { instance: InstanceId(1), open_connections: 0, last_packet: Some(at(30_000)) };
    world.fleet.apply(traffic, at(30_000)).unwrap();
    assert_eq!(world.plan(33_000), ["look at 40000"]);
    // Once it does, it is busy again.
    foresee(&mut world, &name, 30_000, &BUSY_QUIET_DUE, 33_000);
    assert_eq!(world.plan(40_000), ["look at 60000"]);
}

#[test]
fn a_price_that_changes_changes_the_next_decision() {
    let mut world = World::new(4);
    let name = world.add(1, "a", 0, decided(ForecastMode::On));
    world.up(1, &name, [0, 100, 3_000]);
    foresee(&mut world, &name, 3_000, &BUSY_QUIET_DUE, 3_000);
    assert_eq!(world.plan(20_000), ["look at 33000"]);
    // Nobody's second is worth keeping it for.
    let mut spec = world.fleet.service(&name).unwrap().spec.clone();
    spec.policy.delay_mib_hours = 1;
    world.fleet.apply(Event::Respecified { spec: Box::new(spec) }, at(20_000)).unwrap();
    assert_eq!(acts(&world.plan(20_000))[0], "i1 drain idle 10000 force false");
}

#[test]
fn what_an_operator_put_to_sleep_is_not_woken_for_who_may_come() {
    let mut world = World::new(4);
    let name = world.add(1, "a", 0, decided(ForecastMode::On));
    world.up(1, &name, [0, 100, 3_000]);
    foresee(&mut world, &name, 3_000, &BUSY_QUIET_DUE, 3_000);
    let asked = Event::SleepAsked { service: name, how: SleepAsked::WhenIdle };
    world.fleet.apply(asked, at(4_000)).unwrap();
    world.down(1, 1, [4_000, 4_100]);
    assert_eq!(world.plan(4_100), NOTHING);
}

#[test]
fn who_asks_is_woken_before_whoever_is_only_expected() {
    let mut world = World::new(1);
    let (asked, due) = (world.add(1, "a", 0, policy()), world.add(2, "b", 9, decided(ForecastMode::On)));
    world.asleep(1, &asked);
    world.asleep(2, &due);
    foresee(&mut world, &due, 20_000, &[(10_000, 0.0), (60_000, 60.0), (600_000, 0.0)], 20_000);
    world.wake(&asked, 30_000).unwrap();
    assert_eq!(acts(&world.plan(30_000)), ["i1 restore from local", "look at 80000"]);
    world.report(1, Report::Running, 30_100);
    world.report(1, Report::Ready, 30_200);
    assert!(acts(&world.plan(30_200)).contains(&"i2 restore from local"));
}

#[test]
fn who_is_foreseen_for_later_is_not_looked_at_before_and_then_in_time() {
    let mut world = World::new(4);
    let name = world.add(1, "a", 0, decided(ForecastMode::On));
    world.asleep(1, &name);
    foresee(&mut world, &name, 13_010, &[(100_000, 0.0), (160_000, 60.0), (600_000, 0.0)], 20_000);
    assert_eq!(world.plan(20_000), ["look at 113010"]);
    world.fleet.rest_until_due(at(20_000));
    assert_eq!(world.fleet.attention().count(), 0);
    // The time to look is not forgotten with that.
    assert_eq!(world.plan(50_000), ["look at 113010"]);
    world.fleet.take_due(at(113_009));
    assert_eq!(world.plan(113_009), ["look at 113010"]);
    world.fleet.take_due(at(113_010));
    assert_eq!(acts(&world.plan(113_010))[0], "i1 restore from local");
    // Who comes before that is served as always.
    let mut world = World::new(4);
    let name = world.add(1, "a", 0, decided(ForecastMode::On));
    world.asleep(1, &name);
    foresee(&mut world, &name, 13_010, &[(100_000, 0.0), (160_000, 60.0), (600_000, 0.0)], 20_000);
    world.fleet.rest_until_due(at(20_000));
    world.wake(&name, 30_000).unwrap();
    assert_eq!(acts(&world.plan(30_000))[0], "i1 restore from local");
    assert_eq!(world.fleet.next_on_agenda(), None);
}

/// With an object store, asleep with version 1, which the store has only if that is said.
fn asleep_with_depot(stored: bool) -> (World, DomainName) {
    let mut world = with_depot();
    world.fleet.limits.starts_max = 4;
    let name = world.add(1, "a", 0, decided(ForecastMode::On));
    world.asleep(1, &name);
    if stored {
        world.plan(13_010);
        world.published(1, 1, Ok(version(1)), 13_100);
    }
    (world, name)
}

#[test]
fn what_the_object_store_does_not_have_is_not_written_over_for_who_may_come() {
    let (mut world, name) = asleep_with_depot(false);
    foresee(&mut world, &name, 13_010, &[(60_000, 60.0), (600_000, 0.0)], 13_020);
    let plan = world.plan(13_020);
    assert_eq!(acts(&plan)[..2], ["i1 publish 1", "i1 restore from local, keeping it"], "{plan:?}");
    let (mut world, name) = asleep_with_depot(true);
    foresee(&mut world, &name, 13_010, &[(60_000, 60.0), (600_000, 0.0)], 13_200);
    assert_eq!(acts(&world.plan(13_200))[0], "i1 restore from local");
}

#[test]
fn a_full_cache_takes_nothing_from_under_who_is_about_to_be_woken() {
    let (mut world, name) = asleep_with_depot(true);
    let other = world.add(2, "b", 0, decided(ForecastMode::Off));
    world.asleep(2, &other);
    world.plan(13_200);
    world.published(2, 1, Ok(version(1)), 13_300);
    world.fleet.limits.cache_mib_max = 1;
    foresee(&mut world, &name, 13_010, &[(60_000, 60.0), (600_000, 0.0)], 13_400);
    let plan = world.plan(13_400);
    assert_eq!(acts(&plan), ["i1 restore from local", "i2 evict", "look at 73010"], "{plan:?}");
    let evict =
        Decision { service: name, instance: InstanceId(1), action: Action::Evict, reason: Reason::NotStored };
    assert!(world.fleet.begin(&evict, at(13_400)).is_err(), "it is being restored");
}

#[test]
fn who_is_awake_for_nobody_makes_room_for_who_asks_whatever_its_priority() {
    let mut world = World::new(4);
    world.fleet.limits.memory_mib_max = 128;
    let (asked, due) = (world.add(1, "a", 0, policy()), world.add(2, "b", 9, decided(ForecastMode::On)));
    world.asleep(1, &asked);
    world.up(2, &due, [14_000, 14_100, 14_200]);
    world.down(2, 1, [24_300, 24_310]);
    foresee(&mut world, &due, 24_300, &[(1_000, 0.0), (600_000, 60.0), (900_000, 0.0)], 24_400);
    assert_eq!(acts(&world.plan(25_300))[0], "i2 restore from local");
    world.report(2, Report::Running, 25_400);
    world.report(2, Report::Ready, 25_500);
    // Longer than its idle time later it is still awake, for who may come.
    world.plan(60_000);
    assert_eq!(world.phase(2), (Phase::Active, Rung::Active));
    world.wake(&asked, 60_000).unwrap();
    assert!(acts(&world.plan(60_000)).contains(&"i2 drain idle 1000 force false"));
}
