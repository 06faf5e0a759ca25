//! Measures the state database in a directory of its choice: one durable commit, a burst, and reopening.
//!
//! `cargo run --release -p reveille-store --example commit -- DIR [SERVICES]`

use std::path::PathBuf;
use std::time::{Duration, Instant};

use reveille_core::decide::{Action, Decision, Reason};
use reveille_core::model::{DomainName, Instance, InstanceId, Rung, Stage, Timestamp, Trigger, WakeRecord};
use reveille_store::{Change, DECISIONS_MAX, Store, StoredDecision, WAKES_MAX, WriteError};

type Failed = Box<dyn std::error::Error>;

fn main() -> Result<(), Failed> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("which directory?")?);
    let services: u64 = args.next().map_or(Ok(10), |count| count.parse())?;
    let (store, _) = Store::open(&dir)?;
    fill(&store, services)?;
    println!("{services} services with full history: {} MiB", std::fs::metadata(store.path())?.len() >> 20);

    let mut one: Vec<Duration> = Vec::new();
    for step in 0..500 {
        let begun = Instant::now();
        store.write(vec![row(step % services + 1)?]).wait()?;
        one.push(begun.elapsed());
    }
    one.sort_unstable();
    println!("one commit: p50 {:?}, p99 {:?}", one[one.len() / 2], one[one.len() * 99 / 100]);

    let begun = Instant::now();
    let acks: Vec<_> =
        (0..2_000).map(|step| row(step % services + 1).map(|row| store.write(vec![row]))).collect();
    for ack in acks {
        ack?.wait()?;
    }
    println!("2,000 writes at once: {:?}", begun.elapsed());

    let begun = Instant::now();
    drop(store);
    let closed = begun.elapsed();
    let begun = Instant::now();
    let _store = Store::open(&dir)?;
    println!("closed in {closed:?}, opened and verified in {:?}", begun.elapsed());
    Ok(())
}

fn row(id: u64) -> Result<Change, Failed> {
    Ok(Change::PutInstance(Box::new(Instance::new(InstanceId(id), name(id)?, Timestamp::from_ms(1)))))
}

fn name(id: u64) -> Result<DomainName, Failed> {
    Ok(format!("service-{id}.vm.test").parse()?)
}

fn fill(store: &Store, services: u64) -> Result<(), Failed> {
    for id in 1..=services {
        let mut changes = Vec::new();
        for at in 0..WAKES_MAX as u64 {
            changes.push(Change::AddWake(Box::new(WakeRecord {
                service: name(id)?,
                instance: InstanceId(id),
                trigger: Trigger::Operator,
                asks: 1,
                from: Rung::Local,
                at: Timestamp::from_ms(at),
                stages_us: Stage::ALL.into_iter().map(|stage| (stage, 123_456)).collect(),
                outcome: None,
            })));
        }
        for at in 0..DECISIONS_MAX as u64 {
            let decision = Decision {
                service: name(id)?,
                instance: InstanceId(id),
                action: Action::Restore { from: Rung::Armed, keep: false },
                reason: Reason::Asked { trigger: Trigger::Operator, asks: 2 },
            };
            changes
                .push(Change::AddDecision(Box::new(StoredDecision { at: Timestamp::from_ms(at), decision })));
        }
        let written: Result<(), WriteError> = store.write(changes).wait();
        written?;
    }
    Ok(())
}
