//! Demand that is seen coming: a service is awake when it is asked for, and asleep before.
//!
//! Time is compressed by fifteen: who is asked for every ten minutes is asked for every forty seconds, and what a client's
//! second is worth is a fifteenth or less.

use std::fs;
use std::time::{Duration, Instant};

use reveille_core::forecast::gaps::{Arrival, Gaps, Name};
use reveille_core::model::Timestamp;
use reveille_store::history::{History, Limits, StoredForecast};
use serde_json::Value;

use crate::chance::count;
use crate::small::say;
use crate::world::World;

/// Time between two asks.
const GAP: Duration = Duration::from_secs(40);
/// Gaps that were seen before the daemon starts.
const SEEN: u32 = 24;
/// The services: one that goes by its forecast, one that records it alone, and one that is asked for without a pattern.
const SERVICES: [(&str, &str); 3] = [("clock", "on"), ("only", "only"), ("chance", "on")];
/// Pause between two looks at the rungs.
const EACH_LOOK: Duration = Duration::from_millis(200);
/// When the first ask comes after the start: a gap after the last one that was seen.
const FIRST: Duration = Duration::from_secs(30);

fn service((name, mode): (&str, &str)) -> String {
    format!(
        r#"
[[service]]
name = "{name}.vm.test"
image = "demo"
ports = ["tcp/8080"]
ready = {{ check = "http", port = 8080, path = "/" }}
policy = {{ forecast = "{mode}", delay_mib_hours = 25, change_mib_hours = 0, idle_ms = 1000 }}
"#
    )
}

/// Each gap is up to 3 % longer or shorter, by its number.
fn gap(number: u32) -> Duration {
    GAP.mul_f64(0.97 + f64::from(number * 37 % 61) / 1_000.0)
}

/// A gap of a Poisson process that is asked for a thirtieth as often, by its number.
fn chance(number: u32) -> Duration {
    let uniform = f64::from(number * 61 % 97) / 97.0;
    GAP.mul_f64(30.0 * -(1.0 - uniform).ln())
}

/// What a daemon has learned that saw the services for a while, until `last`.
fn learn(world: &World, last: Timestamp) {
    let _ = fs::remove_dir_all(world.path("state/history"));
    let mut gaps = Gaps::default();
    let states = SERVICES.map(|(service, _)| {
        let of = |number| if service == "chance" { chance(number) } else { gap(number) };
        let whole: Duration = (0..SEEN).map(of).sum();
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap();
        // Who is asked for by chance was not asked for just now.
        let last = if service == "chance" { Timestamp::from_ms(last.as_ms() - ms(2 * GAP)) } else { last };
        let (mut name, mut at) = (Name::default(), Timestamp::from_ms(last.as_ms() - ms(whole)));
        gaps.arrived(&mut name, Arrival { at, client: None, busy_ms: None, group: None });
        for number in 0..SEEN {
            at = at.plus_ms(ms(of(number)));
            gaps.arrived(&mut name, Arrival { at, client: None, busy_ms: None, group: None });
        }
        StoredForecast {
            name: format!("{service}.vm.test").into_bytes().into(),
            version: 1,
            state: name.to_bytes(),
        }
    });
    let (history, _) = History::open(&world.path("state/history"), Limits::default()).unwrap();
    history.recorder().put_forecast_states(states.into()).unwrap();
    drop(history);
    fs::write(world.path("state/gaps"), gaps.to_bytes()).unwrap();
}

fn now() -> Timestamp {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp::from_ms(u64::try_from(now.as_millis()).unwrap())
}

#[test]
fn who_is_asked_for_by_a_clock_is_awake_then_and_asleep_before() {
    let asks = u32::try_from(count("REVEILLE_TEST_ASKS", 3)).unwrap();
    let mut world = World::new();
    for (name, _) in SERVICES {
        world = world.service(&service((name, "off")));
    }
    let mut world = world.start();
    for number in 1..=3 {
        world.page_at(number);
    }
    for (name, _) in SERVICES {
        world.until_phase(&format!("{name}.vm.test"), "hibernated");
    }
    world.stop();
    // As if the last ask had come so long ago that the next one is due a little later.
    learn(&world, Timestamp::from_ms(now().as_ms() - 10_000));
    let declared = SERVICES.map(service);
    world.declare(&declared.each_ref().map(String::as_str));
    world.restart();

    let mut at = Instant::now() + FIRST;
    let (mut warm, mut asleep) = (0, Vec::new());
    for number in 0..asks {
        let seen = watch(&world, at);
        asleep.push(seen.asleep);
        warm += u32::from(["paused", "active"].contains(&seen.clock.as_str()));
        say(&format!(
            "ask {number}: clock {} (asleep {:.2} of the gap), only {}",
            seen.clock, seen.asleep, seen.only
        ));
        assert_eq!(seen.only, "local", "in the mode `only` nothing is done");
        assert_eq!(seen.chance_awake, 0, "nobody asks for it, and it has no pattern");
        assert_eq!(world.page_at(1).service, "clock");
        assert_eq!(world.page_at(2).service, "only");
        at += gap(number);
    }
    assert!(warm * 100 >= asks * 95, "warm at {warm} of {asks} asks");
    // The first gap began before the daemon did.
    let gaps = &asleep[1..];
    assert!(gaps.iter().all(|part| *part >= 0.7), "asleep for {gaps:?} of the gaps");
    let would = reasons(&world, "only");
    assert!(would.iter().any(|why| why.contains("with forecast = \"on\" it would be kept")), "{would:#?}");
    let did = reasons(&world, "clock");
    assert!(did.iter().any(|why| why.contains("best kept")), "{did:#?}");
}

fn reasons(world: &World, service: &str) -> Vec<String> {
    let why = world.why(service);
    let decisions = why["decisions"].as_array().unwrap();
    decisions.iter().map(|decision| decision["why"].as_str().unwrap().to_owned()).collect()
}

/// What was seen until an ask.
struct Seen {
    /// The rung of `clock` in the end.
    clock: String,
    /// For which part of the time it was asleep: in no process.
    asleep: f64,
    only: String,
    /// Looks at which `chance` was not asleep.
    chance_awake: u32,
}

fn watch(world: &World, until: Instant) -> Seen {
    let rung = |shown: Value| shown["rung"].as_str().unwrap().to_owned();
    let (mut looks, mut asleep, mut chance_awake) = (0_u32, 0_u32, 0);
    loop {
        let clock = rung(world.show("clock.vm.test"));
        looks += 1;
        asleep += u32::from(clock == "local");
        chance_awake += u32::from(rung(world.show("chance.vm.test")) != "local");
        if Instant::now() >= until {
            let only = rung(world.show("only.vm.test"));
            return Seen { clock, asleep: f64::from(asleep) / f64::from(looks), only, chance_awake };
        }
        std::thread::sleep(EACH_LOOK);
    }
}
