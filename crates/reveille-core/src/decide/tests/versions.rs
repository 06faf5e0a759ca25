//! Stories of versions that are gone back to, and of services that are given another image.

use super::world::*;
use crate::model::*;

fn roll_back(world: &mut World, name: &DomainName, from: u64, ms: u64) -> Result<Applied, RequestError> {
    let event = Event::RollBackAsked { service: name.clone(), from, highest: 0, discard: false };
    world.fleet.apply(event, at(ms))
}

fn row(world: &World) -> &Instance {
    world.fleet.instance(InstanceId(1)).unwrap()
}

/// Asleep with version 1, which the store has.
fn asleep_and_stored() -> (World, DomainName) {
    let mut world = with_depot();
    let hello = world.add(1, "hello", 0, policy());
    world.asleep(1, &hello);
    world.plan(13_010);
    world.published(1, 1, Ok(version(1)), 13_100);
    (world, hello)
}

/// Asleep with version 2, which the store has beside version 1.
fn asleep_twice() -> (World, DomainName) {
    let (mut world, hello) = asleep_and_stored();
    world.up(1, &hello, [20_000, 20_010, 20_020]);
    world.down(1, 2, [40_000, 40_010]);
    world.plan(40_010);
    world.published(1, 2, Ok(version(2)), 40_100);
    assert_eq!(world.plan(40_100), NOTHING);
    (world, hello)
}

#[test]
fn an_older_version_is_what_the_next_wake_starts_from_and_who_asks_meanwhile_waits_for_it() {
    let (mut world, hello) = asleep_twice();
    assert_eq!(roll_back(&mut world, &hello, 1, 50_000), Ok(Applied::Changed));
    assert_eq!(roll_back(&mut world, &hello, 1, 50_000), Ok(Applied::Unchanged), "asked again");
    let other = roll_back(&mut world, &hello, 2, 50_000);
    assert_eq!(other, Err(RequestError::RollingBack { service: hello.clone(), from: 1 }));
    assert_eq!(world.plan(50_000), ["i1 roll back to 1 as 3: an operator wants version 1 back"]);
    // The row that is written before the store is asked says all that is needed to go on.
    assert_eq!(row(&world).version_number_last, 3);
    world.wake(&hello, 50_010).unwrap();
    assert_eq!(world.plan(50_010), NOTHING, "not from the version that is being put behind");
    world.report(1, Report::RolledBack { version: version(3) }, 50_100);
    assert_eq!(world.phase(1), (Phase::Hibernated, Rung::Remote));
    assert_eq!(world.plan(50_100), ["i1 fetch: a DNS query of type 1 from 127.0.0.1 asked for it"]);
    world.report(1, Report::Fetched { version: version(3) }, 50_200);
    let plan = world.plan(50_200);
    assert_eq!(plan[0], "i1 restore from local: a DNS query of type 1 from 127.0.0.1 asked for it");
}

#[test]
fn a_roll_back_is_refused_where_something_would_be_lost_and_says_what_to_do() {
    let (mut world, hello) = asleep_and_stored();
    world.wake(&hello, 20_000).unwrap();
    world.plan(20_000);
    world.report(1, Report::Running, 20_010);
    let awake = roll_back(&mut world, &hello, 1, 20_020).unwrap_err().to_string();
    assert!(awake.contains("reveille hibernate hello.vm.test"), "{awake}");
    world.report(1, Report::Ready, 20_020);
    world.down(1, 2, [40_000, 40_010]);
    world.plan(40_010);
    let unstored = roll_back(&mut world, &hello, 1, 40_020);
    assert_eq!(unstored, Err(RequestError::Unstored { service: hello.clone(), number: 2 }));
    // Told to discard it, what its upload comes to is nobody's any more.
    let event = Event::RollBackAsked { service: hello, from: 1, highest: 0, discard: true };
    world.fleet.apply(event, at(40_030)).unwrap();
    assert_eq!(world.plan(40_030), ["i1 roll back to 1 as 3: an operator wants version 1 back"]);
    world.report(1, Report::RolledBack { version: version(3) }, 40_100);
    world.published(1, 2, Ok(version(2)), 40_200);
    assert_eq!((row(&world).stored.as_ref(), row(&world).stored_is_current), (Some(&version(3)), true));
    assert_eq!(world.plan(40_200), NOTHING);
}

#[test]
fn a_roll_back_that_fails_leaves_everything_as_it_was() {
    let (mut world, hello) = asleep_twice();
    roll_back(&mut world, &hello, 1, 50_000).unwrap();
    world.plan(50_000);
    let cause = Cause::StoreFailed { detail: "it is not there".into() };
    world.report(1, Report::RollBackFailed { cause: cause.clone() }, 50_100);
    assert_eq!(row(&world).roll_back_failure, Some(cause));
    assert_eq!(world.phase(1), (Phase::Hibernated, Rung::Local));
    assert_eq!(world.plan(50_100), NOTHING);
    world.wake(&hello, 51_000).unwrap();
    let plan = world.plan(51_000);
    assert_eq!(plan[0], "i1 restore from local: a DNS query of type 1 from 127.0.0.1 asked for it");
}

/// The host as a new start of the daemon finds it, by what its row says and what is on its disk.
fn restarted(row: &Instance, on_disk: Option<SnapshotVersion>, armed: bool) -> (Instance, Reconciled) {
    let mut kept = row.clone();
    (kept.in_flight, kept.publishing) = (false, None);
    let found = match on_disk {
        Some(version) if armed => Found::Untouched { version, armed },
        version => Found::Nothing { version },
    };
    reconcile(kept, found, at(60_000))
}

#[test]
fn killed_at_any_instant_of_a_roll_back_the_next_start_goes_on_with_it() {
    let (mut world, hello) = asleep_twice();
    roll_back(&mut world, &hello, 1, 50_000).unwrap();
    world.plan(50_000);
    let begun = row(&world).clone();
    world.report(1, Report::RolledBack { version: version(3) }, 50_100);
    let done = row(&world).clone();
    for (on_disk, armed) in [(Some(version(2)), false), (Some(version(2)), true), (None, false)] {
        // Between the row and the report: it is done again, which finds what was done.
        let (mut after, _) = restarted(&begun, on_disk.clone(), armed);
        assert_eq!(after.phase, Phase::Hibernated);
        after.note_owned(1, Some((1, version(3))), 3, at(60_000));
        assert_eq!(after.rolling_back, begun.rolling_back);
        // After it: what is left on the disk is not what is restored, and the store's newest changes nothing.
        let (mut after, step) = restarted(&done, on_disk, armed);
        after.note_owned(1, Some((1, version(3))), 3, at(60_000));
        assert_eq!((after.phase, after.rung), (Phase::Hibernated, Rung::Remote));
        assert_eq!((&after.version, &after.stored), (&None, &Some(version(3))));
        assert_eq!(step, if armed { Reconciled::End } else { Reconciled::Settled });
        assert!(!after.wants_publishing());
    }
}

fn given(world: &mut World, name: &DomainName, image: &str, memory_mib: u32, ms: u64) {
    let spec = world.fleet.service(name).unwrap().spec.clone();
    let resources = Resources { memory_mib, ..spec.resources };
    let spec = ServiceSpec { image: image.to_owned(), resources, ..spec };
    world.fleet.apply(Event::Respecified { spec: Box::new(spec) }, at(ms)).unwrap();
}

#[test]
fn another_image_starts_cold_and_what_was_before_is_noted() {
    let (mut world, hello) = asleep_twice();
    assert_eq!(world.fleet.may_exchange(&hello, false), Ok(()));
    given(&mut world, &hello, "demo-2", 128, 50_000);
    assert_eq!(world.plan(50_000), NOTHING, "nothing is dropped: its disk may be the new one's too");
    let former = row(&world).former.clone().unwrap();
    assert_eq!((former.image.as_str(), former.version), ("demo", Some(2)));
    world.wake(&hello, 51_000).unwrap();
    assert_eq!(world.plan(51_000)[0], "i1 boot: a DNS query of type 1 from 127.0.0.1 asked for it");
    // From here on what the store has of the other image is not one to go on from, nor what is still here.
    assert!(!row(&world).outdated);
    let ownership = Ownership::Ours { epoch: 1, newest: Some((1, version(2))), number_last: 2 };
    world.fleet.apply(Event::Owned { service: hello, ownership }, at(51_200)).unwrap();
    assert_eq!(row(&world).stored, None);
    for armed in [false, true] {
        let (after, _) = restarted(row(&world), Some(version(2)), armed);
        assert_eq!((after.version, after.rung), (None, Rung::Cold), "armed: {armed}");
    }
    let cause = Cause::StartFailed { detail: "the disk is full".into() };
    world.report(1, Report::Lost { cause }, 51_300);
    world.plan(51_300);
    world.report(1, Report::Fenced { version: Some(version(2)) }, 51_400);
    assert_eq!(row(&world).version, None, "it was not set aside yet");
    let retry = world.plan(60_000);
    assert!(retry[0].starts_with("i1 boot"), "{retry:?}");
}

#[test]
fn an_armed_process_of_the_image_of_before_is_ended_and_not_armed_again() {
    let (mut world, hello) = asleep_twice();
    let mut spec = world.fleet.service(&hello).unwrap().spec.clone();
    spec.policy.rest = Rung::Armed;
    world.fleet.apply(Event::Respecified { spec: Box::new(spec) }, at(50_000)).unwrap();
    world.plan(50_000);
    world.report(1, Report::Armed, 50_010);
    given(&mut world, &hello, "demo-2", 128, 50_100);
    assert_eq!(
        world.plan(50_100),
        ["i1 disarm: the service has another image or other resources than its version here"]
    );
    world.report(1, Report::Disarmed, 50_200);
    assert_eq!(world.plan(50_200), NOTHING);
    world.wake(&hello, 51_000).unwrap();
    assert!(world.plan(51_000)[0].starts_with("i1 boot"));
}

#[test]
fn what_is_in_the_store_alone_is_fetched_before_something_else_boots_for_its_disk_is_there() {
    let (mut world, hello) = asleep_twice();
    let mut spec = world.fleet.service(&hello).unwrap().spec.clone();
    spec.policy.rest = Rung::Remote;
    world.fleet.apply(Event::Respecified { spec: Box::new(spec) }, at(50_000)).unwrap();
    assert!(world.plan(50_000)[0].starts_with("i1 evict"));
    world.report(1, Report::Evicted, 50_010);
    given(&mut world, &hello, "demo", 160, 50_100);
    assert_eq!(world.plan(50_100), NOTHING);
    world.wake(&hello, 51_000).unwrap();
    assert_eq!(world.plan(51_000), ["i1 fetch: a DNS query of type 1 from 127.0.0.1 asked for it"]);
    world.report(1, Report::Fetched { version: version(2) }, 51_100);
    assert!(world.plan(51_100)[0].starts_with("i1 boot"));
}

#[test]
fn an_image_that_never_ran_leaves_the_version_of_before_as_it_was() {
    let (mut world, hello) = asleep_twice();
    given(&mut world, &hello, "demo-2", 128, 50_000);
    given(&mut world, &hello, "demo", 128, 50_100);
    assert!(!row(&world).outdated);
    world.wake(&hello, 51_000).unwrap();
    assert!(world.plan(51_000)[0].starts_with("i1 restore from local"));
}

#[test]
fn a_version_that_was_not_stored_yet_when_its_image_changed_is_what_is_gone_back_to() {
    let mut world = with_depot();
    let hello = world.add(1, "hello", 0, policy());
    world.asleep(1, &hello);
    world.plan(13_010);
    given(&mut world, &hello, "demo-2", 128, 13_020);
    assert_eq!(row(&world).former.as_ref().unwrap().version, None);
    world.published(1, 1, Ok(version(1)), 13_100);
    assert_eq!(row(&world).former.as_ref().unwrap().version, Some(1));
}

#[test]
fn going_back_to_the_image_of_before_goes_back_to_its_version() {
    let (mut world, hello) = asleep_twice();
    given(&mut world, &hello, "demo-2", 128, 50_000);
    given(&mut world, &hello, "demo", 128, 60_000);
    roll_back(&mut world, &hello, 2, 60_000).unwrap();
    assert_eq!(world.plan(60_000), ["i1 roll back to 2 as 3: an operator wants version 2 back"]);
    world.report(1, Report::RolledBack { version: version(3) }, 60_100);
    assert_eq!(world.phase(1), (Phase::Hibernated, Rung::Remote));
    assert_eq!(row(&world).former.as_ref().map(|former| former.image.as_str()), Some("demo-2"));
}

#[test]
fn a_service_that_runs_or_whose_version_is_on_its_way_keeps_its_image() {
    let mut world = with_depot();
    let hello = world.add(1, "hello", 0, policy());
    world.asleep(1, &hello);
    world.plan(13_010);
    let unstored = world.fleet.may_exchange(&hello, false).unwrap_err();
    assert_eq!(unstored, RequestError::Unstored { service: hello.clone(), number: 1 });
    assert_eq!(world.fleet.may_exchange(&hello, true), Ok(()));
    world.wake(&hello, 14_000).unwrap();
    world.plan(14_000);
    let awake = world.fleet.may_exchange(&hello, true).unwrap_err();
    assert!(matches!(awake, RequestError::Awake { phase: Phase::Restoring, .. }));
}

#[test]
fn another_config_file_at_a_start_is_another_image_and_a_foreign_number_is_not_used_again() {
    let (mut world, hello) = asleep_twice();
    let was = world.fleet.service(&hello).unwrap().spec.clone();
    let is = ServiceSpec { image: "demo-2".to_owned(), ..was.clone() };
    let mut stored = row(&world).clone();
    stored.note_other_spec(&was, &is);
    assert!(stored.outdated && stored.former.as_ref().unwrap().version == Some(2));
    let mut unstored = row(&world).clone();
    (unstored.version, unstored.stored_is_current) = (Some(version(3)), false);
    unstored.note_other_spec(&was, &is);
    assert!(unstored.outdated && unstored.former.as_ref().unwrap().version.is_none());
    // Somebody has put a version there by hand: the guest here goes on, above its number.
    let ownership = Ownership::Ours { epoch: 1, newest: Some((1, version(9))), number_last: 9 };
    world.fleet.apply(Event::Owned { service: hello, ownership }, at(50_000)).unwrap();
    let other = row(&world).clone();
    assert_eq!((other.version_number_last, other.stored.map(|stored| stored.number)), (9, Some(2)));
}

#[test]
fn a_roll_back_that_another_host_has_overtaken_is_not_carried_out() {
    let (mut world, hello) = asleep_twice();
    roll_back(&mut world, &hello, 1, 50_000).unwrap();
    let ownership = Ownership::Ours { epoch: 3, newest: Some((2, version(7))), number_last: 7 };
    world.fleet.apply(Event::Owned { service: hello.clone(), ownership }, at(50_000)).unwrap();
    assert_eq!(world.plan(50_000), NOTHING);
    assert_eq!((row(&world).rolling_back, row(&world).stored.clone()), (None, Some(version(7))));
    assert!(matches!(row(&world).roll_back_failure, Some(Cause::StoreFailed { .. })));
    world.wake(&hello, 51_000).unwrap();
    assert!(world.plan(51_000)[0].starts_with("i1 fetch"));
}

#[test]
fn what_another_host_has_made_of_a_service_is_not_dropped_for_an_image_that_was_changed_here() {
    let (mut world, hello) = asleep_twice();
    given(&mut world, &hello, "demo-2", 128, 50_000);
    let ownership = Ownership::Ours { epoch: 3, newest: Some((2, version(7))), number_last: 7 };
    world.fleet.apply(Event::Owned { service: hello, ownership }, at(50_000)).unwrap();
    assert_eq!(world.plan(50_000), NOTHING);
    assert_eq!(
        (world.phase(1), row(&world).stored.clone()),
        ((Phase::Hibernated, Rung::Remote), Some(version(7)))
    );
}

#[test]
fn what_a_service_goes_back_to_counts_also_when_its_image_changes_with_it() {
    let (mut world, hello) = asleep_twice();
    given(&mut world, &hello, "demo-2", 128, 50_000);
    roll_back(&mut world, &hello, 1, 50_000).unwrap();
    assert_eq!(world.plan(50_100), ["i1 roll back to 1 as 3: an operator wants version 1 back"]);
    // The daemon ends before it hears that it came about.
    let (mut after, _) = restarted(row(&world), None, false);
    after.note_owned(1, Some((1, version(3))), 3, at(60_000));
    // It is done again, and finds what was done.
    assert_eq!(after.rolling_back, row(&world).rolling_back);
}

#[test]
fn a_start_that_was_called_off_leaves_a_version_to_go_on_from() {
    let mut world = with_depot();
    let hello = world.add(1, "hello", 0, policy());
    world.asleep(1, &hello);
    world.wake(&hello, 14_000).unwrap();
    assert!(world.plan(14_000)[0].starts_with("i1 restore"));
    // Before the vCPUs ran, another host had the service, and gave it back without a version of its own.
    let owned = |ownership| Event::Owned { service: hello.clone(), ownership };
    world.fleet.apply(owned(Ownership::Foreign("second".to_owned())), at(14_010)).unwrap();
    assert!(world.plan(14_010)[0].starts_with("i1 kill"));
    world.report(1, Report::Fenced { version: Some(version(1)) }, 14_020);
    assert_eq!(world.phase(1), (Phase::Hibernated, Rung::Local));
    world.fleet.apply(owned(Ownership::Ours { epoch: 3, newest: None, number_last: 0 }), at(90_000)).unwrap();
    world.wake(&hello, 90_100).unwrap();
    let plan = world.plan(90_100);
    assert!(plan.iter().any(|step| step.starts_with("i1 restore from local")), "{plan:#?}");
}

#[test]
fn who_waits_for_a_version_that_cannot_be_had_is_told_so_and_it_is_tried_afresh_later() {
    let (mut world, hello) = asleep_and_stored();
    let mut spec = world.fleet.service(&hello).unwrap().spec.clone();
    spec.policy.rest = Rung::Remote;
    (spec.policy.attempts_max, spec.policy.backoff_ms, spec.policy.cooloff_ms) = (2, 500, 10_000);
    world.fleet.apply(Event::Respecified { spec: Box::new(spec) }, at(20_000)).unwrap();
    world.plan(20_000);
    world.report(1, Report::Evicted, 20_010);
    let cause = Cause::StoreFailed { detail: "no answer".into() };
    world.wake(&hello, 21_000).unwrap();
    assert!(world.plan(21_000)[0].starts_with("i1 fetch"));
    world.report(1, Report::RestFailed { cause: cause.clone() }, 22_000);
    assert_eq!(world.plan(22_000), ["look at 22500"]);
    assert!(world.plan(22_500)[0].starts_with("i1 fetch"));
    world.report(1, Report::RestFailed { cause: cause.clone() }, 23_000);
    assert_eq!(world.fleet.gate(InstanceId(1), at(23_000)), Gate::Refuse);
    assert_eq!(world.plan(23_000), NOTHING, "nobody waits any more");
    let refused = world.wake(&hello, 24_000).unwrap_err();
    assert_eq!(refused, RequestError::GaveUp { service: hello.clone(), cause, wait_ms: 9_000 });
    assert_eq!(world.phase(1), (Phase::Hibernated, Rung::Remote), "nothing is lost by that");

    assert_eq!(world.fleet.gate(InstanceId(1), at(33_000)), Gate::Hold);
    world.wake(&hello, 33_000).unwrap();
    assert!(world.plan(33_000)[0].starts_with("i1 fetch"));
    world.report(1, Report::Fetched { version: version(1) }, 33_100);
    assert_eq!(row(&world).failure, None);
    assert!(world.plan(33_100)[0].starts_with("i1 restore from local"));
}

#[test]
fn a_version_that_is_damaged_here_is_fetched_once_and_then_given_up_for_a_boot() {
    let (mut world, hello) = asleep_and_stored();
    let cause = Cause::VersionUnusable { detail: "its device state is damaged".into() };
    world.wake(&hello, 20_000).unwrap();
    assert!(world.plan(20_000)[0].starts_with("i1 restore from local"));
    world.report(1, Report::Lost { cause: cause.clone() }, 20_010);
    world.plan(20_010);
    world.report(1, Report::Fenced { version: None }, 20_020);
    let plan = world.plan(30_000);
    assert!(plan[0].starts_with("i1 fetch"), "{plan:?}");
    world.report(1, Report::Fetched { version: version(1) }, 30_100);
    let plan = world.plan(30_100);
    assert!(plan[0].starts_with("i1 restore from local"), "{plan:?}");
    world.report(1, Report::Lost { cause }, 30_200);
    world.plan(30_200);
    world.report(1, Report::Fenced { version: None }, 30_300);
    let plan = world.plan(60_000);
    assert!(plan[0].starts_with("i1 boot"), "{plan:?}");
}

#[test]
fn what_a_start_may_have_used_up_is_not_taken_for_the_newest_because_the_store_has_it() {
    let (mut world, hello) = asleep_and_stored();
    world.wake(&hello, 20_000).unwrap();
    assert!(world.plan(20_000)[0].starts_with("i1 restore from local"));
    // The daemon ends, and the next one finds a process that does not answer.
    let (mut after, _) = reconcile(row(&world).clone(), Found::Hung { waited_ms: 10_000 }, at(20_005));
    after.note_owned(1, Some((1, version(1))), 1, at(20_010));
    assert!(!after.stored_is_current);

    let ownership = Ownership::Ours { epoch: 1, newest: Some((1, version(1))), number_last: 1 };
    world.fleet.apply(Event::Owned { service: hello.clone(), ownership }, at(20_010)).unwrap();
    world.report(1, Report::Lost { cause: Cause::VmmDied { detail: "odd".into() } }, 20_020);
    world.plan(20_020);
    // The version was taken away before a vCPU ran.
    world.report(1, Report::Fenced { version: None }, 20_030);
    let plan = world.plan(40_000);
    assert!(plan[0].starts_with("i1 boot"), "{plan:?}");
}
