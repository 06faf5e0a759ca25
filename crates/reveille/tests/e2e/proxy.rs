//! What stands between a daemon and its object store: it passes everything on, or nothing, or slowly, or bent.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::small::LOOK;

/// What becomes of the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// All come through.
    Open,
    /// Connections are closed as soon as they are opened, and those that stand are cut.
    Down,
    /// Connections are taken, and nothing is answered.
    Silent,
    /// What the store answers comes in pieces of so many bytes, with a pause between them.
    Slow { bytes: usize, pause: Duration },
    /// One bit in each answer that is longer than a manifest is another.
    Bent,
}

/// A proxy on a port of its own; it ends with the test.
pub struct Proxy {
    pub at: SocketAddr,
    way: Arc<Mutex<Way>>,
    /// Connections that were taken.
    taken: Arc<AtomicUsize>,
    epoch: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

/// Answers longer than this are chunks.
const BENT_FROM_BYTES: usize = 16 << 10;

impl Proxy {
    /// One before the server at `to`.
    pub fn before(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self {
            at: listener.local_addr().unwrap(),
            way: Arc::new(Mutex::new(Way::Open)),
            taken: Arc::default(),
            epoch: Arc::default(),
            ended: Arc::default(),
        };
        let (way, taken, epoch, ended) = (
            Arc::clone(&proxy.way),
            Arc::clone(&proxy.taken),
            Arc::clone(&proxy.epoch),
            Arc::clone(&proxy.ended),
        );
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if ended.load(Ordering::Acquire) {
                    return;
                }
                taken.fetch_add(1, Ordering::AcqRel);
                if *way.lock().unwrap() == Way::Down {
                    continue;
                }
                let Ok(server) = TcpStream::connect(to) else { continue };
                let (way, epoch) = (Arc::clone(&way), Arc::clone(&epoch));
                std::thread::spawn(move || both_ways(&client, &server, &way, &epoch));
            }
        });
        proxy
    }

    /// From now on.
    pub fn set(&self, way: Way) {
        *self.way.lock().unwrap() = way;
        // What stands was made for another way.
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Connections that were taken so far.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        self.set(Way::Down);
        let _ = TcpStream::connect(self.at);
    }
}

fn both_ways(client: &TcpStream, server: &TcpStream, way: &Mutex<Way>, epoch: &AtomicU64) {
    let born = epoch.load(Ordering::Acquire);
    let own = way.lock().unwrap().clone();
    for stream in [client, server] {
        stream.set_read_timeout(Some(LOOK * 4)).unwrap();
        stream.set_nodelay(true).unwrap();
    }
    let lives = || epoch.load(Ordering::Acquire) == born;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pass(
                client,
                server,
                lives,
                |bytes, to| if own == Way::Silent { Ok(()) } else { to.write_all(bytes) },
            );
        });
        let mut answered = 0;
        pass(server, client, lives, |bytes, to| match &own {
            Way::Open => to.write_all(bytes),
            Way::Down | Way::Silent => Ok(()),
            Way::Slow { bytes: most, pause } => bytes.chunks(*most).try_for_each(|piece| {
                std::thread::sleep(*pause);
                if lives() { to.write_all(piece) } else { Err(std::io::ErrorKind::BrokenPipe.into()) }
            }),
            Way::Bent => {
                let mut bent = bytes.to_vec();
                let crossed = answered < BENT_FROM_BYTES && answered + bytes.len() >= BENT_FROM_BYTES;
                if crossed && let Some(last) = bent.last_mut() {
                    *last ^= 1;
                }
                answered += bytes.len();
                to.write_all(&bent)
            }
        });
    });
}

/// Until one of the two has ended, or the way is another.
fn pass(
    mut from: &TcpStream,
    mut to: &TcpStream,
    lives: impl Fn() -> bool,
    mut give: impl FnMut(&[u8], &mut &TcpStream) -> std::io::Result<()>,
) {
    let mut buffer = vec![0; 64 << 10];
    while lives() {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                if give(&buffer[..length], &mut to).is_err() {
                    break;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
