//! The thread that reads the rings: at a bounded pace, and rarely while nobody asks.

use std::collections::BTreeMap;
use std::hash::RandomState;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, park_timeout};
use std::time::Duration;

use super::Hear;
use super::aggregate::{Aggregate, Observations, ServiceQueries};
use super::crowd::Crowd;
use super::ring::{CELLS_MAX, Consumer};
use super::volume::Correction;
use crate::server::Clock;

/// Queries that are taken from one ring at a look: as many as it has room for. What comes faster than that is a sample.
const TAKEN_MAX: usize = CELLS_MAX;
/// Pause after a look that found something.
const PAUSE: Duration = Duration::from_millis(100);
/// Pause after one that did not.
const IDLE_PAUSE: Duration = Duration::from_millis(1_000);

/// Takes in what a server's threads have observed. Dropped, it stops.
pub struct Observer {
    aggregate: Arc<Mutex<Aggregate>>,
    clock: Clock,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer").finish_non_exhaustive()
    }
}

struct Reader {
    rings: Vec<Consumer>,
    aggregate: Arc<Mutex<Aggregate>>,
    hear: Option<Hear>,
    clock: Clock,
    stop: Arc<AtomicBool>,
}

impl Observer {
    /// Begins to read these rings, by a thread of its own.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(rings: Vec<Consumer>, clock: Clock) -> io::Result<Self> {
        Self::start_heard(rings, clock, None)
    }

    /// The same, with somebody who hears of each query.
    ///
    /// # Errors
    /// As above.
    pub fn start_heard(rings: Vec<Consumer>, clock: Clock, hear: Option<Hear>) -> io::Result<Self> {
        let aggregate = Arc::new(Mutex::new(Aggregate::new(RandomState::new(), clock())));
        let stop = Arc::new(AtomicBool::new(false));
        let reader = Reader {
            rings,
            aggregate: Arc::clone(&aggregate),
            hear,
            clock: Arc::clone(&clock),
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::Builder::new().name("dns-observe".to_owned()).spawn(|| reader.run())?;
        Ok(Self { aggregate, clock, stop, thread: Some(thread) })
    }

    /// What is known of all queries of late. Waits for a look that is under way, some milliseconds at most.
    pub fn observations(&self) -> Observations {
        lock(&self.aggregate).observations()
    }

    /// What is known of the questions for the service with that counter.
    pub fn service(&self, counter: u32) -> ServiceQueries {
        lock(&self.aggregate).service(counter, (self.clock)())
    }

    /// What queries for the service with that counter stand for, with those put back that caches answered.
    pub fn correction(&self, counter: u32) -> Option<Correction> {
        lock(&self.aggregate).correction(counter, (self.clock)())
    }

    /// The same of all services of which it is known, by their counters.
    pub fn corrections(&self) -> BTreeMap<u32, Correction> {
        lock(&self.aggregate).corrections((self.clock)())
    }

    /// Who asks in this minute for the services with these counters, as far as they are asked for much.
    pub fn crowds(&self, counters: impl Iterator<Item = u32>) -> BTreeMap<u32, Crowd> {
        lock(&self.aggregate).crowds(counters)
    }

    /// A minute begins: who asked in the one before is forgotten.
    pub fn begin_minute(&self) {
        lock(&self.aggregate).begin_minute();
    }

    /// The counter is given to another service: what was seen of the one before says nothing of it.
    pub fn forget(&self, counter: u32) {
        lock(&self.aggregate).forget(counter);
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic of the thread was printed when it happened.
            let _ = thread.join();
        }
    }
}

impl Reader {
    fn run(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            let taken = self.look();
            park_timeout(if taken > 0 { PAUSE } else { IDLE_PAUSE });
        }
    }

    /// Takes in what is there; gives how much that was.
    fn look(&mut self) -> usize {
        let mut taken = 0;
        for ring in &mut self.rings {
            // Locked anew for each, so that nobody who asks waits for all of them.
            let mut aggregate = lock(&self.aggregate);
            ring.drain(TAKEN_MAX, |seen| {
                taken += 1;
                if let Some(hear) = &mut self.hear {
                    hear(&seen);
                }
                aggregate.take(seen);
            });
        }
        let dropped = self.rings.iter().map(Consumer::dropped).sum();
        lock(&self.aggregate).look(dropped, (self.clock)());
        taken
    }
}

fn lock(aggregate: &Mutex<Aggregate>) -> MutexGuard<'_, Aggregate> {
    // A panic in between may have left counts that are wrong, which is better than none.
    aggregate.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use reveille_core::answer::Rcode;
    use reveille_core::model::Timestamp;

    use super::*;
    use crate::observe::{Sighting, ring};
    use crate::respond::Transport;

    #[test]
    fn what_threads_saw_is_taken_in_and_what_did_not_fit_is_told() {
        let now = Timestamp::from_ms(1_795_000_000_000);
        let (mut first, first_end) = ring();
        let (mut second, second_end) = ring();
        let sighting = Sighting {
            at: now,
            counter: 3,
            name: &[],
            qtype: 1,
            rcode: Rcode::NoError,
            transport: Transport::Udp,
            client: "192.0.2.7".parse().unwrap(),
            subnet: None,
            ttl_s: Some(60),
            proven: false,
        };
        (0..CELLS_MAX + 7).for_each(|_| first.push(&sighting));
        second.push(&Sighting { qtype: 28, transport: Transport::Tcp, ..sighting });
        first.flush();
        second.flush();
        let (heard, hearing) = std::sync::mpsc::channel();
        let hear: Hear = Box::new(move |seen| heard.send((seen.qtype, seen.client)).unwrap());
        let clock: Clock = Arc::new(move || now);
        let observer = Observer::start_heard(vec![first_end, second_end], clock, Some(hear)).unwrap();
        let limit = Instant::now() + Duration::from_secs(20);
        while observer.observations().queries <= CELLS_MAX as u64 || observer.observations().dropped == 0 {
            assert!(Instant::now() < limit, "{:?}", observer.observations());
            std::thread::yield_now();
        }
        let seen = observer.observations();
        assert_eq!((seen.queries, seen.dropped, seen.unique_clients), (CELLS_MAX as u64 + 1, 7, 1));
        let service = observer.service(3);
        assert_eq!((service.queries, service.is_complete), (CELLS_MAX as u64 + 1, false));
        assert_eq!(service.by_type["AAAA"], 1);
        // Ends at once, and not after the pause.
        drop(observer);
        // Who wants to hear of each has heard of those that were taken in, once.
        let heard: Vec<_> = hearing.iter().collect();
        assert_eq!(heard.len(), CELLS_MAX + 1);
        assert_eq!(heard.iter().filter(|seen| **seen == (28, sighting.client)).count(), 1);
    }
}
