//! Any bytes as a packet, over both transports: what is answered is sound, and two other parsers agree.

use hickory_proto::op::{Message as Hickory, OpCode};
use reveille_core::answer::Rcode;
use reveille_dns::wire::{Faulty, Query, UDP_PAYLOAD_MAX, Unreadable};
use reveille_dns::{Origin, Outcome, Transport, respond};

use crate::message::{Message, QR, RA, RD, Rr, TC};
use crate::world::{VIEW, peer, setting};

/// Type of the record that signs a message (RFC 8945 §4.1).
const TSIG: u16 = 250;

/// The packet of a question.
pub fn run(packet: &[u8]) {
    let read = Query::parse(packet);
    agrees(packet, &read);
    let over_tcp = is_sound(packet, &read, Transport::Tcp);
    let over_udp = is_sound(packet, &read, Transport::Udp);
    if let (Some(udp), Some(tcp)) = (over_udp, over_tcp)
        && !udp.flags & TC != 0
        && udp.additional == tcp.additional
    {
        assert_eq!(udp, tcp, "the same answer over both, if it fits: {packet:02x?}");
    }
}

/// What holds of every answer; gives it.
fn is_sound(packet: &[u8], read: &Result<Query, Unreadable>, transport: Transport) -> Option<Message> {
    let mut out = Vec::new();
    let Outcome { written, wake, hold_ms_max, .. } =
        respond(&setting(&VIEW), packet, &Origin::new(peer(), transport), &mut out);
    let edns = match read {
        Ok(query) => query.edns,
        Err(Unreadable::Error(faulty)) => faulty.edns,
        Err(Unreadable::Silence) => {
            assert!(written.is_none() && out.is_empty(), "silence: {packet:02x?}");
            return None;
        }
    };
    let written = written.expect("every question is answered");
    let over_udp = edns.map_or(512, |edns| edns.payload_bytes.clamp(512, UDP_PAYLOAD_MAX));
    let limit = if transport.is_datagram() { over_udp.into() } else { 65_535 };
    assert!(out.len() <= limit, "{} bytes: {packet:02x?}", out.len());
    let mut answer = Message::in_order(&out).unwrap_or_else(|why| panic!("{why}: {packet:02x?} {out:02x?}"));
    assert!(answer.is_a_chain(), "{answer:?}");
    answer.sort();
    assert_eq!(answer.id.to_be_bytes(), packet[..2]);
    assert_eq!(answer.opcode, packet[2] >> 3 & 0xf);
    assert_eq!(answer.flags & (QR | RD | RA | 0x70), QR | answer.flags & RD, "RA, Z, AD, CD: {packet:02x?}");
    assert_eq!(answer.has(RD), packet[2] & 1 != 0);
    assert_eq!((answer.rcode, answer.has(TC)), (written.rcode.number(), written.truncated));
    assert_eq!(answer.opt.is_some(), edns.is_some());
    // As it was written, letter case and all.
    let asked = match read {
        Ok(query) => Some(&query.question),
        Err(Unreadable::Error(faulty)) => faulty.question.as_ref(),
        Err(Unreadable::Silence) => None,
    };
    let question = asked.map(|question| (question.name.as_wire().to_vec(), question.qtype, question.qclass));
    assert_eq!(answer.questions, question.into_iter().collect::<Vec<_>>());
    if read.is_err() || !matches!(written.rcode, Rcode::NoError | Rcode::NxDomain) {
        // Why a signature is not accepted is told in one (RFC 8945 §5.2).
        let told = |rr: &Rr| rr.rtype == TSIG && written.rcode == Rcode::NotAuth;
        let mut rest = answer.clone();
        rest.additional.retain(|rr| !told(rr));
        assert!(
            rest.is_bare() && wake.is_none() && hold_ms_max.is_none(),
            "an error that says more: {answer:?}"
        );
    }
    assert!(written.truncated <= (transport == Transport::Udp), "TC over TCP: {packet:02x?}");
    Hickory::from_vec(&out).unwrap_or_else(|error| panic!("{error}: {packet:02x?} {out:02x?}"));
    Some(Message { opt: None, ..answer })
}

/// What another parser reads as a question, so do we, but for the reasons that are listed here; and then we read the
/// same from it.
fn agrees(packet: &[u8], read: &Result<Query, Unreadable>) {
    let Ok(theirs) = Hickory::from_vec(packet) else { return };
    let header_counts = [4, 6, 8, 10].map(|at| u16::from_be_bytes([packet[at], packet[at + 1]]));
    match read {
        Ok(ours) => {
            let [question] = theirs.queries() else { panic!("one question: {packet:02x?}") };
            let mut name = Vec::new();
            for label in question.name().iter() {
                name.push(u8::try_from(label.len()).unwrap());
                name.extend(label);
            }
            name.push(0);
            assert_eq!(name, ours.question.name.as_wire());
            assert_eq!(u16::from(question.query_type()), ours.question.qtype);
            assert_eq!(u16::from(question.query_class()), ours.question.qclass);
            assert_eq!(
                (theirs.id(), theirs.recursion_desired()),
                (ours.header.id, ours.header.recursion_desired)
            );
            let edns = theirs.extensions().as_ref();
            assert_eq!(edns.is_some(), ours.edns.is_some());
            if let (Some(theirs), Some(ours)) = (edns, ours.edns) {
                // Theirs raises what is below 512.
                let both = (theirs.version(), theirs.flags().dnssec_ok, theirs.max_payload());
                assert_eq!(both, (ours.version, ours.dnssec_ok, ours.payload_bytes.max(512)));
            }
        }
        Err(Unreadable::Silence) => assert!(packet[2] & 0x80 != 0, "an answer: {packet:02x?}"),
        Err(Unreadable::Error(Faulty { header, rcode, .. })) => {
            let why_not = [
                // Operations that are not known here.
                header.opcode != 0 && *rcode == Rcode::NotImp,
                // RFC 9619: one question, no more; none is for cookies.
                header_counts[0] != 1,
                // The third parser is strict too: pointers only to names, nothing behind the message.
                Message::parse(packet).is_err(),
                // Theirs takes the OPT from anywhere, with any owner, and goes without malformed subnets and cookies;
                // and it does not look where a signature stands and what is in it.
                has_odd_opt(packet) || has_signature(packet),
            ];
            assert!(why_not.contains(&true), "refused, and read by another as {theirs}: {packet:02x?}");
            assert!(theirs.op_code() != OpCode::Query || header.opcode == 0);
        }
    }
}

/// Whether some OPT is not as RFC 6891 §6.1, RFC 7871 §6 and RFC 7873 §4 want it, or might not be: that is left to the
/// tests of each rule.
fn has_odd_opt(packet: &[u8]) -> bool {
    Message::parse(packet).is_ok_and(|message| {
        let misplaced = [&message.answer, &message.authority].into_iter().flatten().any(|rr| rr.rtype == 41);
        misplaced || message.opt.is_some_and(|opt| opt.options.iter().any(|(code, _)| matches!(code, 8 | 10)))
    })
}

fn has_signature(packet: &[u8]) -> bool {
    Message::parse(packet).is_ok_and(|message| {
        [&message.answer, &message.authority, &message.additional]
            .into_iter()
            .flatten()
            .any(|rr| rr.rtype == TSIG)
    })
}
