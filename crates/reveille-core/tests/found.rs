//! What the simulation found, as stories of the core: each was a bug.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::Ipv4Addr;

use reveille_core::decide::{Action, decide};
use reveille_core::model::{
    AfterCrash, Cause, DomainName, Event, Fleet, Found, HostLimits, Instance, InstanceId, Ownership, Phase,
    Policy, Reconciled, Remains, Report, Rung, Service, ServiceSpec, SleepAsked, SnapshotVersion, Timestamp,
    Trigger, reconcile,
};

const ID: InstanceId = InstanceId(1);

struct Story {
    fleet: Fleet,
    name: DomainName,
    now: Timestamp,
}

fn version(number: u64, at_ms: u64) -> SnapshotVersion {
    let at = Timestamp::from_ms(at_ms);
    SnapshotVersion { number, at, stored_bytes: 1, paused_us: 1, image: "demo".into() }
}

impl Story {
    /// A host with a depot, and a service of which `row` is known.
    fn of(policy: Policy, row: impl FnOnce(&mut Instance)) -> Self {
        let name: DomainName = "hello.vm.test".parse().unwrap();
        let now = Timestamp::from_ms(1_000_000);
        let text = format!(r#"{{"name":"{name}","image":"demo","ports":["tcp/80"]}}"#);
        let spec: ServiceSpec = serde_json::from_str(&text).unwrap();
        let spec = ServiceSpec { policy, ..spec };
        let address = Ipv4Addr::new(127, 64, 0, 1);
        let service = Service::new(spec, address, now, ID);
        let mut instance = Instance::new(ID, name.clone(), now);
        row(&mut instance);
        let mut fleet = Fleet::new(HostLimits { has_depot: true, ..HostLimits::default() });
        let added = Event::Added { service: Box::new(service), instance: Box::new(instance) };
        fleet.apply(added, now).unwrap();
        Self { fleet, name, now }
    }

    fn apply(&mut self, event: Event) {
        self.now = self.now.plus_ms(1_000);
        self.fleet.apply(event, self.now).unwrap();
    }

    fn ours(&mut self, epoch: u64, newest: Option<(u64, SnapshotVersion)>) {
        let number_last = newest.as_ref().map_or(0, |(_, version)| version.number);
        let ownership = Ownership::Ours { epoch, newest, number_last };
        self.apply(Event::Owned { service: self.name.clone(), ownership });
    }

    fn report(&mut self, report: Report) {
        let start = self.row().start;
        self.apply(Event::Reported { instance: ID, start, report });
    }

    fn wake(&mut self) {
        self.apply(Event::WakeAsked { service: self.name.clone(), trigger: Trigger::Operator });
    }

    /// What is begun now.
    fn acts(&mut self) -> Vec<Action> {
        self.now = self.now.plus_ms(60_000);
        let decisions = decide(&self.fleet, self.now).decisions;
        for decision in &decisions {
            self.fleet.begin(decision, self.now).unwrap();
        }
        decisions.into_iter().map(|decision| decision.action).collect()
    }

    fn row(&self) -> &Instance {
        self.fleet.instance(ID).unwrap()
    }
}

/// Asleep in a version that only this host has.
fn asleep(row: &mut Instance, number: u64) {
    row.phase = Phase::Hibernated;
    row.rung = Rung::Local;
    row.version = Some(version(number, 500));
    row.version_number_last = number;
    row.epoch = 1;
}

#[test]
fn a_checkpoint_that_is_stored_late_does_not_take_back_what_a_sleep_has_stored_since() {
    let mut story = Story::of(Policy::default(), |row| {
        asleep(row, 8);
        row.checkpointing = Some(7);
    });
    story.ours(1, None);
    assert_eq!(story.acts(), [Action::Publish { number: 8 }]);
    story.apply(Event::Published { instance: ID, number: 8, result: Ok(version(8, 500)) });
    story.apply(Event::Checkpointed { instance: ID, number: 7, result: Ok(version(7, 400)) });
    assert_eq!(story.row().stored, Some(version(8, 500)));
    assert!(story.row().stored_is_current);
}

#[test]
fn who_owns_a_service_again_goes_on_from_what_another_host_has_made_of_it() {
    for rung in [Rung::Local, Rung::Armed] {
        let mut story = Story::of(Policy::default(), |row| {
            asleep(row, 5);
            row.rung = rung;
        });
        // The other one has used the same number.
        story.ours(3, Some((2, version(5, 900))));
        if rung == Rung::Armed {
            assert_eq!(story.acts(), [Action::Kill { remains: Remains::All }]);
            story.report(Report::Fenced { version: Some(version(5, 500)) });
        }
        assert_eq!((story.row().phase, story.row().rung), (Phase::Hibernated, Rung::Remote));
        // What is on the disk is no version any more, whatever becomes of that in the store.
        for is_stored in [true, false] {
            let mut row = story.row().clone();
            row.stored_is_current = is_stored;
            let found = Found::Nothing { version: Some(version(5, 500)) };
            assert_eq!(reconcile(row, found, story.now).0.version, None);
        }
        story.wake();
        assert_eq!(story.acts(), [Action::Fetch]);
        story.report(Report::Fetched { version: version(5, 900) });
        assert_eq!(story.acts(), [Action::Restore { from: Rung::Local, keep: false }]);
    }
}

#[test]
fn a_host_that_never_had_a_service_boots_it_only_when_it_knows_that_nobody_else_has() {
    let mut story = Story::of(Policy::default(), |_| {});
    story.wake();
    assert_eq!(story.acts(), [Action::Wait { until: None }]);
    story.ours(2, Some((1, version(3, 500))));
    assert_eq!(story.acts(), [Action::Fetch]);

    let mut story = Story::of(Policy::default(), |_| {});
    story.wake();
    story.ours(1, None);
    assert_eq!(story.acts(), [Action::Boot]);
}

#[test]
fn what_another_host_has_is_not_kept_warm() {
    let policy = Policy { rest: Rung::Armed, ..Policy::default() };
    let mut story = Story::of(policy, |row| {
        asleep(row, 1);
        row.rung = Rung::Armed;
        row.stored = row.version.clone();
    });
    let ownership = Ownership::Foreign("other".to_owned());
    story.apply(Event::Owned { service: story.name.clone(), ownership });
    assert_eq!(story.acts(), [Action::Kill { remains: Remains::All }]);
}

#[test]
fn what_was_ended_for_good_does_not_come_back_from_the_store() {
    let policy = Policy { after_crash: AfterCrash::LastVersion, ..Policy::default() };
    let mut story = Story::of(policy, |row| asleep(row, 1));
    story.ours(1, None);
    assert_eq!(story.acts(), [Action::Publish { number: 1 }]);
    let how = SleepAsked::Terminate;
    story.apply(Event::SleepAsked { service: story.name.clone(), how });
    assert_eq!(story.acts(), [Action::Kill { remains: Remains::Disk }]);
    story.apply(Event::Published { instance: ID, number: 1, result: Ok(version(1, 500)) });
    story.report(Report::Fenced { version: None });
    story.ours(1, Some((1, version(1, 500))));
    assert_eq!(story.row().stored, None);
    story.wake();
    assert_eq!(story.acts(), [Action::Boot]);
}

#[test]
fn a_damaged_version_in_the_store_is_given_up_and_an_outage_is_waited_for() {
    let remote = |row: &mut Instance| {
        asleep(row, 1);
        row.stored = row.version.take();
        (row.rung, row.stored_is_current) = (Rung::Remote, true);
    };
    let (mut story, mut patient) =
        (Story::of(Policy::default(), remote), Story::of(Policy::default(), remote));
    for _ in 0..2 {
        story.wake();
        assert_eq!(story.acts(), [Action::Fetch]);
        story.report(Report::RestFailed { cause: Cause::VersionUnusable { detail: "damaged".into() } });
    }
    assert_eq!(story.acts(), [Action::Boot]);
    for _ in 0..5 {
        // Whoever asks after the third time has to wait for a while.
        patient.now = patient.now.plus_ms(Policy::default().cooloff_ms);
        patient.wake();
        assert_eq!(patient.acts(), [Action::Fetch]);
        patient.report(Report::RestFailed { cause: Cause::StoreFailed { detail: "no answer".into() } });
    }
}

#[test]
fn nothing_is_begun_with_a_process_that_is_being_ended_and_late_reports_end_nothing() {
    let policy = Policy { rest: Rung::Paused, ..Policy::default() };
    let mut story = Story::of(policy, |row| {
        asleep(row, 1);
        row.stored = row.version.clone();
        row.stored_is_current = true;
        row.rung = Rung::Paused;
        let found = Found::Untouched { version: version(1, 500), armed: false };
        let (after, step) = reconcile(row.clone(), found, Timestamp::from_ms(1_000));
        assert_eq!(step, Reconciled::End);
        *row = after;
    });
    story.ours(1, Some((1, version(1, 500))));
    story.wake();
    assert_eq!(story.acts(), []);
    let start = story.row().start;
    story.apply(Event::Reported { instance: ID, start, report: Report::Disarmed });
    assert_eq!(story.acts(), [Action::Restore { from: Rung::Local, keep: false }]);

    let mut story = Story::of(policy, |row| asleep(row, 1));
    let start = story.row().start;
    assert!(story.acts().contains(&Action::Pause));
    story.fleet.apply(Event::Reported { instance: ID, start, report: Report::Disarmed }, story.now).unwrap();
    assert!(story.row().in_flight, "what an earlier process reports is not the end of this one");
}
