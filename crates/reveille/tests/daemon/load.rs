//! Clients that ask without a pause, each one question at a time: over UDP, over one connection that stays, and over
//! connections of their own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest wait for an answer: what takes longer is lost.
const LOST_AFTER: Duration = Duration::from_secs(5);
/// Longest wait for clients that should have gone on.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which rounds an answer may be of: not older than `before` when it was asked, not newer than `after` when it came.
#[derive(Clone)]
pub struct Watch {
    pub before: Arc<AtomicU32>,
    pub after: Arc<AtomicU32>,
}

impl Watch {
    pub fn new() -> Self {
        Self { before: Arc::default(), after: Arc::default() }
    }
}

/// Clients under way.
pub struct Load {
    clients: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

struct Shared {
    stop: AtomicBool,
    asked: AtomicU64,
    faults: Mutex<Vec<String>>,
}

/// How a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Udp,
    /// Over one connection, which must not break.
    Kept,
    /// Over a connection for each question.
    Anew,
}

impl Load {
    pub fn start(server: SocketAddr, watch: &Watch) -> Self {
        let (stop, asked, faults) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::default());
        let shared = Arc::new(Shared { stop, asked, faults });
        let client = |way| {
            let (shared, watch) = (Arc::clone(&shared), watch.clone());
            std::thread::spawn(move || ask_on(server, way, &watch, &shared))
        };
        let clients = [Way::Udp, Way::Udp, Way::Kept, Way::Kept, Way::Anew].map(client).into();
        Self { clients, shared }
    }

    /// Waits until so many more questions were answered.
    pub fn wait_for(&self, more: u64) {
        let (start, wanted) = (Instant::now(), self.shared.asked.load(Relaxed) + more);
        while self.shared.asked.load(Relaxed) < wanted {
            let faults = self.shared.faults.lock().unwrap();
            assert!(faults.is_empty() && start.elapsed() < PATIENCE, "{faults:?}");
            drop(faults);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// How many questions were asked, and what was wrong with their answers.
    pub fn stop(mut self) -> (u64, Vec<String>) {
        self.shared.stop.store(true, Relaxed);
        for client in self.clients.drain(..) {
            client.join().unwrap();
        }
        (self.shared.asked.load(Relaxed), std::mem::take(&mut *self.shared.faults.lock().unwrap()))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
    }
}

fn ask_on(server: SocketAddr, way: Way, watch: &Watch, shared: &Shared) {
    // Static, changing, a service, another zone, and what is nowhere.
    let names = ["www.vm.test", "moving.vm.test", "s0.vm.test", "still.test", "none.vm.test"];
    let mut kept = (way == Way::Kept).then(|| connect(server));
    for id in (0..=u16::MAX).cycle() {
        if shared.stop.load(Relaxed) {
            return;
        }
        let name = names[usize::from(id) % names.len()];
        let question = question(id, name);
        let oldest = watch.before.load(Acquire);
        let answer = match (way, &mut kept) {
            (Way::Udp, _) => over_udp(server, &question),
            (Way::Kept, Some(stream)) => over_tcp(stream, &question),
            (Way::Kept | Way::Anew, _) => over_tcp(&mut connect(server), &question),
        };
        let newest = watch.after.load(Acquire);
        let fault = match answer {
            Ok(answer) => fault_of(name, &question, &answer, oldest..=newest),
            Err(error) => Some(format!("no answer: {error}")),
        };
        if let Some(fault) = fault {
            shared.faults.lock().unwrap().push(format!("{way:?} {name} in {oldest}..={newest}: {fault}"));
            // A connection that broke does not come back.
            return;
        }
        shared.asked.fetch_add(1, Relaxed);
    }
}

fn fault_of(
    name: &str,
    question: &[u8],
    answer: &[u8],
    rounds: std::ops::RangeInclusive<u32>,
) -> Option<String> {
    let (rcode, count) = (answer[3] & 0xf, u16::from_be_bytes([answer[6], answer[7]]));
    let expected = if name == "none.vm.test" { (3, 0) } else { (0, 1) };
    if answer[..2] != question[..2] || (rcode, count) != expected {
        return Some(format!("rcode {rcode}, {count} records"));
    }
    // The address is the last of what stands behind the question: there is no EDNS and no more of it.
    let record = answer.get(question.len()..).unwrap_or_default();
    match (name, record.get(12..16)) {
        ("moving.vm.test", Some(&[192, 0, 2, round])) if rounds.contains(&round.into()) => None,
        ("www.vm.test", Some(&[192, 0, 2, 80])) => None,
        ("www.vm.test" | "moving.vm.test", data) => Some(format!("{data:?}")),
        _ => None,
    }
}

fn question(id: u16, name: &str) -> Vec<u8> {
    let mut packet = id.to_be_bytes().to_vec();
    packet.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).unwrap());
        packet.extend(label.bytes());
    }
    // The zone without a service is asked for its SOA.
    packet.extend([0, 0, if name == "still.test" { 6 } else { 1 }, 0, 1]);
    packet
}

fn over_udp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(LOST_AFTER))?;
    socket.send(question)?;
    let mut answer = vec![0; 1_232];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(LOST_AFTER)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn over_tcp(stream: &mut TcpStream, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let length = u16::try_from(question.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], question].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}
