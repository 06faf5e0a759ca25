//! Frame Streams and the dnstap messages in them: wherever a stream is cut, the same comes of it; what was read is written
//! and read the same; and no more of a client than its network passes the mask.

use std::net::IpAddr;

use reveille_dns::dnstap::file::DnstapFile;
use reveille_dns::dnstap::frames::{DATA_BYTES_MAX, Session, Step, StreamKind};
use reveille_dns::dnstap::message::Dnstap;
use reveille_dns::fuzz::mask_message;
use reveille_dns::wire::Query;

/// First the kind of the stream, then the length of the pieces that it comes in, then the stream.
pub fn run(data: &[u8]) {
    message(data);
    let Some((&[kind, piece], stream)) = data.split_first_chunk::<2>() else { return };
    let kind = [StreamKind::File, StreamKind::Socket, StreamKind::Answers][usize::from(kind % 3)];
    let (whole, ended) = read(kind, stream, stream.len());
    assert_eq!(read(kind, stream, usize::from(piece)), (whole.clone(), ended.clone()), "in pieces");
    whole.iter().for_each(|payload| message(payload));
    if kind == StreamKind::File {
        let mut file = DnstapFile::new(stream);
        let mut entries = 0;
        let error = loop {
            match file.entry() {
                Ok(Some(_)) => entries += 1,
                Ok(None) => break None,
                Err(error) => break Some(error.to_string()),
            }
        };
        assert_eq!(entries, whole.len());
        assert!(ended.is_none() || error == ended, "{error:?}, not {ended:?}");
    }
}

/// The payloads of a stream, and where it fails.
fn read(kind: StreamKind, stream: &[u8], piece: usize) -> (Vec<Vec<u8>>, Option<String>) {
    let (mut session, mut payloads, mut unread) = (Session::new(kind), Vec::new(), Vec::new());
    for piece in stream.chunks(piece.max(1)) {
        unread.extend(piece);
        loop {
            match session.next(&unread) {
                Ok(Some((step, length))) => {
                    if let Step::Payload(payload) = step {
                        assert!((1..=DATA_BYTES_MAX).contains(&payload.len()));
                        payloads.push(payload.to_vec());
                    }
                    unread.drain(..length);
                }
                Ok(None) => break,
                Err(error) => return (payloads, Some(error.to_string())),
            }
        }
    }
    (payloads, None)
}

fn message(payload: &[u8]) {
    masked(payload);
    match Dnstap::decode(payload) {
        Ok(said) => {
            masked(said.message.query_message);
            masked(said.message.response_message);
            let mut out = Vec::new();
            said.encode(&mut out);
            // A type that is not known here is not written.
            if said.message.kind.is_some() {
                assert_eq!(Dnstap::decode(&out), Ok(said));
            }
        }
        Err(error) => assert!(error.at <= payload.len(), "{error}"),
    }
}

fn masked(message: &[u8]) {
    let mut left = message.to_vec();
    if !mask_message(&mut left) {
        return;
    }
    let once = left.clone();
    assert!(mask_message(&mut left) && left == once && once.len() == message.len());
    if let Ok(query) = Query::parse(&once)
        && let Some(subnet) = query.edns.and_then(|edns| edns.subnet)
    {
        let beyond = match subnet.address() {
            IpAddr::V4(address) => u128::from(address.to_bits() & 0xff),
            IpAddr::V6(address) => address.to_bits() << 48,
        };
        assert_eq!(beyond, 0, "{subnet}");
    }
}
