//! What the control loop makes of requests, reports and verdicts about services of several instances.

mod host;

use reveille_api::Time;
use reveille_api::types::{WarmUpReport, WarmUpResult};
use reveille_core::decide::{Action, Decision, Reason};
use reveille_core::health::{Fault, Finding, Health, HealthReason, Judged, Probe};
use reveille_core::model::{Cause, Event, InstanceId, Phase, Remains, Report};
use reveille_core::warm_up::WarmUpSet;
use reveille_store::StateDatabase;

use self::host::{Host, NAME, spec};
use super::executor::Order;
use crate::clock::monotonic;

impl Host {
    /// One more instance, which takes clients.
    fn replica(&mut self) -> InstanceId {
        let replica = self.store.reserve_instance_id();
        let event = Event::Replicated { service: NAME.parse().unwrap(), replica };
        self.control.fleet.apply(event, self.control.clock.now()).unwrap();
        self.begin(replica, Action::Boot);
        self.report(replica, Report::Running);
        self.report(replica, Report::Ready);
        assert_eq!(self.led_last(), Some((replica, true)));
        replica
    }

    fn begin(&mut self, instance: InstanceId, action: Action) {
        let decision =
            Decision { service: NAME.parse().unwrap(), instance, action, reason: Reason::Leftover };
        self.control.fleet.begin(&decision, self.control.clock.now()).unwrap();
    }

    fn report(&mut self, instance: InstanceId, report: Report) {
        let start = self.control.fleet.instance(instance).unwrap().start;
        self.control.reported(instance, start, report, monotonic());
    }

    fn judge(&mut self, instance: InstanceId, health: Health) {
        let start = self.control.fleet.instance(instance).unwrap().start;
        let reason = HealthReason::NotProbed;
        self.control.judged(instance, start, Judged { health, since: self.control.clock.now(), reason });
    }

    /// What was told of an instance's health, the newest last.
    async fn told(&self, instance: InstanceId) -> Vec<Health> {
        // A barrier: what was written before is there.
        StateDatabase::write(&*self.store, Vec::new()).await.unwrap();
        let rows = self.store.health(&NAME.parse().unwrap(), None, 100).unwrap();
        let own = rows.into_iter().rev().map(|row| row.entry).filter(|row| row.instance == instance);
        own.map(|row| row.health).collect()
    }
}

#[tokio::test]
async fn several_instances_behind_a_tap_are_a_fault_however_the_service_comes() {
    let several = spec();
    for (shares_out, faults) in [(true, 0), (false, 1)] {
        let host = Host::awake(shares_out).await;
        // By creating and cloning, and by giving it something else to run.
        for found in [host.control.spec_faults(&several).await, host.control.image_faults(&several).await] {
            let of_instances = found.iter().filter(|fault| fault.key == "policy.instances_max");
            assert_eq!(of_instances.count(), faults, "{found:?}");
        }
    }
}

#[tokio::test]
async fn a_replica_that_is_down_takes_nobody_until_it_is_up_and_the_primary_always_does() {
    let mut host = Host::awake(true).await;
    let replica = host.replica();
    host.judge(replica, Health::Down);
    assert_eq!(host.led_last(), Some((replica, false)));
    host.judge(replica, Health::Unknown);
    assert_eq!(host.led_last(), Some((replica, false)), "nothing certain is known");
    host.judge(replica, Health::Up);
    assert_eq!(host.led_last(), Some((replica, true)));
    let before = host.net.led.lock().unwrap().len();
    host.judge(host.primary, Health::Down);
    assert_eq!(host.net.led.lock().unwrap().len(), before, "there may be no other");

    // While it drains nobody is led to it, however well it fares; needed again, only if it is not down.
    let order = |host: &Host| Order::of(host.control.fleet.instance(replica).unwrap(), &spec());
    host.begin(replica, Action::Drain { idle_ms: 0, force: false });
    let drains = order(&host);
    host.control.carry_out_of_replica(drains, &Action::Drain { idle_ms: 0, force: false });
    assert_eq!(host.led_last(), Some((replica, false)));
    host.judge(replica, Health::Down);
    host.judge(replica, Health::Up);
    assert_eq!(host.led_last(), Some((replica, false)));
    host.judge(replica, Health::Down);
    for (health, takes) in [(Health::Down, false), (Health::Up, true)] {
        host.judge(replica, health);
        if host.control.fleet.instance(replica).unwrap().phase == Phase::Active {
            host.begin(replica, Action::Drain { idle_ms: 0, force: false });
        }
        host.begin(replica, Action::Undrain);
        let undrains = order(&host);
        host.control.carry_out_of_replica(undrains, &Action::Undrain);
        assert_eq!(host.led_last(), Some((replica, takes)));
    }
}

#[tokio::test]
async fn a_replica_is_counted_once_more_when_nobody_new_is_led_to_it() {
    let mut host = Host::awake(true).await;
    let replica = host.replica();
    let drain = Action::Drain { idle_ms: 0, force: false };
    host.begin(replica, drain.clone());
    assert!(host.control.fleet.instance(replica).unwrap().is_uncounted);
    let order = Order::of(host.control.fleet.instance(replica).unwrap(), &spec());
    host.control.carry_out_of_replica(order, &drain);
    assert!(!host.control.fleet.instance(replica).unwrap().is_uncounted);
}

#[tokio::test]
async fn a_replica_that_is_lost_is_told_as_down_and_leaves_nothing_behind() {
    let mut host = Host::awake(true).await;
    let replica = host.replica();
    let now = host.control.clock.now();
    let tools = host.control.executor.tools();
    tools.vitals.begin(replica, &spec(), now);
    tools.vitals.note(replica, Probe::Tcp, Finding::Failed(Fault::Refused), now);
    tools.agents.look(&*tools.driver, replica).await;
    tools.warm_ups.note(
        replica,
        WarmUpReport {
            profile: "web".to_owned(),
            why: None,
            set: WarmUpSet::Boot,
            at: Time(now),
            took_ms: 1,
            runs: 1,
            result: WarmUpResult::Done,
            steps: Vec::new(),
        },
    );
    host.report(replica, Report::Lost { cause: Cause::VmmDied { detail: "killed".to_owned() } });
    assert_eq!(host.told(replica).await, [Health::Down]);
    assert_eq!(host.control.ailing.get(&replica), Some(&Health::Down));
    assert!(!host.control.executor.tools().vitals.evidence(replica).probes.is_empty());

    host.begin(replica, Action::Kill { remains: Remains::Nothing });
    host.report(replica, Report::Fenced { version: None });
    assert!(host.control.fleet.instance(replica).is_none());
    let tools = host.control.executor.tools();
    assert!(tools.vitals.evidence(replica).probes.is_empty());
    assert_eq!(tools.agents.told(replica), None);
    assert_eq!(tools.warm_ups.told(replica), None);
    assert!(host.control.ailing.is_empty());
}
