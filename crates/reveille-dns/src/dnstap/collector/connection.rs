//! One sender, from its handshake to its end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::Room;
use crate::dnstap::frames::{ControlType, FrameError, FrameFault, Session, Step, StreamKind, put_control};
use crate::hold::stopped;
use crate::places::Seat;

/// Longest time from the connection to START.
pub(super) const HANDSHAKE_MS_MAX: u64 = 5_000;
/// Longest time from the first byte of a frame to its last one.
pub(super) const FRAME_MS_MAX: u64 = 10_000;
/// Longest time without a frame. Long, as a quiet server's next frame may be the one that matters, and whoever sends on
/// a connection that was closed loses some; places for others are made sooner.
pub(super) const IDLE_MS_MAX: u64 = 24 * 3_600_000;
/// Longest wait for a sender to take an answer of some bytes.
const ANSWER_MS_MAX: u64 = 1_000;
/// Read at a time, and taken in under one lock: some 500 messages.
const READ_BYTES: usize = 65_536;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("no START within {HANDSHAKE_MS_MAX} ms")]
    LateStart,
    #[error("frame {0} at byte {1}: not whole within {FRAME_MS_MAX} ms")]
    LateFrame(u64, u64),
    #[error("nothing was sent for {IDLE_MS_MAX} ms")]
    Idle,
    #[error("another sender needed the place")]
    Displaced,
    #[error(transparent)]
    Broken(#[from] io::Error),
}

/// Takes in what a sender has to say, until it or the collector ends.
pub(super) async fn receive<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    peer: String,
    room: &Room,
    seat: Arc<Seat>,
    mut stop: watch::Receiver<bool>,
) {
    room.tally.connections.fetch_add(1, Relaxed);
    room.tally.open.fetch_add(1, Relaxed);
    let mut sender = Sender {
        stream,
        peer: &peer,
        room,
        session: Session::new(StreamKind::Socket),
        unread: Vec::new(),
        began: Instant::now(),
    };
    let ended = tokio::select! {
        ended = sender.converse(&seat) => ended,
        () = stopped(&mut stop) => Ok(()),
    };
    room.tally.open.fetch_sub(1, Relaxed);
    match ended {
        // Senders that are killed or restarted just go.
        Ok(()) | Err(End::Broken(_) | End::Idle | End::Displaced) => {}
        Err(end @ (End::Frame(_) | End::LateStart | End::LateFrame(..))) => {
            room.tally.broken.fetch_add(1, Relaxed);
            room.note(&peer, &end);
        }
    }
}

struct Sender<'r, S> {
    stream: S,
    peer: &'r str,
    room: &'r Room,
    session: Session,
    /// What was read and is no whole frame yet.
    unread: Vec<u8>,
    /// When the connection, or the frame in `unread`, began; or when the last frame ended.
    began: Instant,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Sender<'_, S> {
    async fn converse(&mut self, seat: &Seat) -> Result<(), End> {
        loop {
            if self.unread.is_empty() {
                // What a long frame took is given back.
                self.unread.shrink_to(2 * READ_BYTES);
                seat.rest();
            }
            self.unread.reserve(READ_BYTES);
            let (was_empty, deadline) = (self.unread.is_empty(), self.deadline());
            let read = tokio::select! {
                read = self.stream.read_buf(&mut self.unread) => read?,
                () = seat.lost() => return Err(End::Displaced),
                () = sleep_until(deadline) => return Err(self.late()),
            };
            if read == 0 {
                // Cut off between two frames it is only a sender that ended without a word.
                let is_cut = !self.unread.is_empty();
                return if is_cut { Err(self.session.fault(FrameFault::Cut).into()) } else { Ok(()) };
            }
            if !seat.work() {
                return Err(End::Displaced);
            }
            if was_empty && self.session.is_running() {
                self.began = Instant::now();
            }
            let before = self.session.frame();
            while let Some(answer) = self.take_in()? {
                let mut bytes = Vec::new();
                put_control(answer, &mut bytes);
                let sent = timeout(Duration::from_millis(ANSWER_MS_MAX), self.stream.write_all(&bytes)).await;
                if answer == ControlType::Finish {
                    // Whoever does not wait for it has gone already.
                    return Ok(());
                }
                sent.map_err(io::Error::from)??;
            }
            if self.session.may_end() {
                return Ok(());
            }
            if self.session.frame() > before && self.session.is_running() {
                self.began = Instant::now();
            }
        }
    }

    /// Takes the whole frames in, up to one that wants an answer.
    fn take_in(&mut self) -> Result<Option<ControlType>, FrameError> {
        let now = (self.room.clock)();
        let view = self.room.view.load();
        let mut intake = self.room.intake();
        let mut taken = 0;
        let mut answer = Ok(None);
        while let Some(rest) = self.unread.get(taken..).filter(|rest| !rest.is_empty()) {
            let (frame, offset) = (self.session.frame(), self.session.offset());
            let (step, length) = match self.session.next(rest) {
                Ok(Some(next)) => next,
                Ok(None) => break,
                Err(error) => {
                    answer = Err(error);
                    break;
                }
            };
            match step {
                Step::Nothing => {}
                Step::Payload(payload) => {
                    if let Err(error) = intake.take(&view, payload, self.peer, now) {
                        self.room.note(self.peer, &format_args!("frame {frame} at byte {offset}: {error}"));
                    }
                }
                Step::Accept => answer = Ok(Some(ControlType::Accept)),
                Step::Over { finish } => answer = Ok(finish.then_some(ControlType::Finish)),
            }
            taken += length;
            if !matches!(answer, Ok(None)) || self.session.may_end() {
                break;
            }
        }
        drop(intake);
        self.unread.drain(..taken);
        answer
    }

    fn deadline(&self) -> Instant {
        let ms_max = match (self.session.is_running(), self.unread.is_empty()) {
            (false, _) => HANDSHAKE_MS_MAX,
            (true, false) => FRAME_MS_MAX,
            (true, true) => IDLE_MS_MAX,
        };
        self.began + Duration::from_millis(ms_max)
    }

    fn late(&self) -> End {
        match (self.session.is_running(), self.unread.is_empty()) {
            (false, _) => End::LateStart,
            (true, false) => End::LateFrame(self.session.frame(), self.session.offset()),
            (true, true) => End::Idle,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hash::RandomState;
    use std::sync::{Arc, Mutex};

    use reveille_core::model::Timestamp;
    use tokio::io::DuplexStream;

    use super::*;
    use crate::dnstap::intake::Intake;
    use crate::dnstap::{TCP_SENDERS_MAX, UNIX_SENDERS_MAX};
    use crate::places::Places;

    fn room() -> Room {
        let now = Timestamp::from_ms(1_795_000_000_000);
        Room {
            intake: Mutex::new(Intake::new(&[], 1_000, RandomState::new(), now)),
            view: Arc::default(),
            clock: Arc::new(move || now),
            tally: Default::default(),
            allow: Vec::new(),
            unix_places: Arc::new(tokio::sync::Semaphore::new(UNIX_SENDERS_MAX)),
            tcp_places: Places::new(TCP_SENDERS_MAX.0, TCP_SENDERS_MAX.1),
            faults: Mutex::default(),
        }
    }

    fn control(control: ControlType) -> Vec<u8> {
        let mut out = Vec::new();
        put_control(control, &mut out);
        out
    }

    /// Serves a sender that does its part; gives how long that lasted, and its fault.
    async fn served<C: Future>(client: impl FnOnce(DuplexStream) -> C) -> (u64, Option<String>) {
        let (room, (ours, theirs)) = (room(), tokio::io::duplex(4_096));
        let (_stop, stopped) = watch::channel(false);
        let begun = Instant::now();
        let serving = async {
            receive(ours, "test".to_owned(), &room, Arc::default(), stopped).await;
            u64::try_from(begun.elapsed().as_millis()).unwrap()
        };
        tokio::pin!(serving);
        let lasted = tokio::select! {
            lasted = &mut serving => lasted,
            _ = client(theirs) => serving.await,
        };
        let status = (room.tally.open.load(Relaxed), room.tally.broken.load(Relaxed));
        let fault = room.faults.lock().unwrap().last.clone();
        assert_eq!(status, (0, u64::from(fault.is_some())));
        (lasted, fault)
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_that_is_slow_loses_its_connection_and_an_idle_one_keeps_it() {
        let (lasted, fault) = served(async |_stream| std::future::pending::<()>().await).await;
        assert_eq!(
            (lasted, fault.as_deref()),
            (HANDSHAKE_MS_MAX, Some("from test: no START within 5000 ms"))
        );
        // However often something comes.
        let (lasted, _) = served(async |mut stream| {
            for byte in control(ControlType::Start) {
                stream.write_all(&[byte]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(1_000)).await;
            }
        })
        .await;
        assert_eq!(lasted, HANDSHAKE_MS_MAX);
        let (lasted, fault) = served(async |mut stream| {
            stream.write_all(&control(ControlType::Start)).await.unwrap();
            // Between frames there is time.
            tokio::time::sleep(Duration::from_millis(IDLE_MS_MAX - 1)).await;
            stream.write_all(&[0, 0, 0, 9, 1]).await.unwrap();
            std::future::pending::<()>().await;
        })
        .await;
        assert_eq!(lasted, IDLE_MS_MAX - 1 + FRAME_MS_MAX);
        assert_eq!(fault.unwrap(), "from test: frame 2 at byte 42: not whole within 10000 ms");
        let (lasted, fault) = served(async |mut stream| {
            stream.write_all(&control(ControlType::Start)).await.unwrap();
            std::future::pending::<()>().await;
        })
        .await;
        assert_eq!((lasted, fault), (IDLE_MS_MAX, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_is_cut_off_is_a_fault_and_one_that_is_whole_is_not() {
        for (sent, expected) in [
            (&[][..], None),
            (&[0, 0, 0][..], Some("from test: frame 2 at byte 42: the stream ends within it")),
        ] {
            let bytes = [&control(ControlType::Start), sent].concat();
            let (lasted, fault) = served(async |mut stream| stream.write_all(&bytes).await.unwrap()).await;
            assert_eq!((lasted, fault.as_deref()), (0, expected));
        }
    }
}
