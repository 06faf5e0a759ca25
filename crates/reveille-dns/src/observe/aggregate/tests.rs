//! Queries in, what is told of them out.

use super::*;
use crate::respond::Transport;

const START_S: u64 = 1_795_000_000;

fn at(ms: u64) -> Timestamp {
    Timestamp::from_ms(START_S * 1_000 + ms)
}

fn query(counter: u32, qtype: u16, client: &str, ms: u64) -> Observed {
    Observed {
        at: at(ms),
        counter,
        name: Vec::new(),
        qtype,
        rcode: 0,
        transport: Transport::Udp,
        client: client.parse().unwrap(),
        subnet: None,
        ttl_s: None,
        proven: false,
    }
}

fn unknown(name: &[u8], client: &str, ms: u64) -> Observed {
    Observed { name: name.to_vec(), ..query(0, 1, client, ms) }
}

fn aggregate() -> Aggregate {
    Aggregate::new(RandomState::new(), at(0))
}

#[test]
fn a_service_is_counted_by_type_for_a_minute() {
    let mut all = aggregate();
    for second in 0..90 {
        all.take(query(7, 1, "192.0.2.1", second * 1_000));
        all.take(query(7, 28, "192.0.2.1", second * 1_000 + 999));
        all.take(query(8, 1, "192.0.2.1", second * 1_000));
        all.look(0, at(second * 1_000 + 999));
    }
    let seven = all.service(7, at(89_999));
    assert_eq!((seven.queries, seven.is_complete), (120, true));
    assert_eq!(seven.by_type, BTreeMap::from([("A", 60), ("AAAA", 60)]));
    assert_eq!(all.service(7, at(119_000)).queries, 60);
    assert_eq!(all.service(7, at(149_999)).queries, 0);
    assert_eq!(all.service(9, at(89_999)), ServiceQueries { is_complete: true, ..ServiceQueries::default() });
    // What nobody asks for any more costs nothing.
    all.look(0, at(150_000));
    assert!(all.series.is_empty() && all.by_age.is_empty());
}

#[test]
fn rings_that_are_read_one_after_another_are_counted_alike() {
    let mut all = aggregate();
    for second in [5, 6, 3, 6, 3, 4, 9, 0] {
        all.take(query(7, 1, "192.0.2.1", second * 1_000));
    }
    let seconds = &all.series[&(7, 1)].seconds;
    let base = second(at(0));
    let relative: Vec<(u32, u32)> = seconds.iter().map(|&(second, count)| (second - base, count)).collect();
    assert_eq!(relative, [(0, 1), (3, 2), (4, 1), (5, 1), (6, 2), (9, 1)]);
    assert_eq!(all.by_age.len(), 1);
}

#[test]
fn top_names_and_networks_and_unique_clients_are_those_of_two_epochs() {
    let mut all = aggregate();
    for number in 0..300u64 {
        all.take(query(7, 1, &format!("192.0.2.{}", number % 200), number));
        if number % 3 == 0 {
            let name: &[u8] = if number % 2 == 0 { b"\x03WWW\x00" } else { b"\x03www\x00" };
            all.take(unknown(name, "2001:db8:0:1ff::7", number));
        }
    }
    let seen = all.observations();
    assert_eq!((seen.queries, seen.since), (400, at(0)));
    assert!(seen.unique_clients.abs_diff(201) < 17, "{seen:?}");
    let names: Vec<_> = seen.top_names.iter().map(|heavy| (heavy.key.clone(), heavy.at_least)).collect();
    let www = SeenName::Wire(b"\x03www\x00".as_slice().into());
    assert_eq!(names, [(SeenName::Counter(7), 300), (www, 100)], "letters of either case are one name");
    let networks: Vec<_> = seen.top_networks.iter().map(|heavy| (heavy.key, heavy.at_most)).collect();
    let network = |text: &str, bits| (text.parse::<IpAddr>().unwrap(), bits);
    assert_eq!(networks, [(network("192.0.2.0", 24), 300), (network("2001:db8:0:100::", 56), 100)]);

    // In the next epoch it is still there, in the one after it is forgotten.
    all.look(0, at(30_000));
    all.take(query(8, 1, "198.51.100.1", 30_500));
    assert_eq!(all.observations().queries, 401);
    all.look(0, at(60_000));
    let seen = all.observations();
    assert_eq!((seen.queries, seen.unique_clients, seen.since), (1, 1, at(30_000)));
    // And after a pause nothing is of late.
    all.look(0, at(1_000_000));
    assert_eq!((all.observations().queries, all.observations().since), (0, at(1_000_000)));
}

#[test]
fn what_is_left_out_is_told_for_as_long_as_it_matters() {
    let mut all = aggregate();
    all.take(query(7, 1, "192.0.2.1", 0));
    all.look(5, at(1_000));
    assert_eq!((all.observations().dropped, all.service(7, at(1_000)).is_complete), (5, false));
    all.look(5, at(60_999));
    assert!(!all.service(7, at(60_999)).is_complete);
    assert!(all.service(7, at(61_000)).is_complete);
}

#[test]
fn floods_take_no_more_memory_than_there_is() {
    let mut all = aggregate();
    all.take(query(1, 1, "192.0.2.1", 0));
    for number in 0..40_000u32 {
        let name = [&[4u8][..], &number.to_be_bytes(), &[0]].concat();
        all.take(unknown(&name, &format!("10.{}.{}.1", number % 256, number / 256), 1));
    }
    assert_eq!(all.series.len(), 1, "unknown names push out no service");
    // Types that nobody uses are one.
    for qtype in 1_000..3_000 {
        all.take(query(1, qtype, "192.0.2.1", 1));
    }
    assert_eq!(all.service(1, at(1)).by_type, BTreeMap::from([("A", 1), ("other", 2_000)]));
    let count = u32::try_from(SERIES_MAX).unwrap();
    for counter in 0..count {
        all.take(query(100 + counter, 1, "192.0.2.1", 2_000));
    }
    assert_eq!((all.series.len(), all.by_age.len()), (SERIES_MAX, SERIES_MAX));
    let (gone, kept) = (all.service(1, at(2_000)), all.service(100, at(2_000)));
    assert_eq!(
        (gone.queries, gone.is_complete),
        (0, false),
        "what was forgotten is not passed off as silence"
    );
    assert_eq!(kept.queries, 1);
}
