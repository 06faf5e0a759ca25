//! Messages as bytes: what is read, what is not, and that nothing breaks a zone.

use proptest::prelude::*;

use super::super::message::{canonical, oversized};
use super::*;

/// Name, type, class, TTL, data.
type Raw<'a> = (&'a [u8], u16, u16, u32, &'a [u8]);

fn packet(zone: (u16, u16), prerequisites: &[Raw<'_>], edits: &[Raw<'_>], additional: &[Raw<'_>]) -> Vec<u8> {
    let count = |section: &[Raw<'_>]| u16::try_from(section.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x12, 0x34, 0x28, 0, 0, 1];
    packet.extend([count(prerequisites), count(edits), count(additional)].concat());
    packet.extend_from_slice(b"\x02vm\x04test\x00");
    packet.extend([zone.0.to_be_bytes(), zone.1.to_be_bytes()].concat());
    for (owner, rtype, class, ttl, data) in [prerequisites, edits, additional].concat() {
        packet.extend_from_slice(owner);
        packet.extend([rtype.to_be_bytes(), class.to_be_bytes()].concat());
        packet.extend(ttl.to_be_bytes());
        packet.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        packet.extend_from_slice(data);
    }
    packet
}

const WWW: &[u8] = b"\x03www\xc0\x0c";

#[test]
fn a_message_is_read_as_it_says() {
    let mx = b"\x00\x0a\x04MAIL\xc0\x0c";
    let read = UpdateMessage::parse(&packet(
        (6, 1),
        &[(WWW, 255, 255, 0, b""), (WWW, 1, 1, 0, &[192, 0, 2, 1])],
        &[(WWW, 15, 1, 300, mx), (WWW, 1, 255, 0, b""), (WWW, 255, 255, 0, b""), (WWW, 15, 254, 0, mx)],
        &[(b"\x00", 41, 1232, 0, b"")],
    ));
    let read = read.unwrap();
    let expected = message(
        &["yxdomain www", "yxrrset www A 192.0.2.1"],
        &["add www 300 MX 10 mail.vm.test.", "delete www A", "delete www", "delete www MX 10 mail.vm.test."],
    );
    assert_eq!(read.prerequisites, expected.prerequisites);
    assert_eq!(read.query.edns.unwrap().payload_bytes, 1232);
    let Edit::Add(record) = &read.edits[0] else { panic!("{:?}", read.edits) };
    assert_eq!(
        record.data, b"\x00\x0a\x04MAIL\x02vm\x04test\x00",
        "uncompressed, in the case that was given"
    );
    assert_eq!(canonical(15, &record.data), data("MX", "10 mail.vm.test."));
    assert_eq!(read.edits[1..3], expected.edits[1..3]);
}

#[test]
fn what_is_malformed_is_not_read() {
    let read = |p: &[Raw<'_>], u: &[Raw<'_>]| UpdateMessage::parse(&packet((6, 1), p, u, &[])).is_some();
    let a: &[u8] = &[192, 0, 2, 1];
    let prerequisites: &[(Raw<'_>, bool)] = &[
        ((WWW, 1, 255, 0, b""), true),
        ((WWW, 1, 255, 1, b""), false),
        ((WWW, 1, 255, 0, a), false),
        ((WWW, 1, 254, 0, b""), true),
        ((WWW, 1, 254, 0, a), false),
        ((WWW, 1, 1, 0, a), true),
        ((WWW, 1, 1, 60, a), false),
        ((WWW, 255, 1, 0, b""), false),
        ((WWW, 252, 255, 0, b""), false),
        ((WWW, 1, 3, 0, a), false),
    ];
    for (raw, fine) in prerequisites {
        assert_eq!(read(&[*raw], &[]), *fine, "{raw:?}");
    }
    let edits: &[(Raw<'_>, bool)] = &[
        ((WWW, 1, 1, 60, a), true),
        ((WWW, 1, 1, 60, &a[..3]), false),
        ((WWW, 1, 1, 60, &[a, a].concat()), false),
        ((WWW, 1, 1, 0x8000_0000, a), false),
        ((WWW, 255, 1, 60, b""), false),
        ((WWW, 41, 1, 60, b""), false),
        ((WWW, 16, 1, 60, b""), false),
        ((WWW, 16, 1, 60, b"\x05abc"), false),
        ((WWW, 2, 1, 60, b"\xc0\x0c\x00"), false),
        ((WWW, 2, 1, 60, b"\xc0\xff"), false),
        ((WWW, 65280, 1, 60, b"anything"), true),
        ((WWW, 1, 255, 0, b""), true),
        ((WWW, 1, 255, 9, b""), false),
        ((WWW, 1, 254, 0, a), true),
        ((WWW, 1, 254, 9, a), false),
        ((WWW, 255, 254, 0, b""), false),
        ((WWW, 1, 4, 60, a), false),
        ((b"\xc0\x1f", 1, 1, 60, a), false),
    ];
    for (raw, fine) in edits {
        assert_eq!(read(&[], &[*raw]), *fine, "{raw:?}");
    }
    let whole = packet((6, 1), &[], &[(WWW, 1, 1, 60, a)], &[]);
    assert!((0..whole.len()).all(|cut| UpdateMessage::parse(&whole[..cut]).is_none()));
    assert!(UpdateMessage::parse(&[&whole[..], b"\x00"].concat()).is_none());
    let many = vec![(WWW, 1, 1, 60, a); UPDATE_RECORDS_MAX];
    assert!(read(&[], &many) && !read(&[many[0]], &many));
    let edns: Raw<'_> = (b"\x00", 41, 1232, 0, b"");
    let long = packet((6, 1), &many[..1], &many, &[edns]);
    let (query, records) = oversized(&long).unwrap();
    assert_eq!((records, query.edns.unwrap().payload_bytes), (UPDATE_RECORDS_MAX + 1, 1232));
    assert!(oversized(&long[..long.len() - 1]).is_none() && oversized(&whole).is_none());
}

fn any_packet() -> impl Strategy<Value = Vec<u8>> {
    let owner =
        prop_oneof![Just(WWW.to_vec()), Just(b"\x00".to_vec()), prop::collection::vec(any::<u8>(), 0..12)];
    let rtype = prop_oneof![
        Just(1u16),
        Just(2),
        Just(5),
        Just(6),
        Just(15),
        Just(16),
        Just(33),
        Just(35),
        Just(64),
        Just(255),
        any::<u16>()
    ];
    let class = prop_oneof![Just(1u16), Just(254), Just(255), any::<u16>()];
    let data = prop_oneof![
        Just(vec![192, 0, 2, 1]),
        Just(b"\x00\x0a\xc0\x0c".to_vec()),
        Just(b"\x03abc".to_vec()),
        prop::collection::vec(any::<u8>(), 0..40)
    ];
    let raw = (owner, rtype, class, prop_oneof![Just(0u32), any::<u32>()], data);
    let section = prop::collection::vec(raw, 0..5);
    let broken = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (section.clone(), section, broken).prop_map(|(prerequisites, edits, broken)| {
        let p: Vec<Raw<'_>> =
            prerequisites.iter().map(|(o, r, c, t, d)| (&o[..], *r, *c, *t, &d[..])).collect();
        let u: Vec<Raw<'_>> = edits.iter().map(|(o, r, c, t, d)| (&o[..], *r, *c, *t, &d[..])).collect();
        let mut packet = packet((6, 1), &p, &u, &[]);
        for (place, byte) in broken {
            let place = place.index(packet.len());
            packet[place] = byte;
        }
        packet
    })
}

proptest! {
    /// Whatever comes in: no panic, and what is taken leaves a zone that can be served and laid over its file again.
    #[test]
    fn no_message_breaks_a_zone(packets in prop::collection::vec(any_packet(), 1..4)) {
        let mut bench = Bench::new();
        let messages: Vec<UpdateMessage> = packets.iter().filter_map(|packet| UpdateMessage::parse(packet)).collect();
        bench.group(&messages);
        let sets = bench.zone().nodes().flat_map(|node| node.sets().map(move |(rtype, set)| (node, rtype, set)));
        let records: Vec<Record> = sets
            .flat_map(|(node, rtype, set)| {
                let owner = node.owner();
                set.data.iter().map(move |data| Record {
                    owner: owner.clone(),
                    rtype,
                    ttl: set.ttl,
                    data: data.to_vec(),
                })
            })
            .collect();
let again = Zone::new(name("vm.test"), &records).unwrap();
        prop_assert_eq!(lines(&again), lines(bench.zone()));
        prop_assert_eq!((again.serial(), again.has_cuts()), (bench.zone().serial(), bench.zone().has_cuts()));
    }
}
