//! Senders over sockets; who may come in.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};

use reveille_core::model::Timestamp;

use super::*;
use crate::dnstap::frames::{ControlType, put_control, put_data};
use crate::dnstap::message::{Dnstap, Message, MessageType};

const WAIT_MAX: Duration = Duration::from_secs(20);
/// READY, ACCEPT or START.
const CONTROL_BYTES: usize = 42;

fn start(config: &DnstapIn) -> Collector {
    let now = Timestamp::from_ms(1_795_000_000_000);
    Collector::start(config, Arc::default(), Arc::new(move || now)).unwrap()
}

fn on_unix(dir: &tempfile::TempDir) -> DnstapIn {
    DnstapIn { unix: dir.path().join("in.sock"), ..DnstapIn::default() }
}

fn until(
    collector: &Collector,
    what: &str,
    mut condition: impl FnMut(&CollectorStatus) -> bool,
) -> CollectorStatus {
    let begun = std::time::Instant::now();
    loop {
        let status = collector.status();
        if condition(&status) {
            return status;
        }
        assert!(begun.elapsed() < WAIT_MAX, "never came: {what}; {status:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn control(control: ControlType) -> Vec<u8> {
    let mut out = Vec::new();
    put_control(control, &mut out);
    out
}

/// So many questions, of which nobody here has the zone.
fn frames(identity: &str, count: usize) -> Vec<u8> {
    let question = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";
    let kind = Some(MessageType::ClientQuery);
    let message = Message { kind, query_message: question, ..Message::default() };
    let said = Dnstap { identity: identity.as_bytes(), version: b"", message };
    let mut out = Vec::new();
    assert!(put_data(&mut out, |out| said.encode(out)));
    out.repeat(count)
}

/// A sender whose reads have a limit.
fn connect(path: &std::path::Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
    stream
}

fn connect_tcp(collector: &Collector) -> TcpStream {
    let stream = TcpStream::connect(collector.tcp_addresses()[0]).unwrap();
    stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
    stream
}

/// Shakes hands both ways.
fn begin(stream: &mut (impl Read + Write)) {
    stream.write_all(&control(ControlType::Ready)).unwrap();
    let mut answer = [0; CONTROL_BYTES];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..], control(ControlType::Accept));
    stream.write_all(&control(ControlType::Start)).unwrap();
}

/// Sends STOP, and waits for FINISH and the end.
fn end(stream: &mut (impl Read + Write)) {
    stream.write_all(&control(ControlType::Stop)).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, control(ControlType::Finish));
}

fn outside(status: &CollectorStatus, name: &str) -> u64 {
    status.sources.iter().find(|source| source.name == name).map_or(0, |source| source.outside)
}

#[test]
fn many_senders_are_taken_in_and_one_that_breaks_disturbs_none() {
    let dir = tempfile::tempdir().unwrap();
    let config = DnstapIn { listen: vec!["127.0.0.1:0".parse().unwrap()], ..on_unix(&dir) };
    let collector = start(&config);
    let mut first = connect(&config.unix);
    begin(&mut first);
    let mut second = connect_tcp(&collector);
    begin(&mut second);
    // One way, as the format allows as well.
    let mut third = connect(&config.unix);
    third.write_all(&control(ControlType::Start)).unwrap();
    let mut broken = connect(&config.unix);
    begin(&mut broken);
    for stream in [&mut first as &mut dyn Write, &mut third, &mut broken] {
        stream.write_all(&frames("a", 700)).unwrap();
    }
    second.write_all(&frames("b", 3_000)).unwrap();
    // Frames that are whole and hold nothing that can be read are passed over.
    let mut nonsense = Vec::new();
    put_data(&mut nonsense, |out| out.extend(b"\xff"));
    first.write_all(&nonsense).unwrap();
    let read = until(&collector, "nonsense", |status| status.last_fault.is_some());
    let fault = read.last_fault.unwrap();
    let place = CONTROL_BYTES * 2 + frames("a", 700).len();
    let expected = format!("from unix: frame 703 at byte {place}: byte 0 of the message: a tag is cut");
    assert!(fault.starts_with(&expected), "{fault}, not {expected}");
    broken.write_all(&u32::MAX.to_be_bytes()).unwrap();
    assert_eq!(broken.read(&mut [0; 9]).unwrap(), 0, "closed at once");
    first.write_all(&frames("a", 5)).unwrap();
    end(&mut first);
    end(&mut second);
    third.write_all(&control(ControlType::Stop)).unwrap();
    assert_eq!(third.read(&mut [0; 9]).unwrap(), 0, "one way, there is no FINISH");
    let status = until(&collector, "the end", |status| status.open == 0);
    assert_eq!((outside(&status, "a"), outside(&status, "b")), (2_105, 3_000));
    assert_eq!((status.connections, status.broken, status.refused), (4, 1, 0));
    let fault = status.last_fault.unwrap();
    assert!(
        fault.contains(&format!("frame 703 at byte {place}: a data frame of 4294967295 bytes")),
        "{fault}"
    );
}

#[test]
fn only_networks_that_may_send_come_in() {
    let allow = vec!["192.0.2.0/24".parse().unwrap()];
    let config = DnstapIn { listen: vec!["127.0.0.1:0".parse().unwrap()], allow, ..DnstapIn::default() };
    let collector = start(&config);
    let mut stream = connect_tcp(&collector);
    assert!(matches!(stream.read(&mut [0; 9]), Ok(0) | Err(_)));
    let status = until(&collector, "the refusal", |status| status.last_fault.is_some());
    assert_eq!((status.connections, status.refused), (0, 1));
    assert!(status.last_fault.unwrap().contains("observe.dnstap_in.allow"));
}

#[test]
fn the_unix_socket_has_its_mode_replaces_a_dead_one_and_goes_with_the_collector() {
    let dir = tempfile::tempdir().unwrap();
    let config = on_unix(&dir);
    // What a process leaves that was killed.
    drop(UnixListener::bind(&config.unix).unwrap());
    let collector = start(&config);
    let mode = std::fs::metadata(&config.unix).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let error = Collector::start(&config, Arc::default(), Arc::new(|| Timestamp::from_ms(0))).unwrap_err();
    assert!(error.to_string().contains("somebody listens on"), "{error}");
    assert!(UnixStream::connect(&config.unix).is_ok(), "the first one goes on");
    drop(collector);
    assert!(!config.unix.exists());
    std::fs::write(&config.unix, "text").unwrap();
    let error = Collector::start(&config, Arc::default(), Arc::new(|| Timestamp::from_ms(0))).unwrap_err();
    assert!(error.to_string().contains("is no socket"), "{error}");
    assert_eq!(std::fs::read(&config.unix).unwrap(), b"text");
}
