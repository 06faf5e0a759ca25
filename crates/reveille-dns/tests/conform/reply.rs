//! What a server said, and what it was said to.

use reveille_core::answer::Zone;

use super::common::exchange::{Client, Heard};
use super::common::message::{self, Message, Opt, QR, Rr};
use super::questions::Asked;

/// What came back.
#[derive(Clone, PartialEq, Eq)]
pub enum Reply {
    Message(Message),
    Silence,
    Closed,
    /// An answer that cannot be read, and why.
    Unreadable(String),
}

impl Reply {
    pub fn of(heard: &Heard, packet: &[u8]) -> Self {
        match heard {
            Heard::Silence => Self::Silence,
            Heard::Closed => Self::Closed,
            Heard::Answer(bytes) => match Message::parse(bytes) {
                Ok(message) if message.id.to_be_bytes() == packet[..2] => {
                    Self::Message(Message { id: 0, ..message })
                }
                Ok(message) => Self::Unreadable(format!("has the ID {:04x}", message.id)),
                Err(error) => Self::Unreadable(error),
            },
        }
    }

    pub fn message(&self) -> Option<&Message> {
        match self {
            Self::Message(message) => Some(message),
            Self::Silence | Self::Closed | Self::Unreadable(_) => None,
        }
    }

    pub fn message_mut(&mut self) -> Option<&mut Message> {
        match self {
            Self::Message(message) => Some(message),
            Self::Silence | Self::Closed | Self::Unreadable(_) => None,
        }
    }

    pub fn shown(&self) -> String {
        match self {
            Self::Message(message) => format!("{message:?}"),
            Self::Silence => "silence\n".into(),
            Self::Closed => "the connection is closed\n".into(),
            Self::Unreadable(why) => format!("not readable: {why}\n"),
        }
    }
}

/// A question on which two servers differ, and what there is to judge it.
pub struct Case<'c> {
    pub asked: &'c Asked,
    pub zones: &'c [Zone],
    /// Knot, to be asked for the whole of an answer that was cut.
    pub knot: &'c mut Client,
}

impl Case<'_> {
    /// The error with this code, with the question and, if the asker spoke EDNS, an OPT.
    pub fn error(&self, rcode: u16) -> Reply {
        let asked = self.asked;
        let opt = asked.edns.as_ref().map(|edns| Opt {
            payload: 1_232,
            version: 0,
            flags: edns.flags & 0x8000,
            options: Vec::new(),
        });
        Reply::Message(Message {
            id: 0,
            opcode: asked.opcode,
            flags: QR | asked.flags & message::RD,
            rcode,
            questions: vec![(asked.name.clone(), asked.qtype, asked.qclass)],
            answer: Vec::new(),
            authority: Vec::new(),
            additional: Vec::new(),
            opt,
        })
    }

    /// What Knot says when size does not matter.
    pub fn whole(&mut self) -> Option<Message> {
        self.whole_of(&self.asked.name)
    }

    /// What Knot says to the same question about another name; to one for NSEC or RRSIG, which it does not take through
    /// aliases, as if that were a type like any other.
    pub fn whole_of(&mut self, name: &[u8]) -> Option<Message> {
        let mut packet = self.asked.packet.clone();
        if self.asked.is_readable() {
            let end = 12 + self.asked.name.len();
            if DNSSEC_TYPES.contains(&self.asked.qtype) {
                packet[end..end + 2].copy_from_slice(&NO_TYPE.to_be_bytes());
            }
            packet.splice(12..end, name.iter().copied());
        }
        let mut message = Reply::of(&self.knot.tcp(&packet), &packet).message().cloned()?;
        for (name, qtype, _) in &mut message.questions {
            (*name, *qtype) = (self.asked.name.clone(), self.asked.qtype);
        }
        Some(message)
    }

    /// The apex of the zone with the longest name at or above this one.
    pub fn apex_of(&self, name: &[u8]) -> Option<Vec<u8>> {
        let name = name.to_ascii_lowercase();
        let apexes = self.zones.iter().map(|zone| zone.apex().as_wire());
        apexes.filter(|apex| is_at_or_below(&name, apex)).max_by_key(|apex| apex.len()).map(<[u8]>::to_vec)
    }

    /// Where a chain of aliases ends: the target of the last one of `answer`, or the name that was asked for.
    pub fn end_of_chain(&self, answer: &[Rr]) -> Vec<u8> {
        self.chain(answer).last().map_or_else(|| self.asked.name.to_ascii_lowercase(), |rr| rr.data.clone())
    }

    /// The aliases of `answer` in the order in which they follow each other, each once.
    pub fn chain<'a>(&self, answer: &'a [Rr]) -> Vec<&'a Rr> {
        chain_from(self.asked.name.to_ascii_lowercase(), answer)
    }
}

/// The aliases of `answer` in the order in which they follow each other from this name on, each once.
pub fn chain_from(mut name: Vec<u8>, answer: &[Rr]) -> Vec<&Rr> {
    let mut chain: Vec<&Rr> = Vec::new();
    while let Some(rr) = answer.iter().find(|rr| rr.rtype == 5 && rr.owner == name) {
        if chain.contains(&rr) {
            break;
        }
        name.clone_from(&rr.data);
        chain.push(rr);
    }
    chain
}

/// RRSIG, NSEC.
const DNSSEC_TYPES: [u16; 2] = [46, 47];
/// A type of which there is none in the zones.
const NO_TYPE: u16 = 65_399;

/// Whether a name, in lower case, is another or below it.
pub fn is_at_or_below(name: &[u8], other: &[u8]) -> bool {
    let mut rest = name;
    loop {
        if rest == other {
            return true;
        }
        match rest.split_first() {
            Some((&length, tail)) if length > 0 => rest = &tail[usize::from(length)..],
            _ => return false,
        }
    }
}
