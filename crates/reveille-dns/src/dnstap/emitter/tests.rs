//! Collectors that take, die, stand still or are not there; files.

use std::io::{Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;

use reveille_core::model::Timestamp;

use super::*;
use crate::dnstap::file::DnstapFile;
use crate::dnstap::frames::{ControlType, Session, Step, StreamKind, put_control};
use crate::dnstap::tap::{TapWriter, tap};

const WAIT_MAX: Duration = Duration::from_secs(20);

fn emitter(to: String, addresses: Addresses) -> (TapWriter, Emitter) {
    let config = DnstapOut { to, addresses, identity: "own".into(), ..DnstapOut::default() };
    let (writer, reader) = tap(256 << 10, true);
    (writer, Emitter::start(&config, vec![reader], "test").unwrap().unwrap())
}

fn tapped() -> Tapped {
    Tapped {
        at: Timestamp::from_ms(1_795_000_000_123),
        transport: Transport::Udp,
        client: "192.0.2.77:4711".parse().unwrap(),
        own: Some("127.0.0.53:53".parse().unwrap()),
    }
}

fn query(n: u16) -> Vec<u8> {
    [&n.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1]].concat()
}

fn push(tap: &mut TapWriter, range: std::ops::Range<u16>) {
    for n in range {
        tap.query(&tapped(), &query(n));
        tap.flush();
    }
}

fn until(emitter: &Emitter, what: &str, condition: impl Fn(&EmitterStatus) -> bool) -> EmitterStatus {
    let begun = Instant::now();
    loop {
        let status = emitter.status();
        if condition(&status) {
            return status;
        }
        assert!(begun.elapsed() < WAIT_MAX, "never came: {what}; {status:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The next connection, whose reads have a limit too.
fn accepted(listener: &UnixListener) -> UnixStream {
    let stream = within(listener.set_nonblocking(true), || listener.accept().map(|(stream, _)| stream));
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
    stream
}

fn accepted_tcp(listener: &TcpListener) -> TcpStream {
    let stream = within(listener.set_nonblocking(true), || listener.accept().map(|(stream, _)| stream));
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
    stream
}

/// Tries until it does not have to wait.
fn within<T>(set: io::Result<()>, mut attempt: impl FnMut() -> io::Result<T>) -> T {
    set.unwrap();
    let begun = Instant::now();
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done.unwrap(),
        }
        assert!(begun.elapsed() < WAIT_MAX, "nobody came");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Takes what an emitter sends until it stops or `max` messages have come; gives their IDs.
fn take(stream: &mut (impl Read + io::Write), max: usize) -> Vec<u16> {
    let (mut session, mut unread, mut ids) = (Session::new(StreamKind::Socket), Vec::new(), Vec::new());
    let say = |stream: &mut dyn io::Write, control| {
        let mut out = Vec::new();
        put_control(control, &mut out);
        stream.write_all(&out).unwrap();
    };
    loop {
        let (answer, over) = match session.next(&unread).unwrap() {
            None => {
                let mut bytes = [0; 4_096];
                let read = stream.read(&mut bytes).unwrap();
                assert!(read > 0, "the emitter left after {} messages", ids.len());
                unread.extend(&bytes[..read]);
                continue;
            }
            Some((step, length)) => {
                let result = match step {
                    Step::Payload(payload) => {
                        let said = Dnstap::decode(payload).unwrap();
                        assert_eq!((said.identity, said.version), (&b"own"[..], &b"test"[..]));
                        let id = said.message.query_message.first_chunk().unwrap();
                        ids.push(u16::from_be_bytes(*id));
                        (None, ids.len() == max)
                    }
                    Step::Accept => (Some(ControlType::Accept), false),
                    Step::Over { finish: true } => (Some(ControlType::Finish), true),
                    Step::Nothing | Step::Over { finish: false } => (None, false),
                };
                unread.drain(..length);
                result
            }
        };
        if let Some(answer) = answer {
            say(stream, answer);
        }
        if over {
            return ids;
        }
    }
}

#[test]
fn a_collector_has_every_message_in_order_and_the_last_ones_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let unix = UnixListener::bind(&path).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let collectors = [
        (format!("unix:{}", path.display()), std::thread::spawn(move || take(&mut accepted(&unix), 9_999))),
        (
            format!("tcp:{}", tcp.local_addr().unwrap()),
            std::thread::spawn(move || take(&mut accepted_tcp(&tcp), 9_999)),
        ),
    ];
    for (to, collector) in collectors {
        let (mut tap, emitter) = emitter(to, Addresses::Full);
        until(&emitter, "a connection", |status| status.is_connected);
        for n in 0..30 {
            push(&mut tap, n * 100..(n + 1) * 100);
            until(&emitter, "what was sent", |status| status.sent == u64::from(n + 1) * 100);
        }
        push(&mut tap, 3_000..3_010);
        // Nothing waits for its turn when the server stops.
        drop(emitter);
        assert_eq!(collector.join().unwrap(), (0..3_010).collect::<Vec<u16>>());
    }
}

#[test]
fn without_a_collector_all_is_dropped_and_with_one_it_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let (mut tap, emitter) = emitter(format!("unix:{}", path.display()), Addresses::Network);
    let status = until(&emitter, "a failure", |status| status.trouble.is_some());
    assert!(status.trouble.unwrap().starts_with("no connection: "));
    push(&mut tap, 0..1_000);
    assert_eq!((emitter.status().dropped, emitter.status().sent), (1_000, 0));
    let unix = UnixListener::bind(&path).unwrap();
    let mut first = accepted(&unix);
    let reading = std::thread::spawn(move || (take(&mut first, 5), first));
    until(&emitter, "a connection", |status| status.is_connected);
    push(&mut tap, 0..5);
    let (ids, first) = reading.join().unwrap();
    assert_eq!(ids, [0, 1, 2, 3, 4]);
    // It dies, and another one takes its place.
    drop(first);
    until(&emitter, "the end of it", |status| !status.is_connected);
    push(&mut tap, 0..10);
    let mut second = accepted(&unix);
    let reading = std::thread::spawn(move || take(&mut second, 7));
    until(&emitter, "a connection", |status| status.connections == 2 && status.is_connected);
    push(&mut tap, 0..7);
    assert_eq!(reading.join().unwrap().len(), 7);
    let status = until(&emitter, "the count", |status| status.sent == 12);
    assert_eq!(status.dropped, 1_010, "everything is in one of the counts");
}

#[test]
fn a_collector_that_does_not_read_is_left_and_nothing_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let unix = UnixListener::bind(&path).unwrap();
    let (mut tap, emitter) = emitter(format!("unix:{}", path.display()), Addresses::Network);
    let mut stuck = accepted(&unix);
    let mut accept = Vec::new();
    put_control(ControlType::Accept, &mut accept);
    stuck.write_all(&accept).unwrap();
    until(&emitter, "a connection", |status| status.is_connected);
    // Until it is left, no faster than one that reads would take it.
    let slow = format!("did not take what it was sent within {WRITE_MS_MAX} ms");
    let left =
        |status: &EmitterStatus| status.trouble.as_ref().is_some_and(|trouble| trouble.contains(&slow));
    let (begun, mut pushed) = (Instant::now(), 0u64);
    while !left(&emitter.status()) {
        push(&mut tap, 0..100);
        pushed += 100;
        assert!(begun.elapsed() < WAIT_MAX, "{:?}", emitter.status());
        std::thread::sleep(Duration::from_millis(2));
    }
    // What was in the ring is not kept for another one.
    let status = until(&emitter, "the rest", |status| status.sent + status.dropped == pushed);
    assert!(status.sent > 0 && status.dropped > 2_000, "{status:?}");
    drop(stuck);
}

#[test]
fn one_that_does_not_answer_as_a_collector_does_is_left() {
    let unix_dir = tempfile::tempdir().unwrap();
    let path = unix_dir.path().join("sock");
    let unix = UnixListener::bind(&path).unwrap();
    let (_tap, emitter) = emitter(format!("unix:{}", path.display()), Addresses::Network);
    let mut other = accepted(&unix);
    other.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    let status = until(&emitter, "a fault", |status| status.trouble.is_some());
    let trouble = status.trouble.unwrap();
    assert!(
        trouble.starts_with("what the collector answers: frame 1 at byte 0: a data frame of"),
        "{trouble}"
    );
    assert_eq!(status.connections, 0);
}

fn in_file(path: &Path) -> Vec<u16> {
    let (mut file, mut ids) = (DnstapFile::new(std::fs::File::open(path).unwrap()), Vec::new());
    while let Some(entry) = file.entry().unwrap() {
        let message = entry.message.unwrap().message;
        assert_eq!(message.query_address, Some("192.0.2.0".parse().unwrap()));
        assert_eq!((message.query_port, message.response_port), (None, Some(53)));
        ids.push(u16::from_be_bytes(*message.query_message.first_chunk().unwrap()));
    }
    ids
}

#[test]
fn a_file_is_whole_private_and_bounded_and_the_one_before_is_kept() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (path, older) = (dir.path().join("own.fstrm"), dir.path().join("own.fstrm.1"));
    for run in 0..2u16 {
        let (mut tap, emitter) = emitter(format!("file:{}", path.display()), Addresses::Network);
        until(&emitter, "a file", |status| status.is_connected);
        push(&mut tap, run * 100..run * 100 + 50);
        drop(emitter);
    }
    assert_eq!((in_file(&older), in_file(&path)), ((0..50).collect(), (100..150).collect()));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // 1 MiB is some 11,000 messages: the third file has the last of them, and the first one is gone.
    let config =
        DnstapOut { to: format!("file:{}", path.display()), file_mib_max: 1, ..DnstapOut::default() };
    let (mut tap, reader) = tap(256 << 10, false);
    let emitter = Emitter::start(&config, vec![reader], "").unwrap().unwrap();
    until(&emitter, "a file", |status| status.is_connected);
    for n in 0..300u16 {
        push(&mut tap, n * 100..(n + 1) * 100);
        until(&emitter, "what was sent", |status| status.sent == u64::from(n + 1) * 100);
    }
    drop(emitter);
    let (first, second) = (in_file(&older), in_file(&path));
    assert_eq!([first.clone(), second.clone()].concat(), (first[0]..30_000).collect::<Vec<u16>>());
    assert!(first.len() > second.len() && std::fs::metadata(&older).unwrap().len() <= 1 << 20);
    // No file of somebody else's kind is touched.
    let (_tap, emitter) = self::emitter(format!("file:{}", dir.path().display()), Addresses::Network);
    let status = until(&emitter, "a fault", |status| status.trouble.is_some());
    assert_eq!(status.trouble.unwrap(), "the file cannot be written: it is no regular file");
}

#[test]
fn what_could_hide_an_address_goes_without_its_message() {
    let encoder = |addresses| Encoder { identity: String::new(), version: String::new(), addresses };
    // One byte behind the last record.
    let mut odd = [query(7), vec![0]].concat();
    let mut frame = Vec::new();
    assert!(!encoder(Addresses::Network).put(&tapped(), &mut odd, &mut frame));
    let said = Dnstap::decode(&frame[4..]).unwrap().message;
    assert_eq!((said.kind, said.query_message), (Some(MessageType::AuthQuery), &[][..]));
    assert_eq!(said.query_address, Some("192.0.2.0".parse().unwrap()));
    frame.clear();
    assert!(encoder(Addresses::Full).put(&tapped(), &mut odd, &mut frame));
    let said = Dnstap::decode(&frame[4..]).unwrap().message;
    assert_eq!((said.query_message, said.query_port), (&odd[..], Some(4_711)));
    frame.clear();
    let mut update = query(7);
    update[2] = 5 << 3 | 0x80;
    assert!(encoder(Addresses::None).put(&tapped(), &mut update, &mut frame));
    let said = Dnstap::decode(&frame[4..]).unwrap().message;
    assert_eq!((said.kind, said.query_address), (Some(MessageType::UpdateResponse), None));
    assert_eq!((said.response_time, said.query_time), (Some(tapped().at), None));
}
