//! Messages that are filled with records: those of zone transfers.
//!
//! The compressor of the builder that answers are written with remembers 24 names and gives up after them. A message
//! of a transfer has thousands, so names are remembered here in a table that takes the newest of those that fall
//! into one place.

use reveille_core::answer::rdata;

use super::query::Query;
use super::write::{UDP_PAYLOAD_MAX, compressible};

/// Places in the table of names; a power of two.
const PLACES: usize = 2_048;
/// Offsets from here on cannot be pointed to (RFC 1035 §4.1.4).
const POINTER_MAX: usize = 0x4000;
/// Length of a header.
const HEADER_BYTES: usize = 12;
/// OPT without options.
const OPT_BYTES: usize = 11;

/// A message in the making: an authoritative answer with records in its answer section.
pub(crate) struct Packer {
    message: Vec<u8>,
    records: u16,
    limit: usize,
    has_opt: bool,
    dnssec_ok: bool,
    /// Where names stand in the message; 0 is nowhere.
    places: Box<[u16; PLACES]>,
}

impl Packer {
    /// A message that answers the query, with its question, and `room` bytes left for a signature.
    pub fn new(query: &Query, room: usize) -> Self {
        let mut packer = Self {
            message: Vec::new(),
            records: 0,
            limit: 0,
            has_opt: query.edns.is_some(),
            dnssec_ok: query.edns.is_some_and(|edns| edns.dnssec_ok),
            places: Box::new([0; PLACES]),
        };
        let opt = if packer.has_opt { OPT_BYTES } else { 0 };
        packer.limit = usize::from(u16::MAX).saturating_sub(room + opt);
        packer.begin(query);
        packer
    }

    fn begin(&mut self, query: &Query) {
        let [id_high, id_low] = query.header.id.to_be_bytes();
        let flags = 0x84 | query.header.opcode << 3 | u8::from(query.header.recursion_desired);
        self.message = Vec::with_capacity(usize::from(u16::MAX));
        self.records = 0;
        self.places.fill(0);
        self.message.extend_from_slice(&[id_high, id_low, flags, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        self.name(query.question.name.as_wire());
        self.message.extend_from_slice(&query.question.qtype.to_be_bytes());
        self.message.extend_from_slice(&query.question.qclass.to_be_bytes());
    }

    /// Adds a record of class IN, all of it in uncompressed wire format; false if it does not fit any more. Every
    /// record of a checked zone fits into an empty message.
    pub fn push(&mut self, owner: &[u8], rtype: u16, ttl: u32, data: &[u8]) -> bool {
        let before = self.message.len();
        // Without counting on compression, so that nothing has to be taken back.
        if self.records == u16::MAX || before + owner.len() + 10 + data.len() > self.limit {
            return false;
        }
        self.name(owner);
        self.message.extend_from_slice(&rtype.to_be_bytes());
        self.message.extend_from_slice(&rdata::CLASS_IN.to_be_bytes());
        self.message.extend_from_slice(&ttl.to_be_bytes());
        let length_at = self.message.len();
        self.message.extend_from_slice(&[0, 0]);
        self.data(rtype, data);
        let length = u16::try_from(self.message.len() - length_at - 2).unwrap_or(u16::MAX);
        if let Some(place) = self.message.get_mut(length_at..length_at + 2) {
            place.copy_from_slice(&length.to_be_bytes());
        }
        self.records += 1;
        true
    }

    /// Whether no record has been added since the message was begun.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The message as it is to be sent, or signed; the next one is begun.
    pub fn finish(&mut self, query: &Query) -> Vec<u8> {
        if self.has_opt {
            let [high, low] = UDP_PAYLOAD_MAX.to_be_bytes();
            let flags = u8::from(self.dnssec_ok) << 7;
            self.message.extend_from_slice(&[0, 0, 41, high, low, 0, 0, flags, 0, 0, 0]);
        }
        let [high, low] = self.records.to_be_bytes();
        if let Some(header) = self.message.get_mut(..HEADER_BYTES) {
            header[6..8].copy_from_slice(&[high, low]);
            header[11] = u8::from(self.has_opt);
        }
        let message = std::mem::take(&mut self.message);
        self.begin(query);
        message
    }

    fn data(&mut self, rtype: u16, data: &[u8]) {
        let Some((before, names)) = compressible(rtype) else { return self.message.extend_from_slice(data) };
        let (numbers, mut rest) = data.split_at_checked(before).unwrap_or((data, &[]));
        self.message.extend_from_slice(numbers);
        for _ in 0..names {
            let parts = rdata::name_length(rest).and_then(|length| rest.split_at_checked(length));
            let Some((name, after)) = parts else { break };
            self.name(name);
            rest = after;
        }
        self.message.extend_from_slice(rest);
    }

    /// Writes a name, pointing to where the end of it stands already.
    fn name(&mut self, wire: &[u8]) {
        let mut rest = wire;
        while let Some((&length, _)) = rest.split_first()
            && length != 0
        {
            let place = place_of(rest);
            let at = usize::from(self.places[place]);
            if at != 0 && self.stands_at(at, rest) {
                let pointer = 0xc000 | self.places[place];
                self.message.extend_from_slice(&pointer.to_be_bytes());
                return;
            }
            if let Some(here) =
                u16::try_from(self.message.len()).ok().filter(|&here| usize::from(here) < POINTER_MAX)
            {
                self.places[place] = here;
            }
            let (label, after) = rest.split_at_checked(1 + usize::from(length)).unwrap_or((rest, &[]));
            self.message.extend_from_slice(label);
            rest = after;
        }
        self.message.push(0);
    }

    /// Whether that name, letter by letter, stands at that offset.
    fn stands_at(&self, mut at: usize, mut name: &[u8]) -> bool {
        loop {
            let Some(&length) = self.message.get(at) else { return false };
            if length >= 0xc0 {
                // Pointers in the message are our own and point backwards.
                let low = self.message.get(at + 1).copied().unwrap_or_default();
                at = usize::from(length & 0x3f) << 8 | usize::from(low);
                continue;
            }
            let label = 1 + usize::from(length);
            match (self.message.get(at..at + label), name.split_at_checked(label)) {
                (Some(here), Some((wanted, rest))) if here == wanted => {
                    if length == 0 {
                        return true;
                    }
                    (at, name) = (at + label, rest);
                }
                (Some(_) | None, _) => return false,
            }
        }
    }
}

/// Which place of the table is a name's (FNV-1a, folded).
fn place_of(name: &[u8]) -> usize {
    let hash =
        name.iter().fold(0x811c_9dc5u32, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    usize::try_from(hash ^ hash >> 15).unwrap_or_default() % PLACES
}

#[cfg(test)]
mod tests {
    use domain::base::Message;
    use domain::base::name::ToName;
    use domain::base::rdata::ComposeRecordData;
    use domain::rdata::AllRecordData;
    use proptest::prelude::*;

    use super::*;

    /// `Vm.tesT AXFR` with EDNS.
    fn query() -> Query {
        let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x02Vm\x04tesT\x00\x00\xfc\x00\x01";
        let opt = [0, 0, 41, 4, 208, 0, 0, 0x80, 0, 0, 0];
        Query::parse(&[&question[..], &opt].concat()).unwrap()
    }

    fn wire(labels: &[u8]) -> Vec<u8> {
        let mut wire = Vec::new();
        for &label in labels {
            // Some labels are long, some beginnings of others.
            let length = 1 + label % 9 * 7;
            wire.push(length);
            wire.extend(std::iter::repeat_n(b'a' + label % 3, length.into()));
        }
        [&wire[..], b"\x02vm\x04test\x00"].concat()
    }

    fn name() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(0..18u8, 0..4).prop_map(|labels| wire(&labels))
    }

    fn record() -> impl Strategy<Value = (Vec<u8>, u16, Vec<u8>)> {
        let data = (
            prop::sample::select(vec![rdata::A, rdata::NS, rdata::MX, rdata::SRV, rdata::SOA]),
            name(),
            name(),
        );
        let data = data.prop_map(|(rtype, one, other)| match rtype {
            rdata::NS => (rtype, one),
            rdata::MX => (rtype, [&[0, 1][..], &one].concat()),
            rdata::SRV => (rtype, [&[0, 1, 0, 2, 0, 3][..], &one].concat()),
            rdata::SOA => (rtype, [&one[..], &other, &[7; 20]].concat()),
            _ => (rtype, vec![192, 0, 2, 1]),
        });
        (name(), data).prop_map(|(owner, (rtype, data))| (owner, rtype, data))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn what_is_packed_is_read_as_it_was(records in prop::collection::vec(record(), 1..1_500)) {
            let query = query();
            let mut packer = Packer::new(&query, 100);
            let mut messages = Vec::new();
            for (owner, rtype, data) in &records {
                if !packer.push(owner, *rtype, 300, data) {
                    messages.push(packer.finish(&query));
                    prop_assert!(packer.push(owner, *rtype, 300, data));
                }
            }
            messages.push(packer.finish(&query));
            let mut read = Vec::new();
            for message in &messages {
                prop_assert!(message.len() <= 65_435);
                let message = Message::from_octets(message.as_slice()).unwrap();
                prop_assert!(message.opt().unwrap().dnssec_ok());
                let asked = message.sole_question().unwrap().qname().to_vec();
                prop_assert_eq!(asked.as_slice(), b"\x02Vm\x04tesT\x00");
                for record in message.answer().unwrap() {
                    let record = record.unwrap().into_any_record::<AllRecordData<_, _>>().unwrap();
                    let mut data = Vec::new();
                    let Ok(()) = record.data().compose_rdata(&mut data);
                    read.push((record.owner().to_vec().as_slice().to_vec(), record.rtype().to_int(), data));
                }
            }
            prop_assert_eq!(read, records);
        }
    }
}
