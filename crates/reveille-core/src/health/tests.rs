//! Stories of instances, by a clock that stands where it is put.

use super::*;
use crate::model::{
    Applied, Event, Fleet, HostLimits, Instance, InstanceId, Phase, PortSpec, Service, ServiceSpec,
};

const TCP: Probe = Probe::Tcp;
const FINE: Finding = Finding::Answered { after_us: 800 };
const REFUSED: Finding = Finding::Failed(Fault::Refused);
const SILENT: Finding = Finding::Failed(Fault::Silent { waited_ms: 1_000 });

/// One instance, its probing, and the time.
struct Story {
    judge: Judge,
    probing: Probing,
    now: Timestamp,
    /// Somebody uses the service.
    used: bool,
}

fn ports(text: &[&str]) -> Vec<PortSpec> {
    text.iter().map(|port| port.parse().unwrap()).collect()
}

impl Story {
    fn of(policy: HealthPolicy, declared: &[&str]) -> Self {
        assert_eq!(policy.faults_with(&ports(declared)), []);
        let now = Timestamp::from_ms(1_000_000);
        let probing = policy.probing(&ports(declared));
        Self { judge: Judge::new(now), probing, now, used: true }
    }

    fn new() -> Self {
        Self::of(HealthPolicy::default(), &["tcp/80"])
    }

    /// Waits until the next probes are due, for how long is returned, and has one found that.
    fn probe(&mut self, probe: Probe, finding: Finding) -> (u64, Option<String>) {
        let waited = self.judge.next_ms(&self.probing, self.used, self.now);
        self.now = self.now.plus_ms(waited);
        self.judge.probed(self.now);
        let told = self.judge.note(probe, finding, &self.probing, self.now);
        (waited, told.map(|reason| format!("{}: {reason}", self.judge.health())))
    }

    /// The verdicts after each of the findings: `+` answered, `-` refused.
    fn run(&mut self, findings: &str) -> String {
        let verdict = |mark| {
            self.probe(TCP, if mark == '+' { FINE } else { REFUSED });
            match self.judge.health() {
                Health::Unknown => '?',
                Health::Up => 'U',
                Health::Down => 'D',
            }
        };
        findings.chars().map(verdict).collect()
    }

    fn look(&mut self, ms: u64) -> Option<String> {
        self.now = self.now.plus_ms(ms);
        let told = self.judge.look(&self.probing, self.now);
        told.map(|reason| format!("{}: {reason}", self.judge.health()))
    }
}

#[test]
fn one_that_dies_and_comes_back_is_told_of_twice() {
    let mut story = Story::new();
    let told = |text: &str| Some(text.to_owned());
    assert_eq!(story.probe(TCP, FINE), (1_000, told("up: the last TCP probe was answered")));
    assert_eq!(story.probe(TCP, FINE), (5_000, None));
    assert_eq!(story.probe(TCP, REFUSED), (5_000, None));
    // In doubt the next ones follow quickly.
    assert_eq!(story.probe(TCP, REFUSED), (1_000, None));
    let why = "down: 3 of the last 4 TCP probes failed, the last one: the guest refused the connection";
    assert_eq!(story.probe(TCP, REFUSED), (1_000, told(why)));
    assert_eq!(story.probe(TCP, REFUSED), (5_000, None));
    assert_eq!(story.probe(TCP, FINE), (5_000, None));
    assert_eq!(story.probe(TCP, FINE), (1_000, told("up: 2 of the last 3 TCP probes were answered")));
}

#[test]
fn a_lost_packet_now_and_then_is_nothing() {
    let mut story = Story::new();
    assert_eq!(story.run("+-+-++--++-+"), "UUUUUUUUUUUU");
    assert_eq!(story.judge.seen(&story.probing)[1].findings, "+-+-++--++-+");
}

#[test]
fn a_port_that_flaps_has_to_answer_for_longer_each_time() {
    let mut story = Story::new();
    assert_eq!(story.run("+---++"), "UUUDDU");
    assert!(!story.judge.is_flapping());
    assert_eq!(story.run("---"), "UUD");
    assert!(story.judge.is_flapping());
    // Four of six, and then eight of twelve.
    assert_eq!(story.run("++++"), "DDDU");
    assert_eq!(story.run("---++++++++"), "UUDDDDDDDDU");
    assert_eq!(story.run("---++++++++"), "UUDDDDDDDDU", "and never for longer than that");
    // Who has been calm for a while is forgiven, fall by fall.
    for _ in 0..3 {
        story.now = story.now.plus_ms(CALM_MS);
        story.run("+");
    }
    assert!(!story.judge.is_flapping());
    assert_eq!(story.run("---++"), "UUDDU");
}

#[test]
fn a_port_that_answers_every_other_time_settles() {
    let mut story = Story::new();
    let verdicts = story.run(&"+-".repeat(40));
    assert_eq!(verdicts, "U".repeat(80));
    story.run("--");
    let verdicts = story.run(&"-+".repeat(100));
    let changes = verdicts.as_bytes().windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(changes <= 2, "{verdicts}");
}

#[test]
fn a_hang_is_told_from_a_dead_service_by_the_heartbeat() {
    let mut story = Story::new();
    story.probe(Probe::Heartbeat, FINE);
    story.probe(TCP, FINE);
    for _ in 0..2 {
        story.probe(TCP, SILENT);
    }
    let (_, told) = story.probe(TCP, SILENT);
    let why = "down: 3 of the last 4 TCP probes failed, the last one: no answer within 1000 ms";
    assert_eq!(told.unwrap(), format!("{why}; the guest itself lives"));
    story.probe(Probe::Heartbeat, Finding::Failed(Fault::MonitorSilent));
    let why = story.judge.reason(&story.probing).to_string();
    assert!(why.contains("nor does the guest give a heartbeat"), "{why}");
}

#[test]
fn a_heartbeat_alone_takes_down_only_who_has_no_port_to_ask() {
    let silent = Finding::Failed(Fault::AgentSilent);
    let mut story = Story::new();
    story.probe(TCP, FINE);
    for _ in 0..16 {
        story.probe(Probe::Heartbeat, silent);
    }
    assert_eq!(story.judge.health(), Health::Up, "its clients are served");

    let mut story = Story::of(HealthPolicy::default(), &["udp/53"]);
    story.probe(Probe::Heartbeat, FINE);
    assert_eq!(story.judge.health(), Health::Up);
    for _ in 0..3 {
        story.probe(Probe::Heartbeat, silent);
    }
    assert_eq!(story.judge.health(), Health::Down);
}

#[test]
fn a_slow_guest_is_up_and_its_slowness_is_seen() {
    let mut story = Story::new();
    for _ in 0..40 {
        story.probe(TCP, Finding::Answered { after_us: 900_000 });
    }
    let seen = &story.judge.seen(&story.probing)[1];
    assert_eq!((story.judge.health(), seen.fault), (Health::Up, None));
    assert!(seen.latency_us.unwrap().abs_diff(900_000) < 9_000, "{seen:?}");
    // One that the host held up says nothing about the guest.
    for _ in 0..40 {
        story.probe(TCP, Finding::Unclear);
    }
    assert_eq!(story.judge.health(), Health::Unknown, "but not for ever");
}

#[test]
fn all_ports_that_are_asked_must_answer() {
    let http = HttpProbe { port: Some(81), path: "/health".to_owned(), status: [200, 299] };
    let policy = HealthPolicy { http: HttpSetting::Get(Box::new(http)), ..HealthPolicy::default() };
    let mut story = Story::of(policy, &["tcp/80", "tcp/81"]);
    story.probe(TCP, FINE);
    assert_eq!(story.judge.health(), Health::Unknown);
    story.probe(Probe::Http, FINE);
    assert_eq!(story.judge.health(), Health::Up);
    for _ in 0..3 {
        story.probe(TCP, FINE);
        story.probe(Probe::Http, Finding::Failed(Fault::Status { status: 503 }));
    }
    assert_eq!(story.judge.health(), Health::Down);
    let why = story.judge.reason(&story.probing).to_string();
    assert_eq!(why, "3 of the last 4 HTTP probes failed, the last one: status 503");
}

#[test]
fn probes_are_slow_when_nobody_asks_and_quick_again_when_somebody_does() {
    let mut story = Story::new();
    story.used = false;
    assert_eq!(story.probe(TCP, FINE).0, 1_000);
    assert_eq!(story.probe(TCP, FINE).0, 60_000);
    assert_eq!(story.judge.next_ms(&story.probing, false, story.now), 60_000);
    story.now = story.now.plus_ms(10_000);
    assert_eq!(story.judge.next_ms(&story.probing, true, story.now), 0, "somebody has come");
    // Who fails is looked at quickly, whoever asks.
    assert_eq!(story.probe(TCP, REFUSED).0, 50_000);
    assert_eq!(story.probe(TCP, REFUSED).0, 1_000);
    story.probe(TCP, REFUSED);
    assert_eq!(story.probe(TCP, REFUSED).0, 5_000, "who is down is not forgotten either");
}

#[test]
fn who_sets_one_pace_alone_gets_no_nonsense_from_the_others() {
    let mut story = Story::of(HealthPolicy { interval_ms: 200, ..HealthPolicy::default() }, &["tcp/80"]);
    assert_eq!(story.probe(TCP, FINE).0, 200, "in doubt not more slowly than otherwise");
    let mut story = Story::of(HealthPolicy { interval_ms: 90_000, ..HealthPolicy::default() }, &["tcp/80"]);
    story.used = false;
    assert_eq!((story.probe(TCP, FINE).0, story.probe(TCP, FINE).0), (1_000, 90_000));
}

#[test]
fn a_sleep_takes_nothing_along_but_how_often_it_fell() {
    let mut story = Story::new();
    story.run("+---");
    story.now = story.now.plus_ms(3_600_000);
    story.judge.begin(story.now);
    assert_eq!(story.judge.health(), Health::Unknown);
    assert_eq!(story.judge.reason(&story.probing), HealthReason::NotProbed);
    assert_eq!(story.run("++"), "?U", "who fell before answers twice");
    story.run("---");
    story.judge.begin(story.now);
    assert_eq!(story.run("++++"), "???U", "and who flaps, for longer");

    let mut calm = Story::new();
    calm.run("++");
    calm.judge.begin(calm.now);
    assert_eq!(calm.run("+"), "U");
}

#[test]
fn a_crash_is_down_at_once_and_counts_as_a_fall() {
    let mut story = Story::new();
    story.run("+++");
    story.judge.lost(story.now);
    assert_eq!(story.judge.health(), Health::Down);
    story.judge.begin(story.now);
    assert_eq!(story.run("++"), "?U");
    story.judge.lost(story.now);
    story.judge.lost(story.now);
    assert!(story.judge.is_flapping(), "two falls, however often the second was told of");
    story.judge.begin(story.now);
    assert_eq!(story.run("++++"), "???U");
}

#[test]
fn a_jump_of_the_clock_leaves_nobody_judged_by_what_is_old() {
    let mut story = Story::new();
    story.run("++");
    assert_eq!(story.look(180_000), None);
    assert_eq!(story.look(1).unwrap(), "unknown: nothing certain was found for 180001 ms");
    assert_eq!(story.judge.next_ms(&story.probing, false, story.now), 1_000);
    assert_eq!(story.run("+"), "U");
    // Back: the next probe does not wait for the time of before.
    let before = story.now;
    story.now = Timestamp::from_ms(1);
    assert_eq!(story.look(0), None);
    assert_eq!(story.judge.next_ms(&story.probing, false, story.now), 0);
    assert_eq!(story.run("+"), "U");
    assert_eq!(story.judge.next_ms(&story.probing, false, story.now), 60_000);
    assert!(story.now < before);
}

#[test]
fn what_is_off_is_neither_probed_nor_judged() {
    let mut story = Story::of(HealthPolicy { enabled: false, ..HealthPolicy::default() }, &["tcp/80"]);
    assert!(story.probing.is_empty());
    story.run("+---");
    assert_eq!(story.judge.health(), Health::Unknown);
    assert_eq!(story.judge.reason(&story.probing), HealthReason::NotAsked);
    assert_eq!(story.judge.seen(&story.probing), []);
}

#[test]
fn thresholds_that_change_count_from_the_next_finding_on() {
    let mut story = Story::new();
    assert_eq!(story.run("+--"), "UUU");
    story.probing.policy.down = 2;
    assert_eq!(story.run("+-"), "UD", "three of the last four are more than two");
}

#[test]
fn one_instance_costs_a_fixed_number_of_bytes() {
    assert!(size_of::<Judge>() <= 128, "{}", size_of::<Judge>());
}

#[test]
fn settings_are_read_as_they_are_written_and_ranges_are_said() {
    let read = |text: &str| serde_json::from_str::<HealthPolicy>(text);
    let policy = read(r#"{"tcp": 81, "http": {"path": "/up", "status": [200, 204]}, "down": 2}"#).unwrap();
    assert_eq!(policy.tcp, TcpSetting::Port(81));
    let written = serde_json::to_string(&policy).unwrap();
    assert_eq!(read(&written).unwrap(), policy);
    let probing = policy.probing(&ports(&["udp/53", "tcp/80", "tcp/81"]));
    assert_eq!((probing.tcp, probing.http.as_ref().map(|(port, _)| *port)), (Some(81), Some(80)));
    // The port that is asked by HTTP needs no handshake beside.
    let probing = read(r#"{"http": {}}"#).unwrap().probing(&ports(&["tcp/80"]));
    assert_eq!((probing.tcp, probing.http.unwrap().1.path), (None, "/".to_owned()));

    for (text, told) in [
        (r#"{"tcp": 0}"#, "\"first\", \"off\" or a port from 1 to 65535"),
        (r#"{"tcp": "second"}"#, "\"first\", \"off\" or a port from 1 to 65535"),
        (r#"{"http": "on"}"#, "\"off\" or a table such as"),
        (r#"{"http": {"pth": "/"}}"#, "unknown field `pth`"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
    let text = r#"{"interval_ms": 10, "doubt_ms": 1, "quiet_ms": 1, "timeout_ms": 1, "down": 5, "up_of": 17,
        "tcp": 99, "http": {"port": 53, "path": "up", "status": [300, 200]}}"#;
    let faults = read(text).unwrap().faults_with(&ports(&["tcp/80", "udp/53"]));
    let keys: Vec<&str> = faults.iter().map(|fault| fault.key.as_str()).collect();
    let expected =
        ["interval_ms", "doubt_ms", "quiet_ms", "timeout_ms", "down", "up_of", "http.path", "http.status"];
    assert_eq!(keys, [&expected[..], &["tcp", "http.port"]].concat());
    assert_eq!(faults[4].allowed, "1 to 4");
}

#[test]
fn a_verdict_is_of_one_start_and_who_sleeps_has_none() {
    let now = Timestamp::from_ms(1_000_000);
    let spec = r#"{"name":"a.vm.test","image":"demo","ports":["tcp/80"]}"#;
    let spec: ServiceSpec = serde_json::from_str(spec).unwrap();
    let id = InstanceId(1);
    let mut row = Instance::new(id, spec.name.clone(), now);
    (row.phase, row.start) = (Phase::Active, 4);
    let service = Service::new(spec.clone(), [127, 64, 0, 1].into(), now, id);
    let mut fleet = Fleet::new(HostLimits::default());
    fleet.apply(Event::Added { service: Box::new(service), instance: Box::new(row) }, now).unwrap();
    fleet.take_changed();
    let reason = HealthReason::Unheard { for_ms: 5 };
    let down = Judged { health: Health::Down, since: now.plus_ms(9), reason };
    let judged = |start| Event::Judged { instance: id, start, judged: down.clone() };
    assert_eq!(fleet.apply(judged(3), now), Ok(Applied::Stale));
    assert_eq!(fleet.instance(id).unwrap().health(&spec).reason, HealthReason::NotProbed);
    assert_eq!(fleet.apply(judged(4), now), Ok(Applied::Changed));
    assert!(fleet.take_changed().is_empty(), "nothing of it is written or published");

    let seen = fleet.instance(id).unwrap();
    assert_eq!(seen.health(&spec), down);
    let next = Instance { start: 5, ..seen.clone() };
    assert_eq!(next.health(&spec).reason, HealthReason::NotProbed);
    let off =
        ServiceSpec { health: HealthPolicy { enabled: false, ..HealthPolicy::default() }, ..spec.clone() };
    assert_eq!(seen.health(&off).reason, HealthReason::NotAsked);
    let in_phase = |phase| {
        let Judged { health, reason, .. } = Instance { phase, ..seen.clone() }.health(&spec);
        (health, reason)
    };
    for phase in [Phase::Off, Phase::Hibernating, Phase::Hibernated] {
        assert_eq!(in_phase(phase), (Health::Unknown, HealthReason::Asleep));
    }
    for phase in [Phase::Booting, Phase::Restoring, Phase::Warming] {
        assert_eq!(in_phase(phase), (Health::Unknown, HealthReason::Starting));
    }
    assert_eq!(in_phase(Phase::Draining).0, Health::Down);
    assert_eq!(in_phase(Phase::Failed).0, Health::Down);
}
