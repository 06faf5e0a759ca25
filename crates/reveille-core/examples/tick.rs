//! One turn of the decision loop with many names: `tick [NAMES [FORESEEN]]`, 100,000 and 5,000 without.
//!
//! The foreseen ones sleep and have a forecast that may wake them; the others sleep and have none. Told is how long
//! a turn takes, and how long it takes to take in one forecast.

use std::net::Ipv4Addr;
use std::time::Instant;

use reveille_core::decide::{Foresight, OUTLOOK_PIECES_MAX, decide};
use reveille_core::forecast::gaps::{Arrival, Gaps, Name};
use reveille_core::model::{
    Event, Fleet, ForecastMode, HostLimits, Instance, InstanceId, Phase, Rung, Service, ServiceSpec,
    SnapshotVersion, Timestamp,
};

const TURNS: usize = 21;

#[expect(clippy::disallowed_methods, reason = "what is measured is the core's own time")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let names = arguments.next().transpose()?.unwrap_or(100_000);
    let foreseen = arguments.next().transpose()?.unwrap_or(5_000);
    let now = Timestamp::from_ms(1_700_000_000_000);
    let mut fleet = Fleet::new(HostLimits { starts_max: 4, ..HostLimits::default() });
    for number in 0..names {
        let (service, instance) = asleep(number, now)?;
        fleet.apply(Event::Added { service: Box::new(service), instance: Box::new(instance) }, now)?;
    }
    let began = Instant::now();
    for number in 0..foreseen {
        let foresight = hourly(number, now);
        fleet.apply(Event::Foreseen { service: format!("s{number}.vm.test").parse()?, foresight }, now)?;
    }
    let each_us = began.elapsed().as_secs_f64() * 1e6 / foreseen.max(1) as f64;
    let mut turns: Vec<f64> = (0..TURNS)
        .map(|_| {
            let began = Instant::now();
            fleet.take_due(now);
            let plan = decide(&fleet, now);
            fleet.rest_until_due(now);
            std::hint::black_box(plan);
            began.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    turns.sort_by(f64::total_cmp);
    let (median, most) = (turns[TURNS / 2], turns[TURNS - 1]);
    println!("{names} names, {foreseen} of them foreseen: a turn {median:.2} ms (most {most:.2})");
    println!("a forecast made and taken in: {each_us:.0} µs");
    Ok(())
}

fn asleep(number: u64, now: Timestamp) -> Result<(Service, Instance), Box<dyn std::error::Error>> {
    let text = format!(
        r#"{{"name":"s{number}.vm.test","image":"demo","ports":["tcp/80"],"policy":{{"forecast":"on"}}}}"#
    );
    let spec: ServiceSpec = serde_json::from_str(&text)?;
    debug_assert_eq!(spec.policy.forecast, ForecastMode::On);
    let mut instance = Instance::new(InstanceId(number), spec.name.clone(), now);
    (instance.phase, instance.rung) = (Phase::Hibernated, Rung::Local);
    instance.version = Some(SnapshotVersion {
        number: 1,
        at: now,
        stored_bytes: 1 << 26,
        paused_us: 1,
        image: "demo".to_owned(),
    });
    let address = Ipv4Addr::from(0x7f40_0000 | u32::try_from(number)?);
    Ok((Service::new(spec, address, now, InstanceId(number)), instance))
}

/// What is foreseen of a name that was asked for every hour, for the last time some minutes ago.
fn hourly(number: u64, now: Timestamp) -> Foresight {
    let (mut gaps, mut name) = (Gaps::default(), Name::default());
    let since = now.as_ms() - number % 3_000 * 1_000;
    for hour in (0..8).rev() {
        let at = Timestamp::from_ms(since - hour * 3_600_000);
        gaps.arrived(&mut name, Arrival { at, client: None, busy_ms: None, group: None });
    }
    Foresight {
        since: Timestamp::from_ms(since),
        pieces: gaps.hazards(&name, now, OUTLOOK_PIECES_MAX),
        of_group: false,
    }
}
