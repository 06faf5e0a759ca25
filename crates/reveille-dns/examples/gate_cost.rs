//! What the gate costs: nanoseconds for each call. `cargo run --release -p reveille-dns --example gate_cost`
//!
//! Timings say something only relative to each other, and on a machine that does nothing else.
#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "a measurement")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use reveille_core::answer::NetworkError;
use reveille_core::model::Timestamp;
use reveille_dns::Transport;
use reveille_dns::limit::{
    Action, Arrival, Client, CookieSecrets, Gate, GateConfig, GateTally, Judge, Kind, Rule, Secret, Writers,
};
use reveille_dns::wire::Cookie;

const START: Timestamp = Timestamp::from_ms(1_800_000_000_000);
const ROUNDS: u32 = 5;
const CALLS: u32 = 4_000_000;
const BATCH: u32 = 64;

/// The least of some rounds, in ns for each call.
fn cost(what: &str, mut round: impl FnMut()) {
    let mut least = f64::MAX;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        round();
        least = least.min(begun.elapsed().as_nanos() as f64 / f64::from(CALLS));
    }
    println!("{least:7.1} ns  {what}");
}

/// Who asks: so many client networks in turn, or all addresses in no order.
#[derive(Clone, Copy)]
enum Askers {
    Networks(u32),
    All,
}

struct Bench {
    gate: Gate,
    config: GateConfig,
    tally: std::sync::Arc<GateTally>,
    at: Timestamp,
}

impl Bench {
    /// A round of batches, 512 questions in a millisecond; `ask` gets each question with its address.
    fn batches(&mut self, askers: Askers, mut ask: impl FnMut(&Judge<'_>, u32)) {
        for batch in 0..CALLS / BATCH {
            self.at = self.at.plus_ms(u64::from(batch.is_multiple_of(8)));
            let judge = self.gate.judge(self.at, &self.tally);
            for number in batch * BATCH..(batch + 1) * BATCH {
                ask(
                    &judge,
                    match askers {
                        Askers::Networks(count) => (number % count) << 8,
                        Askers::All => number.wrapping_mul(0x9e37_79b1),
                    },
                );
            }
        }
    }

    fn answers(&mut self) {
        cost("judge() for a batch of 64, for each question", || {
            self.batches(Askers::All, |_, address| _ = black_box(address));
        });
        for count in [1, 100, 10_000, 100_000] {
            let askers = Askers::Networks(count);
            cost(&format!("arrive, {count} clients"), || {
                self.batches(askers, |judge, address| _ = black_box(arrive(judge, address)));
            });
            cost(&format!("arrive + rate, {count} clients"), || {
                self.batches(askers, |judge, address| {
                    black_box(judge.rate(&arrive(judge, address), Kind::Positive));
                });
            });
        }
        cost("arrive + rate, flood from all addresses", || {
            self.batches(Askers::All, |judge, address| {
                black_box(judge.rate(&arrive(judge, address), Kind::NxDomain));
            });
        });
        let mut clients: Vec<Client> = Vec::new();
        cost("the same, touched for the batch first", || {
            self.batches(Askers::All, |judge, address| {
                let client = arrive(judge, address);
                judge.touch(&client);
                clients.push(client);
                if clients.len() == 64 {
                    for client in clients.drain(..) {
                        black_box(judge.rate(&client, Kind::NxDomain));
                    }
                }
            });
        });
    }

    fn wakes(&mut self) {
        cost("arrive + wake, flood over the zone's budget", || {
            self.batches(Askers::All, |judge, address| {
                black_box(judge.wake(&arrive(judge, address), 0));
            });
        });
    }

    fn lists(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        for rules in [1u8, 16, 255] {
            let rule = |number| {
                let network = vec![format!("10.{number}.0.0/16").parse()?];
                Ok(Rule { network, ..Rule::all(Action::NoWake) })
            };
            self.config.rule = (0..rules).map(rule).collect::<Result<_, NetworkError>>()?;
            self.gate.take(self.gate.prepare(&self.config, &[], self.at)?);
            cost(&format!("arrive, {rules} rules"), || {
                self.batches(Askers::All, |judge, address| _ = black_box(arrive(judge, address)));
            });
        }
        Ok(())
    }
}

fn arrive(judge: &Judge<'_>, address: u32) -> Client {
    let peer = IpAddr::from(Ipv4Addr::from_bits(address));
    let transport = Transport::Udp;
    judge.arrive(&Arrival { peer, transport, cookie: None, subnet: None, qtype: 1, zone: Some(0) })
}

fn cookies() {
    let secrets = CookieSecrets::new(&Secret::new([1; 16]), START).rotated(&Secret::new([2; 16]), START);
    let peer = IpAddr::from(Ipv4Addr::LOCALHOST);
    let Some(fresh) = Cookie::parse(&[7; 8]) else { return };
    let status = secrets.check(Some(&fresh), peer, START);
    let option = secrets.answer(status, Some(&fresh), peer, START);
    let Some(good) = option.and_then(|option| Cookie::parse(&option)) else { return };
    cost("a cookie is checked", || {
        for _ in 0..CALLS {
            black_box(secrets.check(black_box(Some(&good)), peer, START));
        }
    });
    cost("a cookie is made", || {
        for _ in 0..CALLS {
            black_box(secrets.server_cookie(black_box(fresh.client()), peer, START));
        }
    });
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = GateConfig::default();
    let gate = Gate::new(&config, &["vm.test".parse()?], START)?;
    let tally = gate.tally(Writers::One);
    let mut bench = Bench { gate, config, tally, at: START };
    bench.answers();
    bench.wakes();
    bench.lists()?;
    cookies();
    Ok(())
}
