//! A service of several instances: a flash crowd has more of them, a flood of questions has not, and is no demand; what swings around a
//! threshold changes nothing; a changed threshold changes the next decision; and when the crowd is gone they go.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use reveille_core::forecast::anomaly::{Detector, Settings};
use reveille_core::model::Timestamp;
use reveille_store::history::{History, Limits, StoredForecast};
use rustix::process::Signal;
use serde_json::Value;

use crate::small::{send, until};
use crate::wire::{connect, udp};
use crate::world::World;

const NAME: &str = "web.vm.test";
/// Clients that one instance carries.
const CAPACITY: usize = 4;
/// Questions of the flood.
const QUESTIONS: u16 = 2_000;
/// For how long it is looked that nothing changes: some panic windows.
const NOTHING_FOR: Duration = Duration::from_secs(4);
const LOOK: Duration = Duration::from_millis(100);

fn service(capacity: usize) -> String {
    format!(
        r#"
[[service]]
name = "{NAME}"
kind = "replicable"
image = "demo"
ports = ["tcp/8080", "tcp/7007"]
ready = {{ check = "http", port = 8080, path = "/" }}
policy = {{ instances_max = 3, capacity = {capacity}, target_percent = 100, stable_ms = 5000, panic_ms = 2000, panic_percent = 150, scale_down_delay_ms = 4000, idle_ms = 2000 }}
"#
    )
}

/// The service has been asked for ten times a minute for two hours, up to some minutes ago.
fn has_a_past(world: &World) {
    let now_ms = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    let mut detector = Detector::new(Settings::default()).unwrap();
    for ago in (3..123_u64).rev() {
        let minute = now_ms / 60_000 - ago;
        detector.observe(Timestamp::from_ms(minute * 60_000), (8 + minute % 5) as f64).unwrap();
    }
    let state = zstd::bulk::compress(&serde_json::to_vec(&detector).unwrap(), 3).unwrap();
    let (history, _) = History::open(&world.path("state/history"), Limits::default()).unwrap();
    let state = StoredForecast { name: NAME.as_bytes().into(), version: 1, state };
    history.recorder().put_detector_states(vec![state]).unwrap();
    assert!(history.recorder().flush());
}

/// What was asked of the service in the last hour: all questions, and those that were kept out of demand.
fn asked(world: &World) -> (u64, u64) {
    let shown = world.json(&["demand", "service", "web"]);
    let sum = |what: &str| {
        let steps = shown["steps"].as_array().unwrap().iter();
        steps.map(|step| step[what].as_u64().unwrap()).sum()
    };
    (sum("queries"), sum("kept_out"))
}

/// A client that is connected, has been answered, and stays.
fn guest(world: &World) -> TcpStream {
    let mut stream = connect(SocketAddr::new(world.address(1).into(), 7_007)).unwrap();
    echoes(&mut stream).unwrap();
    stream
}

fn echoes(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"still")?;
    let mut back = [0; 5];
    stream.read_exact(&mut back)?;
    assert_eq!(&back, b"still");
    Ok(())
}

fn active(shown: &Value) -> usize {
    shown["replicas"].as_array().unwrap().iter().filter(|replica| replica["phase"] == "active").count()
}

fn until_replicas(world: &World, count: usize) -> Value {
    world.until_shown(NAME, &format!("{count} active replicas"), |shown| {
        active(shown) == count && shown["replicas"].as_array().unwrap().len() == count
    })
}

/// For a while there is no replica, whatever `go` does.
fn nothing_follows(world: &World, go: impl Fn()) {
    let began = Instant::now();
    while began.elapsed() < NOTHING_FOR {
        go();
        let shown = world.show(NAME);
        assert_eq!(shown["replicas"].as_array().unwrap().len(), 0, "{shown:#}");
        std::thread::sleep(LOOK);
    }
}

/// Questions for the name and for names below it.
fn flood(world: &World) {
    let socket = udp();
    for id in 0..QUESTIONS {
        let mut question = id.to_be_bytes().to_vec();
        question.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        let random = format!("x{id}");
        let labels = [random.as_str(), "web", "vm", "test"];
        for label in &labels[usize::from(id % 2)..] {
            question.push(u8::try_from(label.len()).unwrap());
            question.extend(label.as_bytes());
        }
        question.extend([0, 0, 1, 0, 1]);
        // What the socket has no room for is lost, as in any flood.
        let _ = socket.send_to(&question, world.dns());
    }
}

#[test]
fn a_crowd_has_as_many_instances_as_carry_it_and_a_flood_has_none() {
    let mut world = World::new().service(&service(CAPACITY));
    has_a_past(&world);
    world.restart();
    let first = world.page();

    nothing_follows(&world, || flood(&world));
    // All but what came before the flood was seen, and what is usual.
    until("the flood to be kept out of demand", || {
        let (queries, kept_out) = asked(&world);
        (queries > 200 && 2 * kept_out > queries).then_some(())
    });
    // When its minute is over. Who connects in that minute would speak for a crowd.
    let shown = world.until_shown(NAME, "the anomaly", |shown| shown["last_anomaly"]["nature"].is_string());
    let anomaly = &shown["last_anomaly"];
    assert_eq!(
        (&anomaly["kind"], &anomaly["nature"]),
        (&"spike".into(), &"single_source".into()),
        "{anomaly:#}"
    );
    assert!(2.0 * anomaly["demand"].as_f64().unwrap() < anomaly["observed"].as_f64().unwrap(), "{anomaly:#}");
    // Around the threshold between one instance and two.
    let mut clients: Vec<TcpStream> = (0..CAPACITY).map(|_| guest(&world)).collect();
    let (mut one_more, began) = (None, Instant::now());
    while began.elapsed() < NOTHING_FOR {
        one_more = one_more.take().is_none().then(|| guest(&world));
        std::thread::sleep(LOOK);
    }
    drop(one_more);
    let actions = world.actions("web");
    let since = actions.iter().position(|action| action == "replicate").unwrap_or(actions.len());
    let again =
        actions[since..].iter().skip(1).filter(|action| ["replicate", "drain"].contains(&action.as_str()));
    assert_eq!(again.count(), 0, "once up at most, and not down again: {actions:?}");

    clients.extend((0..CAPACITY + 1).map(|_| guest(&world)));
    let shown = until_replicas(&world, 2);
    assert_eq!((world.vms().len(), shown["load"]["wanted"].as_u64()), (3, Some(3)), "{shown:#}");
    assert!(reasons(&world).iter().any(|why| why.contains("a crowd")), "{:#?}", reasons(&world));
    clients.iter_mut().for_each(|client| echoes(client).unwrap());
    // Who comes now is led to those that have fewer, each a guest of its own.
    let nonces: BTreeSet<String> = (0..4).map(|_| world.page().nonce).collect();
    assert!(nonces.iter().any(|nonce| *nonce != first.nonce), "{nonces:?}");

    // One that is lost is replaced, and nobody is turned away meanwhile.
    let lost = shown["replicas"][0]["instance"].as_u64().unwrap();
    let vm = world.vms().into_iter().find(|vm| vm.instance == format!("i{lost}")).unwrap();
    send(vm.pid, Signal::KILL);
    until("the loss to be seen", || {
        let shown = world.show(NAME);
        (active(&shown) < 2).then_some(())
    });
    assert_eq!(world.page().service, "web");
    let alive = clients.iter_mut().filter_map(|client| echoes(client).ok()).count();
    assert!(alive >= CAPACITY, "{alive} of the clients of others live on");

    // With another capacity one instance is enough for those who are there.
    world.declare(&[&service(50)]);
    world.reload();
    drop(clients);
    until_replicas(&world, 0);
    world.until_phase(NAME, "hibernated");
    assert_eq!(world.until_vms(0).len(), 0);
    assert_eq!(world.page().nonce, first.nonce, "the primary slept, and the others are gone");
}

/// What a daemon that is killed leaves of several instances is ended by the next one, and clients are served.
#[test]
fn instances_of_a_daemon_that_was_killed_are_not_left_behind() {
    let mut world = World::new().service(&service(CAPACITY)).start();
    let clients: Vec<TcpStream> = (0..2 * CAPACITY).map(|_| guest(&world)).collect();
    until_replicas(&world, 1);
    let before = world.vms();
    world.kill9();
    drop(clients);
    world.restart();
    let kept = world.until_vms(1);
    assert!(before.contains(&kept[0]) && kept[0].instance == format!("i{}", world.show(NAME)["instance"]));
    assert_eq!(world.page().service, "web");
}

fn reasons(world: &World) -> Vec<String> {
    let why = world.why("web");
    let decisions = why["decisions"].as_array().unwrap();
    decisions.iter().map(|decision| decision["why"].as_str().unwrap().to_owned()).collect()
}
