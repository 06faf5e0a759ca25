//! The plan as stories: what is wanted, what the other server says, and each step that follows.

use std::collections::BTreeMap;

use proptest::prelude::*;
use reveille_core::model::{DomainName, Timestamp};

use super::plan::{BACKOFF_MS_MAX, BATCH_NAMES_MAX, CHECK_MS, LINGER_MS, REFUSED_IN_A_ROW_MAX, REFUSED_MS};
use super::wire;
use super::{Addresses, Note, Outcome, Publication, Row, Step};

const HOUR_MS: u64 = 3_600_000;
const NO_JITTER: u64 = 1_000;

fn name(text: &str) -> DomainName {
    format!("{text}.vm.test").parse().unwrap()
}

fn at(ms: u64) -> Timestamp {
    Timestamp::from_ms(ms)
}

fn address(last: u8) -> Addresses {
    Addresses { v4: Some([127, 64, 0, last].into()), v6: None, ttl_s: 5 }
}

/// A plan, the rows that are durable, and what the other server has.
struct Bench {
    plan: Publication,
    now: Timestamp,
    rows: BTreeMap<DomainName, Row>,
    serial: Option<u32>,
    there: BTreeMap<DomainName, Addresses>,
    there_serial: u32,
    /// Names that the other server does not take.
    forbidden: Vec<DomainName>,
    sent: Vec<Vec<String>>,
    checks: usize,
}

impl Bench {
    fn new(wanted: &[(&str, u8)]) -> Self {
        let mut bench = Self {
            plan: Publication::new(BTreeMap::new(), BTreeMap::new(), None, HOUR_MS, at(0), NO_JITTER),
            now: at(0),
            rows: BTreeMap::new(),
            serial: None,
            there: BTreeMap::new(),
            there_serial: 1,
            forbidden: Vec::new(),
            sent: Vec::new(),
            checks: 0,
        };
        bench.restart(wanted);
        bench
    }

    /// As after `kill -9`: only what is durable is known.
    fn restart(&mut self, wanted: &[(&str, u8)]) {
        let wanted = wanted.iter().map(|(text, last)| (name(text), address(*last))).collect();
        self.plan = Publication::new(wanted, self.rows.clone(), self.serial, HOUR_MS, self.now, NO_JITTER);
    }

    fn keep(&mut self, notes: Vec<Note>) {
        for note in notes {
            match note {
                Note::Put(name, row) => drop(self.rows.insert(name, row)),
                Note::Drop(name) => drop(self.rows.remove(&name)),
                Note::Serial(serial) => self.serial = Some(serial),
            }
        }
        self.plan.noted(Ok(()), self.now, NO_JITTER);
    }

    fn take(&mut self, batch: &super::Batch) -> Outcome {
        for (name, addresses) in batch {
            let noted = self.rows.get(name).map_or(addresses.is_none(), |row| !row.certain);
            assert!(noted, "sent before it was noted: {name}");
        }
        self.sent.push(batch.iter().map(|(name, _)| name.first_label().unwrap()).collect());
        if batch.iter().any(|(name, _)| self.forbidden.contains(name)) {
            return Outcome::Refused("REFUSED".into());
        }
        self.there_serial += 1;
        for (name, addresses) in batch {
            match addresses {
                Some(addresses) => self.there.insert(name.clone(), *addresses),
                None => self.there.remove(name),
            };
        }
        Outcome::Done
    }

    /// Goes on until there is only waiting, at most `steps` steps; gives until when.
    fn settle(&mut self, steps: usize) -> Timestamp {
        for _ in 0..steps {
            match self.plan.next(self.now) {
                Step::Note(notes) => self.keep(notes),
                Step::Send(batch) => {
                    let outcome = self.take(&batch);
                    self.plan.sent(outcome, false, self.now, NO_JITTER);
                }
                Step::Check => {
                    self.checks += 1;
                    self.plan.checked(Ok(Some(self.there_serial)), self.now, NO_JITTER);
                }
                Step::Wait(until) => return until,
            }
        }
        panic!("does not settle: {:?}", self.sent);
    }

    /// Lets time pass up to `until`, doing what is to be done on the way.
    fn run_until(&mut self, until: Timestamp) {
        loop {
            let next = self.settle(10_000);
            if next > until {
                self.now = until;
                return;
            }
            assert!(next > self.now, "waits for the past");
            self.now = next;
        }
    }

    fn in_step(&self, wanted: &[(&str, u8)]) {
        let wanted: BTreeMap<DomainName, Addresses> =
            wanted.iter().map(|(text, last)| (name(text), address(*last))).collect();
        assert_eq!(self.there, wanted);
        let known: BTreeMap<DomainName, Row> =
            wanted.into_iter().map(|(name, addresses)| (name, Row { addresses, certain: true })).collect();
        assert_eq!(self.rows, known);
        assert_eq!((self.plan.status().pending, self.plan.status().trouble), (0, None));
    }

    fn set(&mut self, text: &str, last: Option<u8>) {
        self.plan.set(name(text), last.map(address));
    }
}

#[test]
fn what_is_wanted_is_noted_then_sent_then_confirmed() {
    let mut bench = Bench::new(&[("a", 1), ("b", 2)]);
    assert_eq!(bench.plan.next(at(0)), Step::Check);
    bench.plan.checked(Ok(Some(7)), at(0), NO_JITTER);
    let doubtful = |last| Row { addresses: address(last), certain: false };
    let notes = vec![Note::Put(name("a"), doubtful(1)), Note::Put(name("b"), doubtful(2)), Note::Serial(7)];
    assert_eq!(bench.plan.next(at(0)), Step::Note(notes.clone()));
    assert_eq!(bench.plan.next(at(0)), Step::Note(notes.clone()), "given again until it is done");
    bench.keep(notes);
    let batch = vec![(name("a"), Some(address(1))), (name("b"), Some(address(2)))];
    assert_eq!(bench.plan.next(at(0)), Step::Send(batch.clone()));
    assert_eq!(bench.plan.status().pending, 2);
    let outcome = bench.take(&batch);
    bench.plan.sent(outcome, false, at(0), NO_JITTER);
    bench.settle(3);
    bench.in_step(&[("a", 1), ("b", 2)]);
    // Only what changed is sent, and a name that is gone is removed.
    bench.sent.clear();
    bench.set("a", Some(1));
    bench.settle(3);
    assert_eq!(bench.sent, [[""; 0]; 0]);
    bench.set("a", None);
    bench.set("b", Some(9));
    bench.set("c", Some(3));
    bench.settle(6);
    assert_eq!(bench.sent, [["a", "b", "c"]]);
    bench.in_step(&[("b", 9), ("c", 3)]);
}

#[test]
fn a_change_while_the_update_is_on_its_way_is_sent_next() {
    let mut bench = Bench::new(&[("a", 1)]);
    let batch = loop {
        match bench.plan.next(at(0)) {
            Step::Check => drop(bench.plan.checked(Ok(None), at(0), NO_JITTER)),
            Step::Note(notes) => bench.keep(notes),
            Step::Send(batch) => break batch,
            Step::Wait(_) => panic!("nothing to send"),
        }
    };
    bench.set("a", Some(2));
    bench.set("b", Some(3));
    let outcome = bench.take(&batch);
    bench.plan.sent(outcome, false, at(0), NO_JITTER);
    bench.settle(6);
    assert_eq!(bench.sent, [vec!["a"], vec!["a", "b"]]);
    bench.in_step(&[("a", 2), ("b", 3)]);
}

/// Killed at any step, with the answer lost or not: nothing is left behind there that nobody remembers.
#[test]
fn a_kill_at_any_step_leaves_no_orphan() {
    for killed_after in 0..12 {
        for answer_lost in [false, true] {
            let mut bench = Bench::new(&[("a", 1), ("b", 2)]);
            bench.settle(10);
            bench.set("b", None);
            bench.set("c", Some(3));
            for _ in 0..killed_after {
                match bench.plan.next(bench.now) {
                    Step::Note(notes) => bench.keep(notes),
                    Step::Check => drop(bench.plan.checked(Ok(None), bench.now, NO_JITTER)),
                    Step::Wait(_) => break,
                    Step::Send(batch) => {
                        let outcome = bench.take(&batch);
                        if answer_lost {
                            break;
                        }
                        bench.plan.sent(outcome, false, bench.now, NO_JITTER);
                    }
                }
            }
            bench.restart(&[("a", 4)]);
            bench.settle(10);
            bench.in_step(&[("a", 4)]);
        }
    }
}

#[test]
fn nothing_is_sent_that_cannot_be_noted() {
    let mut bench = Bench::new(&[("a", 1)]);
    bench.plan.checked(Ok(Some(1)), at(0), NO_JITTER);
    let mut now = at(0);
    for _ in 0..5 {
        let step = bench.plan.next(now);
        assert!(matches!(step, Step::Note(_)), "{step:?}");
        bench.plan.noted(Err("the disk is full".into()), now, NO_JITTER);
        let Step::Wait(until) = bench.plan.next(now) else { panic!("no pause") };
        now = until;
    }
    assert_eq!(bench.plan.status().trouble.unwrap().text, "the disk is full");
    bench.now = now;
    bench.settle(5);
    bench.in_step(&[("a", 1)]);
}

#[test]
fn a_server_that_is_away_is_asked_ever_more_seldom_and_everything_arrives_when_it_is_back() {
    let mut bench = Bench::new(&[("a", 1)]);
    let mut pauses = Vec::new();
    for round in 0..15u8 {
        bench.set("b", Some(round));
        assert_eq!(bench.plan.next(bench.now), Step::Check, "a cheap question first");
        bench.plan.checked(Err("it does not answer".into()), bench.now, NO_JITTER);
        let Step::Wait(until) = bench.plan.next(bench.now) else { panic!("no pause") };
        pauses.push(until.as_ms() - bench.now.as_ms());
        bench.now = until;
    }
    assert_eq!(pauses[..5], [1_000, 2_000, 4_000, 8_000, 16_000]);
    assert_eq!(pauses[9..], [BACKOFF_MS_MAX; 6]);
    bench.settle(6);
    bench.in_step(&[("a", 1), ("b", 14)]);
    // The next trouble begins with a short pause again.
    bench.plan.checked(Err("it does not answer".into()), bench.now, NO_JITTER);
    assert_eq!(bench.plan.next(bench.now), Step::Wait(bench.now.plus_ms(1_000)));
}

#[test]
fn one_name_that_is_refused_keeps_back_no_other() {
    let names: Vec<String> = (0..200).map(|number| format!("n{number:03}")).collect();
    let mut wanted: Vec<(&str, u8)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    let mut bench = Bench::new(&wanted);
    bench.forbidden = vec![name("n070"), name("n110")];
    bench.settle(1_000);
    assert_eq!(bench.there.len(), 198);
    assert!(bench.sent.len() < 60, "{} updates", bench.sent.len());
    let status = bench.plan.status();
    assert_eq!((status.pending, status.refused), (2, 2));
    assert_eq!(status.refused_names, [name("n070"), name("n110")]);
    assert!(status.trouble.is_some());
    // They are tried by themselves, ever more seldom, and arrive when they are let.
    bench.sent.clear();
    bench.run_until(bench.now.plus_ms(REFUSED_MS * 8));
    assert!((6..=8).contains(&bench.sent.len()), "{:?}", bench.sent);
    bench.forbidden.clear();
    bench.run_until(bench.now.plus_ms(HOUR_MS));
    wanted.sort_unstable();
    bench.in_step(&wanted);
}

#[test]
fn a_server_that_refuses_everything_is_left_alone() {
    let names: Vec<String> = (0..200).map(|number| format!("n{number:03}")).collect();
    let wanted: Vec<(&str, u8)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    let mut bench = Bench::new(&wanted);
    bench.forbidden = names.iter().map(|text| name(text)).collect();
    bench.settle(100);
    assert_eq!(bench.sent.len(), 1 + REFUSED_IN_A_ROW_MAX as usize, "one batch, then single names");
    bench.run_until(at(HOUR_MS / 2));
    assert!(bench.sent.len() < 25, "{} updates", bench.sent.len());
    bench.forbidden.clear();
    bench.run_until(bench.now.plus_ms(2 * HOUR_MS));
    bench.in_step(&wanted);
}

#[test]
fn a_server_that_takes_no_updates_is_not_asked_every_second() {
    let mut bench = Bench::new(&[("a", 1)]);
    let mut sent = 0;
    while bench.now < at(HOUR_MS) {
        match bench.plan.next(bench.now) {
            Step::Note(notes) => bench.keep(notes),
            // Its SOA it tells all the time.
            Step::Check => drop(bench.plan.checked(Ok(Some(1)), bench.now, NO_JITTER)),
            Step::Send(_) => {
                sent += 1;
                bench.plan.sent(Outcome::Failed("NOTAUTH".into()), false, bench.now, NO_JITTER);
            }
            Step::Wait(until) => bench.now = until,
        }
    }
    assert!((10..30).contains(&sent), "{sent}");
}

#[test]
fn a_serial_that_went_backwards_has_everything_sent_again() {
    let wanted = [("a", 1), ("b", 2)];
    let mut bench = Bench::new(&wanted);
    bench.run_until(at(10 * CHECK_MS));
    assert!((10..=13).contains(&bench.checks), "{} checks", bench.checks);
    let serial = bench.there_serial;
    assert_eq!(bench.serial, Some(serial), "seen after the last update, and durable");
    // Restarted from an old copy.
    bench.there.clear();
    bench.there_serial = serial - 1;
    bench.run_until(bench.now.plus_ms(2 * CHECK_MS));
    bench.in_step(&wanted);
    // The same while we were away.
    bench.there.clear();
    bench.there_serial = serial - 1;
    bench.restart(&wanted);
    bench.settle(10);
    bench.in_step(&wanted);
    // What it lost without a sign comes back with the next repetition.
    bench.there.clear();
    bench.run_until(bench.now.plus_ms(HOUR_MS + CHECK_MS));
    bench.in_step(&wanted);
}

#[test]
fn a_datagram_that_may_still_arrive_is_not_the_last_word() {
    let mut bench = Bench::new(&[("a", 1)]);
    let mut late = Vec::new();
    loop {
        match bench.plan.next(bench.now) {
            Step::Note(notes) => bench.keep(notes),
            Step::Check => drop(bench.plan.checked(Ok(None), bench.now, NO_JITTER)),
            Step::Wait(_) => break,
            Step::Send(batch) => {
                // The datagram is not answered, the same over TCP is.
                let lingers = late.is_empty();
                late.push(batch.clone());
                let outcome = bench.take(&batch);
                bench.plan.sent(outcome, lingers, bench.now, NO_JITTER);
            }
        }
    }
    assert_eq!(late.len(), 1, "no hurry");
    bench.now = bench.now.plus_ms(1_000);
    bench.set("a", None);
    bench.settle(5);
    assert!(bench.there.is_empty());
    assert!(bench.rows.contains_key(&name("a")), "not forgotten yet");
    // Now it arrives.
    bench.take(&late.remove(0));
    bench.run_until(bench.now.plus_ms(2 * LINGER_MS));
    bench.in_step(&[]);
}

proptest! {
    /// Whatever changes, fails, is refused for a while or lost in between: in the end both sides are in step.
    #[test]
    fn in_the_end_both_sides_are_in_step(
        events in prop::collection::vec((0u8..8, 0u8..12, 0u8..4, any::<bool>()), 0..120),
        first in prop::collection::vec(0u8..12, 0..8),
    ) {
        let label = |number: u8| format!("n{number}");
        let mut wanted: BTreeMap<String, u8> = first.iter().map(|number| (label(*number), 1)).collect();
        let list = |wanted: &BTreeMap<String, u8>| wanted.clone();
        let start = list(&wanted);
        let start: Vec<(&str, u8)> = start.iter().map(|(text, last)| (text.as_str(), *last)).collect();
        let mut bench = Bench::new(&start);
        for (event, number, last, lingers) in events {
            match event {
                0 | 1 => {
                    wanted.insert(label(number), last);
                    bench.set(&label(number), Some(last));
                }
                2 => {
                    wanted.remove(&label(number));
                    bench.set(&label(number), None);
                }
                3 => bench.forbidden = if lingers { vec![name(&label(number))] } else { Vec::new() },
                4 => {
                    let now = list(&wanted);
                    let now: Vec<(&str, u8)> = now.iter().map(|(text, last)| (text.as_str(), *last)).collect();
                    bench.restart(&now);
                }
                _ => match bench.plan.next(bench.now) {
                    Step::Note(notes) if number > 0 => bench.keep(notes),
                    Step::Note(_) => bench.plan.noted(Err("no room".into()), bench.now, NO_JITTER),
                    Step::Check if number > 0 => drop(bench.plan.checked(Ok(Some(bench.there_serial)), bench.now, 0)),
                    Step::Check => drop(bench.plan.checked(Err("away".into()), bench.now, 0)),
                    Step::Wait(until) => bench.now = until,
                    Step::Send(batch) => {
                        let outcome = if number == 0 { Outcome::Failed("away".into()) } else { bench.take(&batch) };
                        bench.plan.sent(outcome, lingers && last == 0, bench.now, 500);
                    }
                },
            }
        }
        bench.forbidden.clear();
        bench.run_until(bench.now.plus_ms(4 * HOUR_MS));
        let end: Vec<(&str, u8)> = wanted.iter().map(|(text, last)| (text.as_str(), *last)).collect();
        bench.in_step(&end);
    }
}

#[test]
fn the_largest_update_fits_into_a_message() {
    let label = "a".repeat(63);
    let zone: DomainName = "vm.test".parse().unwrap();
    let both = Addresses { v6: Some("::1".parse().unwrap()), ..address(1) };
    let batch: super::Batch = (0..BATCH_NAMES_MAX)
        .map(|number| {
            let text = format!("{number:050}.{label}.{label}.{}.vm.test", &label[..57]);
            (text.parse().unwrap(), Some(both))
        })
        .collect();
    let message = wire::update(1, &zone, &batch);
    assert!(message.len() < 65_535 - 400, "{} bytes", message.len());
    let read = crate::update::UpdateMessage::parse(&message).unwrap();
    assert_eq!((read.prerequisites.len(), read.edits.len()), (BATCH_NAMES_MAX, 4 * BATCH_NAMES_MAX));
    assert_eq!(read.edits[0].owner(), &batch[0].0);
}
