//! The lossy way to the slow loop: a ring of cells between one thread that answers and one that reads.
//!
//! A query takes one cell of 64 bytes, and further ones for its name where no counter tells it. The writer never
//! waits: without room the query is dropped and counted.

use std::net::{IpAddr, Ipv6Addr};

use reveille_core::model::Timestamp;

use super::{Observed, Sighting};
use crate::cells::{CELL_BYTES, Reader, WORDS, Writer, cells};
use crate::respond::Transport;
use crate::wire::Subnet;

/// Cells of one ring; a power of two. 128 KiB: a small part of a core's cache.
pub const CELLS_MAX: usize = 2_048;

/// Where beside the transport it stands whether its sender is proven.
const PROVEN_BIT: u32 = 7;

/// The end that writes.
#[derive(Debug)]
pub struct Producer(Writer);

/// The end that reads.
#[derive(Debug)]
pub struct Consumer(Reader);

/// Both ends of a new ring.
pub fn ring() -> (Producer, Consumer) {
    let (writer, reader) = cells(CELLS_MAX);
    (Producer(writer), Consumer(reader))
}

impl Producer {
    /// Hands a query over, or drops it. Visible to the reader after [`Producer::flush`].
    pub(crate) fn push(&mut self, seen: &Sighting<'_>) {
        let name = if seen.counter == 0 { seen.name } else { &[] };
        if self.0.has_room(1 + name.len().div_ceil(CELL_BYTES)) {
            self.0.put(head_words(seen, name.len()));
            self.0.put_bytes(name);
        }
    }

    /// Makes everything that was pushed visible to the reader; once a batch.
    pub(crate) fn flush(&self) {
        self.0.flush();
    }
}

impl Consumer {
    /// Takes out what is there, up to `max` queries.
    pub fn drain(&mut self, max: usize, mut each: impl FnMut(Observed)) {
        let readable = self.0.readable();
        let mut at = readable.start;
        for _ in 0..max {
            if at == readable.end {
                break;
            }
            let (mut seen, name_bytes) = observed(self.0.cell(at));
            at = self.0.bytes(at + 1, name_bytes, &mut seen.name);
            each(seen);
        }
        self.0.release(at);
    }

    /// Queries that did not fit since the start.
    pub fn dropped(&self) -> u64 {
        self.0.dropped()
    }
}

/// `counter | qtype | rcode`, `time | proven | transport | name length`, client, subnet's family and prefix, subnet, TTL.
fn head_words(seen: &Sighting<'_>, name_bytes: usize) -> [u64; WORDS] {
    let halves = |address: u128| {
        [address >> 64, address & u128::from(u64::MAX)].map(|half| u64::try_from(half).unwrap_or(0))
    };
    let client = match seen.client {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    };
    let (family, prefix, subnet) = seen.subnet.map_or((0, 0, 0), |subnet| subnet.parts());
    let [client_high, client_low] = halves(client);
    let [subnet_high, subnet_low] = halves(subnet);
    [
        u64::from(seen.counter) << 32 | u64::from(seen.qtype) << 16 | u64::from(seen.rcode.number()),
        seen.at.as_ms() << 16
            | u64::from(seen.transport.number() | u8::from(seen.proven) << PROVEN_BIT) << 8
            | name_bytes as u64,
        client_high,
        client_low,
        u64::from(family) << 8 | u64::from(prefix),
        subnet_high,
        subnet_low,
        // None is zero.
        seen.ttl_s.map_or(0, |ttl_s| u64::from(ttl_s) + 1),
    ]
}

/// The query whose head these words are, and how long its name is.
fn observed(words: [u64; WORDS]) -> (Observed, usize) {
    let [what, when, client_high, client_low, subnet, subnet_high, subnet_low, ttl] = words;
    let part = |word: u64, shift: u32| (word >> shift).to_le_bytes();
    let number = |bytes: [u8; 8]| u16::from_le_bytes([bytes[0], bytes[1]]);
    let whole = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
    let [family, prefix] = [part(subnet, 8)[0], part(subnet, 0)[0]];
    let seen = Observed {
        at: Timestamp::from_ms(when >> 16),
        counter: u32::try_from(what >> 32).unwrap_or(0),
        name: Vec::new(),
        qtype: number(part(what, 16)),
        rcode: number(part(what, 0)),
        transport: Transport::from_number(part(when, 8)[0] & !(1 << PROVEN_BIT)),
        proven: part(when, 8)[0] >> PROVEN_BIT == 1,
        client: Ipv6Addr::from_bits(whole(client_high, client_low)).to_canonical(),
        subnet: Subnet::from_parts(family, prefix, whole(subnet_high, subnet_low)),
        ttl_s: ttl.checked_sub(1).and_then(|ttl_s| u32::try_from(ttl_s).ok()),
    };
    (seen, usize::from(part(when, 0)[0]))
}

#[cfg(test)]
mod tests {
    use reveille_core::answer::Rcode;

    use super::*;

    fn sighting(counter: u32, name: &[u8]) -> Sighting<'_> {
        Sighting {
            at: Timestamp::from_ms(1_795_000_000_123),
            counter,
            name,
            qtype: 65_535,
            rcode: Rcode::BadVers,
            transport: Transport::Tcp,
            client: "2001:db8::7".parse().unwrap(),
            subnet: Subnet::from_parts(1, 24, 0xc000_0200_u128 << 96),
            ttl_s: counter.checked_sub(1),
            proven: counter % 2 == 1,
        }
    }

    fn drain(consumer: &mut Consumer) -> Vec<Observed> {
        let mut all = Vec::new();
        consumer.drain(usize::MAX, |seen| all.push(seen));
        all
    }

    #[test]
    fn what_goes_in_comes_out_and_the_rest_is_counted() {
        let (mut producer, mut consumer) = ring();
        let long = [7; 255];
        for round in 0..3_000u32 {
            let name = &long[..usize::try_from(round % 256).unwrap()];
            producer.push(&sighting(0, name));
            producer.push(&sighting(round + 1, name));
            assert!(drain(&mut consumer).is_empty(), "not visible before the flush");
            producer.flush();
            let seen = drain(&mut consumer);
            assert_eq!(seen.len(), 2);
            assert_eq!((seen[0].counter, seen[0].name.as_slice()), (0, name));
            assert_eq!((seen[1].counter, seen[1].name.as_slice()), (round + 1, &[][..]));
            assert_eq!((seen[0].ttl_s, seen[1].ttl_s), (None, Some(round)));
            assert_eq!((seen[0].proven, seen[1].proven), (false, round % 2 == 0));
            let first = &seen[0];
            assert_eq!(first.at, Timestamp::from_ms(1_795_000_000_123));
            assert_eq!((first.qtype, first.rcode, first.transport), (65_535, 16, Transport::Tcp));
            assert_eq!(first.client.to_string(), "2001:db8::7");
            assert_eq!(first.subnet.unwrap().to_string(), "192.0.2.0/24");
        }
        assert_eq!(consumer.dropped(), 0);
        for _ in 0..CELLS_MAX + 10 {
            producer.push(&sighting(1, &[]));
        }
        producer.flush();
        assert_eq!((drain(&mut consumer).len(), consumer.dropped()), (CELLS_MAX, 10));
        producer.push(&Sighting { client: "192.0.2.1".parse().unwrap(), subnet: None, ..sighting(1, &[]) });
        producer.flush();
        let seen = drain(&mut consumer);
        assert_eq!((seen[0].client.to_string(), seen[0].subnet), ("192.0.2.1".to_owned(), None));
    }

    #[test]
    fn nothing_is_torn_between_threads() {
        let (mut producer, mut consumer) = ring();
        let count = 200_000u32;
        let writer = std::thread::spawn(move || {
            for n in 1..=count {
                let name = n.to_be_bytes().repeat(20);
                producer.push(&Sighting { qtype: 1, ..sighting(if n % 2 == 0 { n } else { 0 }, &name) });
                producer.flush();
            }
            producer
        });
        let (mut seen, mut last) = (0u64, 0);
        loop {
            let over = writer.is_finished();
            consumer.drain(usize::MAX, |observed| {
                let n = match observed.counter {
                    0 => u32::from_be_bytes(observed.name[..4].try_into().unwrap()),
                    n => n,
                };
                assert!(n > last, "{n} after {last}");
                assert!(observed.counter != 0 || observed.name == n.to_be_bytes().repeat(20));
                last = n;
                seen += 1;
            });
            if over {
                break;
            }
        }
        assert_eq!(seen + consumer.dropped(), u64::from(count));
    }
}
