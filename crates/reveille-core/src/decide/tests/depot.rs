//! Stories of versions in the object store, and of hosts that share it.

use super::world::*;
use crate::model::*;

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
    world.up(2, &new, [14_000, 14_100, 14_200]);
    world.down(2, 1, [24_200, 24_300]);
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
    world.up(1, &hello, [0, 100, 200]);
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
        world.up(1, &hello, [14_000, 14_100, 14_200]);
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

/// The guest may run before the next row is durable: then a loss of the host must not roll it back.
#[test]
fn a_version_that_reaches_the_store_while_its_guest_is_started_is_not_what_the_service_last_was() {
    let mut world = with_depot();
    let name = world.add(1, "a", 0, policy());
    world.asleep(1, &name);
    assert!(world.plan(13_020)[0].starts_with("i1 publish 1"));
    world.wake(&name, 13_030).unwrap();
    assert!(world.plan(13_030)[0].starts_with("i1 restore from local, keeping it"));
    world.published(1, 1, Ok(version(1)), 13_040);
    let row = world.fleet.instance(InstanceId(1)).unwrap();
    assert_eq!((row.phase, row.stored_is_current), (Phase::Restoring, false));
    assert_eq!(row.stored.as_ref().map(|version| version.number), Some(1));
    // A start that did not come about leaves it as it was.
    let start = Cause::StartFailed { detail: "no memory".into() };
    world.lose(1, start, Some(version(1)), 13_050);
    assert!(world.fleet.instance(InstanceId(1)).unwrap().stored_is_current);
}
