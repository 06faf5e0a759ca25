//! A host with services, and a clock that only the test moves.

use std::net::{IpAddr, Ipv4Addr};

use crate::decide::*;
use crate::health::HealthPolicy;
use crate::model::{
    AnswerPolicy, Applied, Egress, Event, HostLimits, Kind, Ownership, Policy, PortSpec, Report,
    RequestError, Resources, ServiceSpec, SnapshotVersion, Trigger,
};

pub(super) const T0: u64 = 1_000_000;

pub(super) fn at(ms: u64) -> Timestamp {
    Timestamp::from_ms(T0 + ms)
}

pub(super) fn query() -> Trigger {
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
    pub(super) fn new(starts_max: u32) -> Self {
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
            profile: None,
            address: None,
            address6: None,
            priority,
            egress: Egress::None,
            egress_allow: Vec::new(),
            egress_deny: Vec::new(),
            policy: Policy { answer: AnswerPolicy::Immediate, ..policy },
            health: HealthPolicy::default(),
        };
        let service = Service::new(spec, Ipv4Addr::new(127, 64, 0, 1), at(0), InstanceId(id));
        let instance = Instance::new(InstanceId(id), name.clone(), at(0));
        let event = Event::Added { service: Box::new(service), instance: Box::new(instance) };
        self.fleet.apply(event, at(0)).unwrap();
        if self.fleet.limits.has_depot {
            let ownership = Ownership::Ours { epoch: 1, newest: None, number_last: 0 };
            self.fleet.apply(Event::Owned { service: name.clone(), ownership }, at(0)).unwrap();
        }
        name
    }

    /// A start or a guest is lost, and its process ended; what is left of its version.
    pub(super) fn lose(&mut self, id: u64, cause: Cause, version: Option<SnapshotVersion>, ms: u64) {
        self.report(id, Report::Lost { cause }, ms);
        self.plan(ms);
        self.report(id, Report::Fenced { version }, ms);
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
                Action::Replicate { instances } => format!("replicate {instances}"),
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
        self.up(id, name, [0, 100, 3_000]);
        self.down(id, 1, [13_000, 13_010]);
    }

    /// Is asked for, runs and is ready at these times.
    pub(super) fn up(&mut self, id: u64, name: &DomainName, [asked, running, ready]: [u64; 3]) {
        self.wake(name, asked).unwrap();
        self.plan(asked);
        self.report(id, Report::Running, running);
        self.report(id, Report::Ready, ready);
    }

    /// Goes to sleep with a version at the first time, and sleeps at the second.
    pub(super) fn down(&mut self, id: u64, number: u64, [idle, asleep]: [u64; 2]) {
        self.plan(idle);
        self.report(id, Report::GateClosed, idle);
        self.plan(idle);
        self.report(id, Report::Captured { version: version(number) }, asleep);
    }
}

pub(super) fn version(number: u64) -> SnapshotVersion {
    SnapshotVersion { number, at: at(13_000), stored_bytes: 1 << 20, paused_us: 1, image: "demo".into() }
}

pub(super) const NOTHING: [&str; 0] = [];

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
