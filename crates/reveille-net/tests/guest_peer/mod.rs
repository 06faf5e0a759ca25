//! A guest in this process: a second TCP/IP stack at the other end of the socket, in QEMU's place.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Notify;

use reveille_net::guest::{GUEST_IP, GUEST_MAC, HERE_IP, HERE_MAC};

/// What a connection to a port of the guest meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Sends back what it gets, and its FIN after the client's.
    Echo,
    /// Takes everything at once; after the client's FIN sends 8 bytes, the count, and its FIN.
    Count,
    /// Sends this many bytes (see [`pattern`]) and its FIN at once, then reads.
    Source(usize),
    /// Does not read before [`Guest::resume`].
    Slow,
    /// Resets once it has got something.
    Reset,
}

/// The byte at a place of every stream that these tests send.
pub fn pattern(at: usize) -> u8 {
    (at.wrapping_mul(31) ^ (at >> 8)) as u8
}

/// `count` bytes of the pattern.
pub fn patterned(count: usize) -> Vec<u8> {
    (0..count).map(pattern).collect()
}

/// What can be asked of the guest while it runs.
#[derive(Default)]
pub struct Controls {
    resumed: AtomicBool,
    /// Everything that comes is thrown away, as by a guest without a configured address.
    pub deaf: AtomicBool,
    /// Frames that came.
    pub seen: AtomicUsize,
    /// Frames that came while deaf.
    pub missed: AtomicUsize,
    /// Connections that are not closed.
    pub open: AtomicUsize,
    /// Resets that arrived.
    pub resets: AtomicUsize,
    changed: Notify,
    /// Frames to send as they are, each without its length.
    inject: Mutex<Vec<Vec<u8>>>,
    /// SYNs to answer with a challenge ACK.
    pub challenge: AtomicUsize,
    forget: AtomicBool,
    close: Mutex<Vec<u16>>,
    hang_up: AtomicBool,
    hung_up: AtomicBool,
}

impl Controls {
    /// Slow services read from now on.
    pub fn resume(&self) {
        self.resumed.store(true, Ordering::SeqCst);
        self.changed.notify_one();
    }

    /// Knows no connection any more and tells nobody, as after a reboot.
    pub fn forget(&self) {
        self.forget.store(true, Ordering::SeqCst);
        self.changed.notify_one();
    }

    /// Sends the FIN of every connection to a port.
    pub fn close(&self, port: u16) {
        self.close.lock().unwrap().push(port);
        self.changed.notify_one();
    }

    /// Ends, as a killed QEMU does.
    pub fn hang_up(&self) {
        self.hang_up.store(true, Ordering::SeqCst);
        self.changed.notify_one();
    }

    /// Whether the guest saw the end of its socket.
    pub fn hung_up(&self) -> bool {
        self.hung_up.load(Ordering::SeqCst)
    }

    /// Sends a frame.
    pub fn inject(&self, frame: Vec<u8>) {
        self.inject.lock().unwrap().push(frame);
        self.changed.notify_one();
    }
}

struct Served {
    handle: SocketHandle,
    port: u16,
    service: Service,
    done: usize,
    queued: Vec<u8>,
    counted: bool,
}

#[derive(Default)]
struct Cable {
    arrived: std::collections::VecDeque<Vec<u8>>,
    leaving: Vec<u8>,
}

/// Runs a guest on `stream` until the stream closes. `listen`: port, service, how many connections at a time.
pub fn run(stream: UnixStream, listen: &[(u16, Service, usize)]) -> Arc<Controls> {
    let controls = Arc::new(Controls::default());
    let guest = Guest::new(listen);
    let told = Arc::clone(&controls);
    tokio::spawn(async move {
        guest.run(stream, Arc::clone(&told)).await;
        told.hung_up.store(true, Ordering::SeqCst);
    });
    controls
}

struct Guest {
    interface: Interface,
    sockets: SocketSet<'static>,
    served: Vec<Served>,
    cable: Cable,
    epoch: std::time::Instant,
}

impl Guest {
    fn new(listen: &[(u16, Service, usize)]) -> Self {
        let mut cable = Cable::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut cable, Instant::ZERO);
        interface.update_ip_addrs(|list| list.push(IpCidr::new(GUEST_IP.into(), 24)).unwrap());
        let mut sockets = SocketSet::new(Vec::new());
        let mut served = Vec::new();
        for &(port, service, count) in listen {
            for _ in 0..count {
                let handle = sockets.add(listening(port));
                served.push(Served { handle, port, service, done: 0, queued: Vec::new(), counted: false });
            }
        }
        Self { interface, sockets, served, cable, epoch: std::time::Instant::now() }
    }

    async fn run(mut self, mut stream: UnixStream, controls: Arc<Controls>) {
        let mut buffer = vec![0; 256 << 10];
        let mut have = 0;
        while !controls.hang_up.load(Ordering::SeqCst) {
            let now = Instant::from_micros(self.epoch.elapsed().as_micros() as i64 + 1);
            if controls.forget.swap(false, Ordering::SeqCst) {
                for one in &self.served {
                    *self.sockets.get_mut(one.handle) = listening(one.port);
                }
            }
            for port in controls.close.lock().unwrap().drain(..) {
                for one in self.served.iter().filter(|one| one.port == port) {
                    self.sockets.get_mut::<Socket<'_>>(one.handle).close();
                }
            }
            self.poll(now, &controls);
            for frame in controls.inject.lock().unwrap().drain(..) {
                self.cable.leaving.extend_from_slice(&(frame.len() as u32).to_be_bytes());
                self.cable.leaving.extend_from_slice(&frame);
            }
            let leaving = std::mem::take(&mut self.cable.leaving);
            // A guest that cannot send goes on receiving, so as not to stand against a link that does the same.
            let (mut read, mut write) = stream.split();
            let mut sent = 0;
            while sent < leaving.len() {
                tokio::select! {
                    written = write.write(&leaving[sent..]) => match written {
                        Ok(count) => sent += count,
                        Err(_) => return,
                    },
                    count = read.read(&mut buffer[have..]), if have < buffer.len() => match count {
                        Ok(0) | Err(_) => return,
                        Ok(count) => have = self.take(&mut buffer, have + count, &controls),
                    },
                }
            }
            if sent > 0 {
                continue;
            }
            let pause = self.interface.poll_delay(now, &self.sockets);
            let pause = pause.map_or(std::time::Duration::from_secs(3600), Into::into);
            if !self.cable.arrived.is_empty() {
                continue;
            }
            tokio::select! {
                count = stream.read(&mut buffer[have..]) => match count {
                    Ok(0) | Err(_) => return,
                    Ok(count) => have = self.take(&mut buffer, have + count, &controls),
                },
                () = controls.changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Takes whole frames from the buffer; returns how many bytes are left at its begin.
    fn take(&mut self, buffer: &mut [u8], have: usize, controls: &Controls) -> usize {
        let mut at = 0;
        while have - at >= 4 {
            let length = u32::from_be_bytes(buffer[at..at + 4].try_into().unwrap()) as usize;
            if have - at < 4 + length {
                break;
            }
            let frame = &buffer[at + 4..at + 4 + length];
            controls.seen.fetch_add(1, Ordering::SeqCst);
            if controls.deaf.load(Ordering::SeqCst) {
                controls.missed.fetch_add(1, Ordering::SeqCst);
            } else {
                self.frame(frame, controls);
            }
            at += 4 + length;
        }
        buffer.copy_within(at..have, 0);
        have - at
    }

    fn frame(&mut self, frame: &[u8], controls: &Controls) {
        // It may be asked for its MAC by who does not know it yet.
        let all = frame[..6] == [0xff; 6] && frame[12..14] == [8, 6];
        assert!(all || frame[..6] == GUEST_MAC, "{:?}", &frame[..6]);
        assert_eq!(frame[6..12], HERE_MAC);
        match (frame[12], frame[13]) {
            (8, 6) => self.arp(&frame[14..]),
            (8, 0) if frame[14 + 9] == 17 => self.echo_datagram(&frame[14..]),
            (8, 0) => {
                let tcp = 14 + 20;
                if frame[tcp + 13] & 4 != 0 {
                    controls.resets.fetch_add(1, Ordering::SeqCst);
                }
                let challenge = &controls.challenge;
                if frame[tcp + 13] & 2 != 0 && challenge.load(Ordering::SeqCst) > 0 {
                    challenge.fetch_sub(1, Ordering::SeqCst);
                    self.leave(0x0800, &challenge_ack(&frame[14..]));
                    return;
                }
                self.cable.arrived.push_back(frame[14..].to_vec());
            }
            other => panic!("an ethertype that nobody sends: {other:?}"),
        }
    }

    fn arp(&mut self, packet: &[u8]) {
        if packet[7] == 1 {
            let mut answer = packet.to_vec();
            answer[7] = 2;
            answer[8..14].copy_from_slice(&GUEST_MAC);
            answer[14..18].copy_from_slice(&GUEST_IP.octets());
            answer[18..24].copy_from_slice(&packet[8..14]);
            answer[24..28].copy_from_slice(&packet[14..18]);
            self.leave(0x0806, &answer);
        }
    }

    /// Sends a datagram, or a fragment of one, back where it came from. Swapping addresses and ports leaves every
    /// checksum right. A datagram to port 9 is answered by a port unreachable.
    fn echo_datagram(&mut self, packet: &[u8]) {
        let first = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff == 0;
        if first && packet[22..24] == [0, 9] {
            let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
            message.extend_from_slice(&packet[..28]);
            let mut answer = packet[..20].to_vec();
            answer[2..4].copy_from_slice(&((20 + message.len()) as u16).to_be_bytes());
            answer[9] = 1;
            answer[12..16].copy_from_slice(&GUEST_IP.octets());
            answer[16..20].copy_from_slice(&HERE_IP.octets());
            answer.extend_from_slice(&message);
            self.leave(0x0800, &answer);
            return;
        }
        let mut answer = packet.to_vec();
        answer[12..16].copy_from_slice(&packet[16..20]);
        answer[16..20].copy_from_slice(&packet[12..16]);
        if first {
            answer[20..22].copy_from_slice(&packet[22..24]);
            answer[22..24].copy_from_slice(&packet[20..22]);
        }
        self.leave(0x0800, &answer);
    }

    fn leave(&mut self, ethertype: u16, packet: &[u8]) {
        put_frame(&mut self.cable.leaving, ethertype, packet.len(), |space| space.copy_from_slice(packet));
    }

    fn poll(&mut self, now: Instant, controls: &Controls) {
        let resumed = controls.resumed.load(Ordering::SeqCst);
        let mut again = true;
        while again {
            self.interface.poll(now, &mut self.cable, &mut self.sockets);
            again = false;
            let mut open = 0;
            for one in &mut self.served {
                let socket = self.sockets.get_mut::<Socket<'_>>(one.handle);
                again |= serve(one, socket, resumed);
                open +=
                    usize::from(!matches!(socket.state(), State::Listen | State::TimeWait | State::Closed));
            }
            controls.open.store(open, Ordering::SeqCst);
        }
        self.interface.poll(now, &mut self.cable, &mut self.sockets);
    }
}

fn listening(port: u16) -> Socket<'static> {
    let buffer = || SocketBuffer::new(vec![0; 256 << 10]);
    let mut socket = Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    socket.listen(port).unwrap();
    socket
}

/// Lets a service do what it can; returns whether it did anything.
fn serve(one: &mut Served, socket: &mut Socket<'_>, resumed: bool) -> bool {
    match socket.state() {
        State::Closed | State::TimeWait => {
            (one.done, one.counted) = (0, false);
            one.queued.clear();
            socket.abort();
            // The next poll sends the reset of an aborted socket first.
            if socket.local_endpoint().is_none() || socket.state() == State::Closed {
                let _ = socket.listen(one.port);
            }
            return false;
        }
        State::Listen | State::SynReceived | State::SynSent => return false,
        _ => {}
    }
    let mut moved = 0;
    let mut buffer = [0; 64 << 10];
    let ended = socket.state() == State::CloseWait && !socket.can_recv();
    match one.service {
        Service::Echo => {
            if one.queued.len() < 64 << 10 {
                let count = socket.recv_slice(&mut buffer).unwrap_or(0);
                one.queued.extend_from_slice(&buffer[..count]);
                moved += count;
            }
            let count = socket.send_slice(&one.queued).unwrap_or(0);
            one.queued.drain(..count);
            moved += count;
            if ended && one.queued.is_empty() {
                socket.close();
            }
        }
        Service::Count => {
            let count = socket.recv_slice(&mut buffer).unwrap_or(0);
            assert!(buffer[..count] == *patterned_from(one.done, count), "bytes as they were sent");
            one.done += count;
            moved += count;
            if ended && !one.counted {
                one.counted = true;
                socket.send_slice(&(one.done as u64).to_be_bytes()).unwrap();
                socket.close();
            }
        }
        Service::Source(total) => {
            let next = patterned_from(one.done, (total - one.done).min(64 << 10));
            let count = socket.send_slice(next).unwrap_or(0);
            one.done += count;
            moved += count;
            if one.done == total {
                socket.close();
            }
            moved += socket.recv_slice(&mut buffer).unwrap_or(0);
        }
        Service::Slow => {
            if resumed {
                moved += socket.recv_slice(&mut buffer).unwrap_or(0);
            }
        }
        Service::Reset => {
            if socket.can_recv() {
                socket.abort();
            }
        }
    }
    moved > 0
}

/// At most 64 KiB of the pattern, which repeats itself after that many.
fn patterned_from(start: usize, count: usize) -> &'static [u8] {
    static TWICE: LazyLock<Vec<u8>> = LazyLock::new(|| patterned(128 << 10));
    let start = start % (64 << 10);
    &TWICE[start..start + count]
}

/// The answer of a guest that takes a SYN for a segment of a connection that it still has: an ACK of something else.
fn challenge_ack(syn: &[u8]) -> Vec<u8> {
    let mut answer = vec![0; 40];
    answer[..20].copy_from_slice(&syn[..20]);
    answer[2..4].copy_from_slice(&40u16.to_be_bytes());
    answer[12..16].copy_from_slice(&GUEST_IP.octets());
    answer[16..20].copy_from_slice(&HERE_IP.octets());
    answer[20..22].copy_from_slice(&syn[22..24]);
    answer[22..24].copy_from_slice(&syn[20..22]);
    answer[24..28].copy_from_slice(&77u32.to_be_bytes());
    answer[28..32].copy_from_slice(&99u32.to_be_bytes());
    answer[32] = 5 << 4;
    answer[33] = 0x10;
    answer[34] = 1;
    let mut ip = smoltcp::wire::Ipv4Packet::new_unchecked(&mut answer[..]);
    ip.fill_checksum();
    let mut tcp = smoltcp::wire::TcpPacket::new_unchecked(&mut answer[20..]);
    tcp.fill_checksum(&GUEST_IP.into(), &HERE_IP.into());
    answer
}

fn put_frame<R>(out: &mut Vec<u8>, ethertype: u16, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
    out.extend_from_slice(&((14 + length) as u32).to_be_bytes());
    out.extend_from_slice(&HERE_MAC);
    out.extend_from_slice(&GUEST_MAC);
    out.extend_from_slice(&ethertype.to_be_bytes());
    let start = out.len();
    out.resize(start + length, 0);
    fill(&mut out[start..])
}

/// An Ethernet frame of the guest, without its length.
pub fn frame(ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_frame(&mut out, ethertype, packet.len(), |space| space.copy_from_slice(packet));
    out.split_off(4)
}

impl Device for Cable {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Leaving<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Arrived, Leaving<'_>)> {
        let packet = self.arrived.pop_front()?;
        Some((Arrived(packet), Leaving(&mut self.leaving)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Leaving<'_>> {
        (self.leaving.len() < 1 << 20).then_some(Leaving(&mut self.leaving))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities
    }
}

struct Arrived(Vec<u8>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

struct Leaving<'a>(&'a mut Vec<u8>);

impl TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        put_frame(self.0, 0x0800, length, fill)
    }
}

/// Waits until something holds; fails after ten seconds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while !holds() {
        assert!(tokio::time::Instant::now() < limit, "not within ten seconds: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

/// Ten seconds, then the test fails instead of hanging.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let limit = std::time::Duration::from_secs(10);
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("not within ten seconds: {what}"))
}

/// The kind of an error.
pub fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> io::ErrorKind {
    result.unwrap_err().kind()
}
