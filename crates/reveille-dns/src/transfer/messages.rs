//! The messages of a transfer, one after another.

use reveille_core::answer::{Condensed, Owner, Record, RecordSet, View, rdata};

use super::judge::Transfer;
use crate::wire::Packer;

/// What a record takes on the wire beside its data, when its owner is compressed as well as can be.
const RECORD_BYTES: usize = 16;

/// How the zone was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Everything that it has.
    Whole,
    /// What has changed.
    Differences,
}

/// The receiver takes no more messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

/// Hands message after message to `take`, which may wait, and is false when there is nobody left.
///
/// # Errors
/// If nobody was left before the end.
pub(crate) fn write(view: &View, transfer: Transfer, take: impl FnMut(Vec<u8>) -> bool) -> Result<Way, Gone> {
    let Transfer { zone, index, since, .. } = &transfer;
    let (zone, index) = (zone.clone(), *index);
    let apex = zone.apex().as_wire();
    let condensed = since.and_then(|since| zone.history().condensed_since(since));
    let condensed = condensed.filter(|difference| is_less_than_all(view, index, difference));
    let mut stream = Stream::new(transfer, take);
    stream.set(apex, rdata::SOA, zone.soa())?;
    if let Some(Condensed { from, removed, added }) = &condensed {
        stream.set(apex, rdata::SOA, from)?;
        removed.iter().try_for_each(|record| stream.record(record))?;
        stream.set(apex, rdata::SOA, zone.soa())?;
        added.iter().try_for_each(|record| stream.record(record))?;
    } else {
        for records in view.content(index) {
            // Content names its owners.
            let Owner::Name(owner) = records.owner else { continue };
            records.iter().try_for_each(|data| stream.push(owner, records.rtype, records.ttl, data))?;
        }
    }
    stream.set(apex, rdata::SOA, zone.soa())?;
    stream.finish()?;
    Ok(if condensed.is_some() { Way::Differences } else { Way::Whole })
}

/// Whether the difference is the shorter way (RFC 1995 §5). Looks no further into the zone than it is long.
fn is_less_than_all(view: &View, index: u16, difference: &Condensed<'_>) -> bool {
    let records = difference.removed.iter().chain(&difference.added);
    let bytes: usize = records.map(|record| RECORD_BYTES + record.data.len()).sum();
    let mut whole = 0;
    view.content(index).any(|records| {
        whole += records.iter().map(|data| RECORD_BYTES + data.len()).sum::<usize>();
        whole >= bytes
    })
}

/// Fills messages and hands them on, signed if the question was.
struct Stream<F> {
    transfer: Transfer,
    packer: Packer,
    take: F,
}

impl<F: FnMut(Vec<u8>) -> bool> Stream<F> {
    fn new(transfer: Transfer, take: F) -> Self {
        let room = transfer.exchange.as_ref().map_or(0, |exchange| exchange.room());
        let packer = Packer::new(&transfer.query, room);
        Self { transfer, packer, take }
    }

    fn record(&mut self, record: &Record) -> Result<(), Gone> {
        self.push(record.owner.as_wire(), record.rtype, record.ttl, &record.data)
    }

    fn set(&mut self, owner: &[u8], rtype: u16, set: &RecordSet) -> Result<(), Gone> {
        set.data.iter().try_for_each(|data| self.push(owner, rtype, set.ttl, data))
    }

    fn push(&mut self, owner: &[u8], rtype: u16, ttl: u32, data: &[u8]) -> Result<(), Gone> {
        if self.packer.push(owner, rtype, ttl, data) {
            return Ok(());
        }
        self.hand_on()?;
        // A record of a checked zone fits into an empty message. Were it not so, a transfer that breaks off is
        // better than one without it.
        if self.packer.push(owner, rtype, ttl, data) { Ok(()) } else { Err(Gone) }
    }

    fn hand_on(&mut self) -> Result<(), Gone> {
        let mut message = self.packer.finish(&self.transfer.query);
        if let Some(exchange) = &mut self.transfer.exchange {
            exchange.sign(&mut message);
        }
        if (self.take)(message) { Ok(()) } else { Err(Gone) }
    }

    fn finish(mut self) -> Result<(), Gone> {
        if self.packer.is_empty() { Ok(()) } else { self.hand_on() }
    }
}
