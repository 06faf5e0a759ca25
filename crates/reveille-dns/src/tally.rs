//! Counters of the query room. Each thread counts for itself; a snapshot sums them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use reveille_core::answer::Rcode;

use crate::respond::{Outcome, Transport};

/// Counters of one thread. On a cache line of its own, so that threads do not slow each other down.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Tally {
    queries: AtomicU64,
    general: AtomicU64,
    silent: AtomicU64,
    rcodes: [AtomicU64; Rcode::ALL.len()],
    truncated: AtomicU64,
    signatures_refused: AtomicU64,
    pub wakes_asked: AtomicU64,
    pub wakes_coalesced: AtomicU64,
    pub wakes_dropped: AtomicU64,
    pub held: AtomicU64,
    pub holds_refused: AtomicU64,
    pub updates: AtomicU64,
    pub updates_dropped: AtomicU64,
    pub socket_errors: AtomicU64,
    pub transfers_whole: AtomicU64,
    pub transfers_of_differences: AtomicU64,
    pub transfers_broken: AtomicU64,
    pub transfers_refused: AtomicU64,
    pub notifies_sent: AtomicU64,
    pub notifies_acknowledged: AtomicU64,
    pub notifies_refused: AtomicU64,
    pub connections: AtomicU64,
    pub connections_refused: AtomicU64,
    pub connections_timed_out: AtomicU64,
    pub handshakes_refused: AtomicU64,
    pub handshakes_failed: AtomicU64,
    pub requests_refused: AtomicU64,
}

/// What was counted since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Packets that came in.
    pub queries: u64,
    /// Those that went the general way; the others went the fast one.
    pub general: u64,
    /// Those that were not answered: too short, or answers themselves.
    pub silent: u64,
    /// Answers by response code, in the order of [`Rcode::ALL`].
    pub rcodes: [u64; Rcode::ALL.len()],
    /// Answers with TC.
    pub truncated: u64,
    /// Packets whose signature was not taken.
    pub signatures_refused: u64,
    /// Wakes that were asked for.
    pub wakes_asked: u64,
    /// Questions for a service that was asked for often enough already in the same view.
    pub wakes_coalesced: u64,
    /// Wakes that could not be asked for because the channel was full.
    pub wakes_dropped: u64,
    /// Questions that were held.
    pub held: u64,
    /// Questions that were answered at once because too many were held.
    pub holds_refused: u64,
    /// Updates that were passed on to be judged.
    pub updates: u64,
    /// Updates that were not made because too many waited.
    pub updates_dropped: u64,
    /// Errors of sockets: packets that could not be received or sent.
    pub socket_errors: u64,
    /// Zones that were transferred in full.
    pub transfers_whole: u64,
    /// Zones of which the differences were transferred.
    pub transfers_of_differences: u64,
    /// Zone transfers that broke off: the client left, or was too slow.
    pub transfers_broken: u64,
    /// Zone transfers that had to wait too long for a place, or came over TLS 1.2.
    pub transfers_refused: u64,
    /// NOTIFY messages that were sent.
    pub notifies_sent: u64,
    /// Those that a secondary acknowledged.
    pub notifies_acknowledged: u64,
    /// Answers to them that were refusals, or proved nothing.
    pub notifies_refused: u64,
    /// Connections that were taken: TCP, TLS and HTTPS.
    pub connections: u64,
    /// Connections that were closed at once because there were too many.
    pub connections_refused: u64,
    /// Connections that were closed because the client was idle or too slow.
    pub connections_timed_out: u64,
    /// TLS handshakes that were not begun because too many were under way.
    pub handshakes_refused: u64,
    /// TLS handshakes that failed or took too long.
    pub handshakes_failed: u64,
    /// HTTP requests that were answered with an error of HTTP.
    pub requests_refused: u64,
}

impl Counts {
    /// Answers with that response code.
    pub fn of(&self, rcode: Rcode) -> u64 {
        self.rcodes[index(rcode)]
    }
}

/// What one thread counts in one batch, before it adds that to its [`Tally`].
#[derive(Debug, Default)]
pub(crate) struct BatchTally {
    queries: u64,
    general: u64,
    silent: u64,
    rcodes: [u64; Rcode::ALL.len()],
    truncated: u64,
    signatures_refused: u64,
}

impl BatchTally {
    /// Counts a packet that was answered.
    pub fn answered(&mut self, rcode: Rcode, truncated: bool) {
        self.queries += 1;
        self.rcodes[index(rcode)] += 1;
        self.truncated += u64::from(truncated);
    }

    /// Counts a packet that is not answered.
    pub fn dropped(&mut self) {
        self.queries += 1;
        self.silent += 1;
    }

    /// Counts a packet that went the general way, and what came of it.
    pub fn query(&mut self, outcome: &Outcome<'_>) {
        self.general += 1;
        self.signatures_refused += u64::from(outcome.signature_refused);
        match outcome.written {
            None => self.dropped(),
            Some(written) => self.answered(written.rcode, written.truncated),
        }
    }
}

impl Tally {
    /// Adds a batch. Only the thread whose tally it is may do so.
    pub fn add(&self, batch: &BatchTally) {
        // Without the bus lock of a fetch_add: nobody else writes these.
        let add = |own: &AtomicU64, more: u64| {
            if more > 0 {
                own.store(own.load(Relaxed) + more, Relaxed);
            }
        };
        add(&self.queries, batch.queries);
        add(&self.general, batch.general);
        add(&self.silent, batch.silent);
        for (own, &more) in self.rcodes.iter().zip(&batch.rcodes) {
            add(own, more);
        }
        add(&self.truncated, batch.truncated);
        add(&self.signatures_refused, batch.signatures_refused);
    }

    /// Counts a packet that went the general way, and what came of it.
    pub fn query(&self, outcome: &Outcome<'_>) {
        bump(&self.queries);
        bump(&self.general);
        if outcome.signature_refused {
            bump(&self.signatures_refused);
        }
        match outcome.written {
            // What was written is not sent.
            Some(_) if outcome.transfer.is_some() => bump(&self.rcodes[index(Rcode::NoError)]),
            None => bump(&self.silent),
            Some(written) => {
                bump(&self.rcodes[index(written.rcode)]);
                if written.truncated {
                    bump(&self.truncated);
                }
            }
        }
    }

    /// Adds what this thread has counted.
    pub fn add_to(&self, sum: &mut Counts) {
        let add = |total: &mut u64, own: &AtomicU64| *total += own.load(Relaxed);
        add(&mut sum.queries, &self.queries);
        add(&mut sum.general, &self.general);
        add(&mut sum.silent, &self.silent);
        for (total, own) in sum.rcodes.iter_mut().zip(&self.rcodes) {
            add(total, own);
        }
        add(&mut sum.truncated, &self.truncated);
        add(&mut sum.signatures_refused, &self.signatures_refused);
        add(&mut sum.wakes_asked, &self.wakes_asked);
        add(&mut sum.wakes_coalesced, &self.wakes_coalesced);
        add(&mut sum.wakes_dropped, &self.wakes_dropped);
        add(&mut sum.held, &self.held);
        add(&mut sum.holds_refused, &self.holds_refused);
        add(&mut sum.updates, &self.updates);
        add(&mut sum.updates_dropped, &self.updates_dropped);
        add(&mut sum.socket_errors, &self.socket_errors);
        add(&mut sum.transfers_whole, &self.transfers_whole);
        add(&mut sum.transfers_of_differences, &self.transfers_of_differences);
        add(&mut sum.transfers_broken, &self.transfers_broken);
        add(&mut sum.transfers_refused, &self.transfers_refused);
        add(&mut sum.notifies_sent, &self.notifies_sent);
        add(&mut sum.notifies_acknowledged, &self.notifies_acknowledged);
        add(&mut sum.notifies_refused, &self.notifies_refused);
        add(&mut sum.connections, &self.connections);
        add(&mut sum.connections_refused, &self.connections_refused);
        add(&mut sum.connections_timed_out, &self.connections_timed_out);
        add(&mut sum.handshakes_refused, &self.handshakes_refused);
        add(&mut sum.handshakes_failed, &self.handshakes_failed);
        add(&mut sum.requests_refused, &self.requests_refused);
    }
}

/// The counters of all threads and tasks of a server, by how queries came to them. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Tallies(Arc<Mutex<Vec<Counted>>>);

/// What is counted in one tally: queries that come one way, or no queries (`None`) but what the server does by itself.
type Counted = (Option<Transport>, Arc<Tally>);

impl Tallies {
    /// A new tally among them.
    pub(crate) fn begin(&self, transport: Option<Transport>) -> Arc<Tally> {
        let tally = Arc::new(Tally::default());
        self.list().push((transport, Arc::clone(&tally)));
        tally
    }

    /// What was counted since the start.
    pub fn sum(&self) -> Counts {
        self.sum_of(|_| true)
    }

    /// What was counted since the start of queries that came this way.
    pub fn of(&self, transport: Transport) -> Counts {
        self.sum_of(|of| of == Some(transport))
    }

    fn sum_of(&self, of: impl Fn(Option<Transport>) -> bool) -> Counts {
        let mut sum = Counts::default();
        self.list()
            .iter()
            .filter(|(transport, _)| of(*transport))
            .for_each(|(_, tally)| tally.add_to(&mut sum));
        sum
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<Counted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds one.
pub(crate) fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

const fn index(rcode: Rcode) -> usize {
    match rcode {
        Rcode::NoError => 0,
        Rcode::FormErr => 1,
        Rcode::ServFail => 2,
        Rcode::NxDomain => 3,
        Rcode::NotImp => 4,
        Rcode::Refused => 5,
        Rcode::YxDomain => 6,
        Rcode::YxRrset => 7,
        Rcode::NxRrset => 8,
        Rcode::NotAuth => 9,
        Rcode::NotZone => 10,
        Rcode::BadVers => 11,
        Rcode::BadCookie => 12,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told_by_transport_and_as_a_whole() {
        let tallies = Tallies::default();
        let (own, udp, other) =
            (tallies.begin(None), tallies.begin(Some(Transport::Udp)), tallies.begin(Some(Transport::Udp)));
        let tcp = tallies.begin(Some(Transport::Tcp));
        let mut batch = BatchTally::default();
        batch.answered(Rcode::NxDomain, true);
        batch.answered(Rcode::NoError, false);
        batch.query(&Outcome::default());
        udp.add(&batch);
        other.add(&batch);
        tcp.query(&Outcome::default());
        bump(&own.notifies_sent);
        let udp = tallies.of(Transport::Udp);
        assert_eq!((udp.queries, udp.general, udp.silent, udp.truncated), (6, 2, 2, 2));
        assert_eq!((udp.of(Rcode::NxDomain), udp.notifies_sent), (2, 0));
        assert_eq!((tallies.of(Transport::Tcp).queries, tallies.of(Transport::Tls).queries), (1, 0));
        assert_eq!((tallies.sum().queries, tallies.sum().general, tallies.sum().notifies_sent), (7, 3, 1));
    }

    #[test]
    fn every_code_has_its_own_counter() {
        for (place, rcode) in Rcode::ALL.into_iter().enumerate() {
            assert_eq!(index(rcode), place);
        }
    }
}
