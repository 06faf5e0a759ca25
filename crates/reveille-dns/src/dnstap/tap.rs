//! What a thread that answers hands over for dnstap: messages as they came and went, through a ring of fixed size.
//!
//! A message takes one cell of 64 bytes, and as many more as it is long. While no collector is there the ring is closed:
//! nothing is written to it, and what would have been is counted.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use reveille_core::model::Timestamp;

use crate::cells::{CELL_BYTES, Reader, WORDS, Writer, cells};
use crate::respond::Transport;

/// Length of a message's header (RFC 1035 §4.1.1); what is shorter is no message.
const HEADER_BYTES: usize = 12;
/// QR, in its third byte.
const IS_RESPONSE: u8 = 0x80;
/// Longest message: as long as its length may say (RFC 1035 §4.2.2).
const MESSAGE_BYTES_MAX: usize = 65_535;

/// A message that came or went. Whether it was a query its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tapped {
    pub at: Timestamp,
    pub transport: Transport,
    /// Who asked.
    pub client: SocketAddr,
    /// Who was asked, if that is known.
    pub own: Option<SocketAddr>,
}

/// The end that a thread writes to.
#[derive(Debug)]
pub(crate) struct TapWriter {
    cells: Writer,
    responses: bool,
}

/// The end that is read.
#[derive(Debug)]
pub(crate) struct TapReader(Reader);

/// What tasks share that answer one after another.
pub(crate) type SharedTap = Arc<Mutex<TapWriter>>;

/// Both ends of a new ring of so many bytes at least, closed. Answers pass only if `responses`.
pub(crate) fn tap(bytes: usize, responses: bool) -> (TapWriter, TapReader) {
    let (writer, reader) = cells(bytes.div_ceil(CELL_BYTES));
    reader.set_closed(true);
    (TapWriter { cells: writer, responses }, TapReader(reader))
}

impl TapWriter {
    /// Whether answers are wanted as well.
    pub fn wants_responses(&self) -> bool {
        self.responses
    }

    /// Hands a query over, or drops it. Nothing if it is none. Visible after [`TapWriter::flush`].
    pub fn query(&mut self, tapped: &Tapped, message: &[u8]) {
        if message.get(2).is_some_and(|flags| flags & IS_RESPONSE == 0) {
            self.push(tapped, message);
        }
    }

    /// Hands an answer over, if answers are wanted, or drops it. Visible after [`TapWriter::flush`].
    pub fn response(&mut self, tapped: &Tapped, message: &[u8]) {
        if self.responses {
            self.push(tapped, message);
        }
    }

    /// Makes everything visible to the reader; once a batch.
    pub fn flush(&self) {
        self.cells.flush();
    }

    fn push(&mut self, tapped: &Tapped, message: &[u8]) {
        if !(HEADER_BYTES..=MESSAGE_BYTES_MAX).contains(&message.len()) {
            return;
        }
        let cells = 1 + message.len().div_ceil(CELL_BYTES);
        if self.cells.is_wanted() && self.cells.has_room(cells) {
            self.cells.put(words(tapped, message.len()));
            self.cells.put_bytes(message);
        }
    }
}

/// Does something with a tap that is shared, and makes it visible.
pub(crate) fn with_shared(tap: &SharedTap, write: impl FnOnce(&mut TapWriter)) {
    let mut tap = tap.lock().unwrap_or_else(PoisonError::into_inner);
    write(&mut tap);
    tap.flush();
}

impl TapReader {
    /// From now on everything is wanted, or nothing.
    pub fn set_open(&self, open: bool) {
        self.0.set_closed(!open);
    }

    /// Gives each message that is there to `each`, in `message`, until that wants no more; gives how many there were.
    pub fn drain(&self, message: &mut Vec<u8>, mut each: impl FnMut(&Tapped, &mut Vec<u8>) -> bool) -> u64 {
        let readable = self.0.readable();
        let (mut at, mut count) = (readable.start, 0);
        while at != readable.end {
            let (tapped, length) = tapped(self.0.cell(at));
            message.clear();
            at = self.0.bytes(at + 1, length, message);
            count += 1;
            if !each(&tapped, message) {
                break;
            }
        }
        self.0.release(at);
        count
    }

    /// Forgets what is there; gives how many messages that were.
    pub fn discard(&self) -> u64 {
        let readable = self.0.readable();
        let (mut at, mut count) = (readable.start, 0);
        while at != readable.end {
            let (_, length) = tapped(self.0.cell(at));
            at += 1 + length.div_ceil(CELL_BYTES);
            count += 1;
        }
        self.0.release(at);
        count
    }

    /// Messages that did not fit, or came while nothing was wanted, since the start.
    pub fn dropped(&self) -> u64 {
        self.0.dropped()
    }
}

/// `time | transport | own address is known`, `length | client's port | own port`, client, own address.
fn words(tapped: &Tapped, length: usize) -> [u64; WORDS] {
    let halves = |address: IpAddr| {
        let bits = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
            IpAddr::V6(address) => address.to_bits(),
        };
        [bits >> 64, bits & u128::from(u64::MAX)].map(|half| u64::try_from(half).unwrap_or(0))
    };
    let own = tapped.own.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
    let [client_high, client_low] = halves(tapped.client.ip());
    let [own_high, own_low] = halves(own.ip());
    [
        tapped.at.as_ms() << 16 | u64::from(tapped.transport.number()) << 8 | u64::from(tapped.own.is_some()),
        (length as u64) << 32 | u64::from(tapped.client.port()) << 16 | u64::from(own.port()),
        client_high,
        client_low,
        own_high,
        own_low,
        0,
        0,
    ]
}

/// What these words say, and how long the message behind them is.
fn tapped(words: [u64; WORDS]) -> (Tapped, usize) {
    let [when, ports, client_high, client_low, own_high, own_low, ..] = words;
    let address =
        |high: u64, low: u64| Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low)).to_canonical();
    let port = |shift: u32| {
        let [low, high, ..] = (ports >> shift).to_le_bytes();
        u16::from_le_bytes([low, high])
    };
    let [known, transport, ..] = when.to_le_bytes();
    let own = SocketAddr::new(address(own_high, own_low), port(0));
    let tapped = Tapped {
        at: Timestamp::from_ms(when >> 16),
        transport: Transport::from_number(transport),
        client: SocketAddr::new(address(client_high, client_low), port(16)),
        own: (known != 0).then_some(own),
    };
    (tapped, usize::try_from(ports >> 32).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(n: u16) -> Tapped {
        Tapped {
            at: Timestamp::from_ms(1_795_000_000_123),
            transport: Transport::ALL[usize::from(n % 4)],
            client: SocketAddr::new("2001:db8::7".parse().unwrap(), n),
            own: n.is_multiple_of(2).then(|| "192.0.2.53:53".parse().unwrap()),
        }
    }

    fn drained(reader: &TapReader, max: usize) -> Vec<(Tapped, Vec<u8>)> {
        let mut all = Vec::new();
        reader.drain(&mut Vec::new(), |tapped, message| {
            all.push((*tapped, message.clone()));
            all.len() < max
        });
        all
    }

    #[test]
    fn messages_pass_while_somebody_wants_them_and_all_others_are_counted() {
        let (mut writer, reader) = tap(1 << 17, true);
        let query = [&[1; 12][..], &[7; 300]].concat();
        writer.query(&of(1), &query);
        writer.flush();
        assert_eq!((drained(&reader, 9).len(), reader.dropped()), (0, 1), "closed until somebody is there");
        reader.set_open(true);
        for n in 0..5_000u16 {
            let message = &query[..12 + usize::from(n) % 301];
            writer.query(&of(n), message);
            writer.response(&of(n), message);
            writer.flush();
            let seen = drained(&reader, 9);
            assert_eq!(seen, [(of(n), message.to_vec()), (of(n), message.to_vec())]);
        }
        // 2,048 cells, 6 for each.
        for n in 0..400 {
            writer.query(&of(n), &query);
        }
        writer.flush();
        assert_eq!(drained(&reader, 100).len(), 100);
        assert_eq!((reader.discard(), reader.dropped()), (241, 60));
        // What is no query is not taken for one; nor for something that was dropped.
        writer.query(&of(1), &[IS_RESPONSE; 12]);
        writer.query(&of(1), &query[..11]);
        writer.flush();
        assert_eq!((drained(&reader, 9).len(), reader.dropped()), (0, 60));
        let (mut writer, reader) = tap(1 << 17, false);
        reader.set_open(true);
        writer.response(&of(1), &query);
        writer.flush();
        assert_eq!((drained(&reader, 9).len(), reader.dropped()), (0, 0));
    }

    #[test]
    fn the_longest_message_fits_the_smallest_ring() {
        let (mut writer, reader) = tap(128 << 10, false);
        reader.set_open(true);
        let message = vec![1; MESSAGE_BYTES_MAX];
        writer.query(&of(3), &message);
        writer.flush();
        assert_eq!(drained(&reader, 9), [(of(3), message)]);
    }
}
