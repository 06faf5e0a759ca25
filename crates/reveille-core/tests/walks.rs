//! Random lives of a service against a model of the host: whatever happens in whatever order, nothing is started
//! beside a process, nothing is stuck, and a request in the end is answered without a person.

// Everything here is test code, also what is outside the functions that are marked as tests.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use reveille_core::decide::{Action, decide};
use reveille_core::health::HealthPolicy;
use reveille_core::model::{
    Applied, Cause, DomainName, Egress, Event, Fleet, HostLimits, Instance, InstanceId, Kind, Ownership,
    Phase, Policy, Remains, Report, RequestError, Resources, Rung, Service, ServiceSpec, SleepAsked,
    SnapshotVersion, Timestamp, Trigger,
};

const ID: InstanceId = InstanceId(1);

/// What the host has of the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vmm {
    None,
    /// Armed or paused.
    Waiting,
    Starting,
    Running,
}

/// What is under way for the executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Start,
    Arm,
    Pause,
    Fetch,
    Evict,
    RollBack { number: u64 },
    Disarm,
    Capture,
    Kill { remains: Remains },
}

#[derive(Debug, Clone)]
enum Happening {
    Wake,
    Sleep(SleepAsked),
    Later(u64),
    /// The oldest work comes to this: true is success.
    Finish(bool),
    Ready,
    Dies,
    Traffic(bool),
    /// What is on its way to the object store has come, or has not.
    Uploaded(bool),
    /// An operator wants version 1 back, and whether what only this host has may be lost.
    RollBack(bool),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = prop_oneof![
        4 => Just(Happening::Wake),
        1 => Just(Happening::Sleep(SleepAsked::WhenIdle)),
        1 => Just(Happening::Sleep(SleepAsked::Force)),
        1 => Just(Happening::Sleep(SleepAsked::Terminate)),
        6 => prop_oneof![1_u64..100, 100_u64..5_000, 5_000_u64..60_000].prop_map(Happening::Later),
        10 => prop::bool::weighted(0.7).prop_map(Happening::Finish),
        4 => Just(Happening::Ready),
        1 => Just(Happening::Dies),
        2 => any::<bool>().prop_map(Happening::Traffic),
        4 => prop::bool::weighted(0.7).prop_map(Happening::Uploaded),
        1 => any::<bool>().prop_map(Happening::RollBack),
    ];
    prop::collection::vec(one, 1..200)
}

struct Host {
    fleet: Fleet,
    now: Timestamp,
    name: DomainName,
    vmm: Vmm,
    /// The version on the local disk.
    version: Option<u64>,
    /// The version in the object store.
    stored: Option<u64>,
    /// Versions on their way there, and whether they are checkpoints.
    uploads: VecDeque<(u64, bool)>,
    /// Whether a guest ran, for anybody to see, since the version in the store was taken.
    ran_since: bool,
    /// Whether the process that waits leaves the version's files as they are.
    keeps: bool,
    work: VecDeque<(u64, Work)>,
    abandon: bool,
    busy_gate: bool,
}

impl Host {
    fn new(rest: Rung, has_depot: bool) -> Self {
        let name: DomainName = "hello.vm.test".parse().unwrap();
        let now = Timestamp::from_ms(1_000_000);
        let checkpoint_ms = if has_depot { 10_000 } else { 0 };
        let policy = Policy {
            idle_ms: 5_000,
            min_on_ms: 1_000,
            grace_ms: 0,
            rest,
            checkpoint_ms,
            ..Policy::default()
        };
        let spec = ServiceSpec {
            name: name.clone(),
            kind: Kind::Single,
            image: "demo".into(),
            resources: Resources::default(),
            ports: vec!["tcp/80".parse().unwrap()],
            ready: None,
            profile: None,
            address: None,
            address6: None,
            priority: 0,
            egress: Egress::None,
            egress_allow: Vec::new(),
            egress_deny: Vec::new(),
            policy,
            health: HealthPolicy::default(),
        };
        let address = Ipv4Addr::new(127, 64, 0, 1);
        let service = Service::new(spec, address, now, ID);
        let instance = Instance::new(ID, name.clone(), now);
        let mut fleet = Fleet::new(HostLimits { has_depot, ..HostLimits::default() });
        let added = Event::Added { service: Box::new(service), instance: Box::new(instance) };
        fleet.apply(added, now).unwrap();
        if has_depot {
            let ownership = Ownership::Ours { epoch: 1, newest: None, number_last: 0 };
            fleet.apply(Event::Owned { service: name.clone(), ownership }, now).unwrap();
        }
        let (vmm, work) = (Vmm::None, VecDeque::new());
        Self {
            fleet,
            now,
            name,
            vmm,
            version: None,
            stored: None,
            uploads: VecDeque::new(),
            ran_since: true,
            keeps: false,
            work,
            abandon: false,
            busy_gate: false,
        }
    }

    fn row(&self) -> &Instance {
        self.fleet.instance(ID).unwrap()
    }

    fn report(&mut self, start: u64, report: Report) -> Result<Applied, RequestError> {
        self.fleet.apply(Event::Reported { instance: ID, start, report }, self.now)
    }

    fn wake(&mut self) {
        let trigger = Trigger::Query { client: IpAddr::V4(Ipv4Addr::LOCALHOST), qtype: 1, subnet: None };
        let asked = self.fleet.apply(Event::WakeAsked { service: self.name.clone(), trigger }, self.now);
        assert!(matches!(asked, Ok(_) | Err(RequestError::GaveUp { .. })), "{asked:?}");
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Wake => self.wake(),
            Happening::Sleep(how) => {
                let _ = self.fleet.apply(Event::SleepAsked { service: self.name.clone(), how }, self.now);
            }
            Happening::Later(ms) => self.now = self.now.plus_ms(ms),
            Happening::Finish(well) => self.finish(well),
            Happening::Ready => {
                if self.vmm == Vmm::Running && self.row().phase == Phase::Warming {
                    self.report(self.row().start, Report::Ready).unwrap();
                }
            }
            Happening::Dies => self.dies(),
            Happening::Uploaded(well) => self.uploaded(well),
            Happening::RollBack(discard) => {
                let (service, has_depot) = (self.name.clone(), self.fleet.limits.has_depot);
                if has_depot && self.stored.is_some() {
                    let asked = Event::RollBackAsked { service, from: 1, highest: 0, discard };
                    let _ = self.fleet.apply(asked, self.now);
                }
            }
            Happening::Traffic(busy) => {
                self.busy_gate = busy;
                let open_connections = u32::from(busy);
                let traffic = Event::Traffic { instance: ID, open_connections, last_packet: Some(self.now) };
                self.fleet.apply(traffic, self.now).unwrap();
            }
        }
        self.act();
    }

    /// The process dies by itself, seen by whoever watches it.
    fn dies(&mut self) {
        let capturing = self.work.iter().any(|(_, work)| *work == Work::Capture);
        if self.vmm == Vmm::Running && !capturing {
            self.vmm = Vmm::None;
            let lost = Report::Lost { cause: Cause::VmmDied { detail: "test".into() } };
            let _ = self.report(self.row().start, lost);
        }
    }

    fn uploaded(&mut self, well: bool) {
        let Some((number, is_checkpoint)) = self.uploads.pop_front() else { return };
        // Numbers in the store only go up.
        let result = if well && self.stored.is_none_or(|stored| stored < number) {
            self.stored = Some(number);
            self.ran_since = is_checkpoint || self.version != Some(number);
            Ok(self.numbered(number))
        } else {
            Err(Cause::StoreFailed { detail: "test".into() })
        };
        let event = if is_checkpoint {
            Event::Checkpointed { instance: ID, number, result }
        } else {
            Event::Published { instance: ID, number, result }
        };
        self.fleet.apply(event, self.now).unwrap();
    }

    fn finish(&mut self, well: bool) {
        // A kill overtakes whatever goes on: that ends, badly, before the kill itself is over.
        let killed = self.work.iter().any(|(_, work)| matches!(work, Work::Kill { .. }));
        let Some((start, work)) = self.work.pop_front() else { return };
        let well = well && !killed;
        let cause = Cause::StartFailed { detail: "test".into() };
        let report = match work {
            Work::Start if well => {
                self.vmm = Vmm::Running;
                self.version = None;
                self.ran_since = true;
                Report::Running
            }
            Work::Start => Report::Lost { cause },
            Work::Arm if well => {
                assert_eq!(self.vmm, Vmm::None, "armed beside a process");
                self.vmm = Vmm::Waiting;
                Report::Armed
            }
            Work::Pause if well => {
                assert_eq!(self.vmm, Vmm::None, "paused beside a process");
                self.vmm = Vmm::Waiting;
                Report::Paused
            }
            Work::Fetch if well => {
                self.version = self.stored;
                Report::Fetched { version: self.intact().unwrap() }
            }
            Work::Evict if well => {
                assert_eq!(self.version, self.stored, "the only copy is removed");
                self.version = None;
                Report::Evicted
            }
            Work::RollBack { number } if well => {
                assert!(self.stored.is_none_or(|stored| stored <= number), "put behind a later one");
                (self.stored, self.version, self.vmm) = (Some(number), None, Vmm::None);
                self.ran_since = false;
                Report::RolledBack { version: self.numbered(number) }
            }
            Work::RollBack { .. } => Report::RollBackFailed { cause },
            Work::Arm | Work::Pause | Work::Fetch | Work::Evict => Report::RestFailed { cause },
            Work::Disarm => {
                self.vmm = Vmm::None;
                Report::Disarmed
            }
            Work::Capture if killed => Report::Lost { cause },
            Work::Capture if self.abandon => Report::CaptureAbandoned,
            Work::Capture if well => {
                self.vmm = Vmm::None;
                self.version = Some(self.row().version_number_last + 1);
                Report::Captured { version: self.intact().unwrap() }
            }
            Work::Capture => Report::CaptureFailed { cause },
            Work::Kill { remains } => {
                self.vmm = Vmm::None;
                if remains != Remains::All {
                    self.version = None;
                    self.stored = None;
                }
                Report::Fenced { version: self.intact() }
            }
        };
        // Reports of what a kill overtook may not fit any more; they must not change anything then.
        let before = self.row().clone();
        if self.report(start, report).is_err() {
            assert_eq!(&before, self.row());
        }
    }

    fn intact(&self) -> Option<SnapshotVersion> {
        self.version.map(|number| self.numbered(number))
    }

    fn numbered(&self, number: u64) -> SnapshotVersion {
        SnapshotVersion { number, at: self.now, stored_bytes: 1, paused_us: 1, image: "demo".to_owned() }
    }

    /// Decides and begins until nothing is left to do now.
    fn act(&mut self) {
        for round in 0.. {
            assert!(round < 20, "decides the same thing over and over: {:?}", self.row());
            let plan = decide(&self.fleet, self.now);
            let acts = plan.decisions.into_iter();
            let acts: Vec<_> = acts.filter(|one| !matches!(one.action, Action::Wait { .. })).collect();
            if acts.is_empty() {
                assert!(plan.next_look.is_none_or(|next| next > self.now), "a look that is due already");
                return;
            }
            for decision in acts {
                self.fleet.begin(&decision, self.now).unwrap();
                self.carry_out(decision.action);
            }
        }
    }

    fn carry_out(&mut self, action: Action) {
        let start = self.row().start;
        match action {
            Action::Boot => {
                assert!(matches!(self.vmm, Vmm::None | Vmm::Waiting), "booted beside {:?}", self.vmm);
                self.begin(start, Work::Start);
            }
            Action::Restore { from, keep } => {
                assert!(self.version.is_some(), "restored without a version");
                let reading = self.uploads.iter().any(|(number, _)| Some(*number) == self.version);
                let keeps = if from >= Rung::Armed { self.keeps } else { keep };
                assert!(keeps || !reading, "files are written to while they are sent");
                let expected = if from >= Rung::Armed { Vmm::Waiting } else { Vmm::None };
                assert_eq!(self.vmm, expected, "restored beside another process");
                self.begin(start, Work::Start);
            }
            Action::Arm { keep } => {
                self.keeps = keep;
                self.begin(start, Work::Arm);
            }
            Action::Pause => {
                self.keeps = true;
                self.begin(start, Work::Pause);
            }
            Action::Fetch => {
                assert!(self.stored.is_some() && !self.ran_since, "something is rolled back");
                self.begin(start, Work::Fetch);
            }
            Action::Evict => self.begin(start, Work::Evict),
            Action::RollBack { number, .. } => self.begin(start, Work::RollBack { number }),
            Action::Publish { number } => {
                assert_eq!(self.version, Some(number));
                self.uploads.push_back((number, false));
            }
            Action::Checkpoint { number } => {
                assert_eq!(self.vmm, Vmm::Running);
                assert!(self.stored.is_none_or(|stored| stored < number), "a number is used twice");
                self.uploads.push_back((number, true));
            }
            Action::Disarm => self.begin(start, Work::Disarm),
            Action::Drain { force, .. } => {
                let report = if self.busy_gate && !force {
                    Report::GateBusy { open_connections: 1, last_packet: self.now }
                } else {
                    Report::GateClosed
                };
                self.report(start, report).unwrap();
            }
            Action::Replicate { .. } | Action::Undrain | Action::GiveUpStart { .. } | Action::Wait { .. } => {
            }
            Action::Capture => {
                assert_eq!(self.vmm, Vmm::Running);
                self.abandon = false;
                self.begin(start, Work::Capture);
            }
            Action::AbandonCapture => self.abandon = true,
            // The only one that may overtake another.
            Action::Kill { remains } => self.work.push_back((start, Work::Kill { remains })),
        }
    }

    fn begin(&mut self, start: u64, work: Work) {
        assert_eq!(self.work, VecDeque::new(), "{work:?} begins while another goes on");
        if work == Work::Start {
            self.vmm = Vmm::Starting;
        }
        self.work.push_back((start, work));
    }

    /// From here on everything succeeds and somebody asks now and then.
    fn settle(&mut self) {
        self.busy_gate = false;
        for _ in 0..400 {
            if self.row().phase == Phase::Active && self.row().sleep_asked.is_none() {
                return;
            }
            self.happen(Happening::Wake);
            self.happen(Happening::Finish(true));
            self.happen(Happening::Uploaded(true));
            self.happen(Happening::Ready);
            self.happen(Happening::Later(500));
        }
        panic!("stuck: {:?}, {:?}, under way {:?}", self.row(), self.vmm, self.work);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_a_later_request_is_answered(walk in happenings(), rest in 0..4_usize, has_depot: bool) {
        let mut host = Host::new([Rung::Remote, Rung::Local, Rung::Armed, Rung::Paused][rest], has_depot);
        for happening in walk {
            host.happen(happening);
        }
        host.settle();
    }
}
