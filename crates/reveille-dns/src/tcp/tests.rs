use reveille_core::answer::{Record, Zone, ZoneDefaults, Zones};
use reveille_core::model::DomainName;
use tokio::io::DuplexStream;
use tokio::time::sleep;

use super::*;
use crate::connections::Speech;
use crate::connections::alone::Alone;
use crate::tally::Counts;

/// `. NS`, which a server without zones refuses in 17 bytes.
const QUESTION: &[u8] = &[0, 17, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
const ANSWER_BYTES: usize = 2 + 17;

/// Serves one end of a pipe of `capacity` bytes while the client does its part with the other; gives how long
/// the connection lasted on the paused clock, and what was counted.
async fn served<F: Future>(capacity: usize, client: impl FnOnce(DuplexStream) -> F) -> (Duration, Counts) {
    let alone = Alone::new(Speech::Dns);
    let serve = async |ours, peer| Connection::new(ours, peer, Transport::Tcp, &alone.shared).run().await;
    alone.served(capacity, serve, client).await
}

#[tokio::test(start_paused = true)]
async fn an_idle_client_is_closed() {
    let (lasted, counts) = served(1_024, |mut stream| async move {
        stream.write_all(QUESTION).await.unwrap();
        stream.read_exact(&mut [0; ANSWER_BYTES]).await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    })
    .await;
    assert_eq!(lasted.as_millis(), QUESTION_MS_MAX.into());
    assert_eq!((counts.queries, counts.connections_timed_out), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_trickle_does_not_keep_a_connection_open() {
    let (lasted, counts) = served(1_024, |mut stream| async move {
        for byte in QUESTION {
            if stream.write_all(&[*byte]).await.is_err() {
                break;
            }
            sleep(Duration::from_secs(2)).await;
        }
        std::future::pending::<()>().await;
    })
    .await;
    assert_eq!(lasted.as_millis(), QUESTION_MS_MAX.into());
    assert_eq!((counts.queries, counts.connections_timed_out), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_no_answers_is_closed() {
    let (lasted, counts) = served(ANSWER_BYTES, |mut stream| async move {
        // Room for one answer; the second one is stuck.
        let _ = stream.write_all(&QUESTION.repeat(3)).await;
        std::future::pending::<()>().await;
    })
    .await;
    assert_eq!(lasted.as_millis(), WRITE_MS_MAX.into());
    assert_eq!((counts.queries, counts.connections_timed_out), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_keeps_asking_may_stay() {
    let (lasted, counts) = served(1_024, |mut stream| async move {
        for _ in 0..10 {
            stream.write_all(QUESTION).await.unwrap();
            stream.read_exact(&mut [0; ANSWER_BYTES]).await.unwrap();
            sleep(Duration::from_millis(QUESTION_MS_MAX - 1)).await;
        }
    })
    .await;
    assert!(lasted.as_millis() > u128::from(QUESTION_MS_MAX) * 9);
    assert_eq!((counts.queries, counts.connections_timed_out), (10, 0));
}

#[tokio::test(start_paused = true)]
async fn who_asks_how_long_an_idle_connection_is_kept_is_told_the_truth() {
    // The question with OPT and edns-tcp-keepalive.
    let mut asked = QUESTION.to_vec();
    asked[13] = 1;
    asked.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 4, 0, 11, 0, 0]);
    asked[1] = u8::try_from(asked.len() - 2).unwrap();
    let (lasted, counts) = served(1_024, |mut stream| async move {
        stream.write_all(&asked).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        // 300 times 100 ms.
        assert!(answer.windows(6).any(|option| option == [0, 11, 0, 2, 1, 44]), "{answer:?}");
    })
    .await;
    assert_eq!(lasted.as_millis(), KEEPALIVE_MS.into());
    assert_eq!((counts.queries, counts.connections_timed_out), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_and_asks_without_reading_is_not_read_from() {
    const QUESTIONS: usize = 1_000_000;
    let taken = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let sent = Arc::clone(&taken);
    let (lasted, counts) = served(65_536, |mut stream| async move {
        for _ in 0..QUESTIONS {
            if stream.write_all(QUESTION).await.is_err() {
                break;
            }
            sent.fetch_add(QUESTION.len(), std::sync::atomic::Ordering::Relaxed);
        }
    })
    .await;
    assert_eq!((lasted.as_millis(), counts.connections_timed_out), (WRITE_MS_MAX.into(), 1));
    // What was answered fits into the pipe and the buffer, and what was taken into pipe and buffers.
    let answered = usize::try_from(counts.queries).unwrap() * ANSWER_BYTES;
    assert!(answered <= 65_536 + ANSWERS_BYTES_MAX + ANSWER_BYTES, "{answered}");
    let sent = taken.load(std::sync::atomic::Ordering::Relaxed);
    assert!(sent <= answered + UNREAD_BYTES_MAX + 65_536, "{sent}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_stops_asking_is_let_go_when_the_server_stops() {
    let alone = Alone::new(Speech::Dns);
    let (ours, theirs) = tokio::io::duplex(65_536);
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    let (mut reader, mut writer) = tokio::io::split(theirs);
    // There is always a next question.
    let asking = async { while writer.write_all(&QUESTION.repeat(500)).await.is_ok() {} };
    let reading = async {
        let mut answered = 0;
        while reader.read_exact(&mut [0; ANSWER_BYTES]).await.is_ok() {
            answered += 1;
            if answered == 1_000 {
                alone.stop.send_replace(true);
            }
            assert!(answered < 100_000, "told to come back");
        }
        answered
    };
    let serving = Connection::new(ours, peer, Transport::Tcp, &alone.shared).run();
    let ((), answered, ()) = tokio::join!(asking, reading, serving);
    assert!(answered >= 1_000);
}

#[tokio::test(start_paused = true)]
async fn no_more_is_answered_than_can_be_sent_soon() {
    const PIPE_BYTES: usize = 65_536;
    const TEXT_BYTES: usize = 2_500;
    let name = |text: &str| text.parse::<DomainName>().unwrap();
    let defaults = ZoneDefaults {
        apex: name("vm.test"),
        name_servers: vec![(name("ns1.vm.test"), vec![])],
        hostmaster: name("hostmaster.vm.test"),
        serial: 1,
        ttl: 60,
        negative_ttl: 60,
    };
    let mut records = defaults.records();
    let data = [&[250][..], &[b'x'; 250]].concat().repeat(TEXT_BYTES / 250);
    records.push(Record { owner: name("big.vm.test"), rtype: 16, ttl: 60, data });
    let zone = Zone::new(name("vm.test"), &records).unwrap();
    let view = View::new(1, Zones::new([Arc::new(zone)]), [], []);
    let alone = Alone::with(view, Speech::Dns);
    let (ours, mut theirs) = tokio::io::duplex(PIPE_BYTES);
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    let qname = name("big.vm.test");
    let question = [&[0, 29, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], qname.as_wire(), &[0, 16, 0, 1]].concat();
    // All of them are read at once.
    theirs.write_all(&question.repeat(100)).await.unwrap();
    Connection::new(ours, peer, Transport::Tcp, &alone.shared).run().await;
    let counts = alone.counts();
    let room = PIPE_BYTES + ANSWERS_BYTES_MAX + TEXT_BYTES + 100;
    assert!((20..=room / TEXT_BYTES).contains(&usize::try_from(counts.queries).unwrap()), "{counts:?}");
    assert_eq!(counts.connections_timed_out, 1);
}

#[test]
fn what_is_read_is_cut_into_messages_in_bounded_memory() {
    let mut unread = Unread::default();
    let longest = [&[255, 255][..], &[7; 65_535]].concat();
    let stream = [&longest[..], &[0, 0], &[0, 1, 9], &longest, &[0, 2, 1]].concat();
    let mut lengths = Vec::new();
    let mut at = 0;
    while at < stream.len() {
        let room = unread.room();
        let taken = (room.capacity() - room.len()).min(stream.len() - at);
        assert!(taken > 0);
        room.extend_from_slice(&stream[at..at + taken]);
        at += taken;
        assert!(unread.bytes.capacity() <= UNREAD_BYTES_MAX);
        while let Some(message) = unread.next() {
            lengths.push(message.len());
        }
    }
    assert_eq!(lengths, [65_535, 0, 1, 65_535]);
    assert!(!unread.has_message());
    assert_eq!(unread.room().as_slice(), [0, 2, 1]);
    assert!(unread.bytes.capacity() <= KEPT_BYTES_MAX);
}

proptest::proptest! {
    #[test]
    fn however_a_stream_is_cut_the_messages_are_the_same(
        messages in proptest::collection::vec(proptest::collection::vec(0u8.., 0..600), 0..40),
        cuts in proptest::collection::vec(1usize..5_000, 1..40),
    ) {
        let mut stream = Vec::new();
        for message in &messages {
            stream.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
            stream.extend(message);
        }
        let (mut unread, mut found, mut rest) = (Unread::default(), Vec::new(), &stream[..]);
        for cut in cuts.iter().cycle() {
            let room = unread.room();
            let (piece, after) = rest.split_at((*cut).min(rest.len()).min(room.capacity() - room.len()));
            room.extend_from_slice(piece);
            rest = after;
            while let Some(message) = unread.next() {
                found.push(message.to_vec());
            }
            if rest.is_empty() {
                break;
            }
        }
        proptest::prop_assert_eq!(found, messages);
    }
}
