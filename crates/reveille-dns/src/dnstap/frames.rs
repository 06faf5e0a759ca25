//! Frame Streams: what dnstap messages are carried in, on sockets and in files. Pure.
//!
//! ```text
//!   data frame       length (4 bytes, not 0)   payload
//!   control frame    0 (4 bytes)   length (4 bytes)   type (4 bytes)   fields: type, length, value
//!
//!   file                 START data… STOP
//!   socket, one way      START data… STOP
//!   socket, both ways    READY → ← ACCEPT   START data… STOP → ← FINISH
//! ```
//!
//! Numbers are big-endian. The format is defined by the library fstrm (`fstrm/control.h`, `fstrm/reader.h`); the limit of
//! control frames and of content types is the one there.

use std::fmt;

/// What is in the frames, as control frames name it.
pub const CONTENT_TYPE: &[u8] = b"protobuf:dnstap.Dnstap";
/// Longest control frame, without its two lengths; `FSTRM_CONTROL_FRAME_LENGTH_MAX`.
pub const CONTROL_BYTES_MAX: usize = 512;
/// Longest content type in it; `FSTRM_CONTROL_FIELD_CONTENT_TYPE_LENGTH_MAX`.
pub const CONTENT_TYPE_BYTES_MAX: usize = 256;
/// Longest data frame: two DNS messages, and as much again for all else.
pub const DATA_BYTES_MAX: usize = 262_144;

/// Length of a length.
const NUMBER_BYTES: usize = 4;
/// The one type of field there is.
const FIELD_CONTENT_TYPE: u32 = 1;

/// What a control frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlType {
    /// The reader takes what the writer offered.
    Accept,
    /// Data frames follow.
    Start,
    /// No more data frames follow.
    Stop,
    /// The writer offers content.
    Ready,
    /// The reader has all frames before STOP.
    Finish,
}

impl ControlType {
    const fn number(self) -> u32 {
        match self {
            Self::Accept => 1,
            Self::Start => 2,
            Self::Stop => 3,
            Self::Ready => 4,
            Self::Finish => 5,
        }
    }

    const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Accept,
            2 => Self::Start,
            3 => Self::Stop,
            4 => Self::Ready,
            5 => Self::Finish,
            _ => return None,
        })
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Accept => "ACCEPT",
            Self::Start => "START",
            Self::Stop => "STOP",
            Self::Ready => "READY",
            Self::Finish => "FINISH",
        }
    }
}

/// A frame that is wrong, and where it is. One sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("frame {frame} at byte {offset}: {fault}")]
pub struct FrameError {
    /// Its number in the stream, from 1 on.
    pub frame: u64,
    /// Where it begins, in bytes from the start of the stream.
    pub offset: u64,
    /// What is wrong with it.
    pub fault: FrameFault,
}

/// What is wrong with a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// Its length is over the limit.
    #[error("a data frame of {0} bytes; at most {DATA_BYTES_MAX} are read")]
    LongData(u32),
    /// Its length is over the limit, or none at all.
    #[error("a control frame of {0} bytes; there are ones of 4 to {CONTROL_BYTES_MAX}")]
    ControlLength(u32),
    /// It is of no known type.
    #[error("a control frame of the unknown type {0}")]
    ControlType(u32),
    /// Its fields are malformed.
    #[error("the fields of a {0} frame do not fill it")]
    Fields(&'static str),
    /// It carries something else.
    #[error("the content is `{0}`, not `protobuf:dnstap.Dnstap`")]
    Content(String),
    /// It is not what belongs there.
    #[error("{found} where {wanted} belongs")]
    Unexpected {
        /// What came.
        found: &'static str,
        /// What belongs there.
        wanted: &'static str,
    },
    /// The stream ends within it.
    #[error("the stream ends within it")]
    Cut,
}

/// What a frame says about its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content<'b> {
    /// Nothing: anything may come.
    Unsaid,
    Dnstap,
    /// The first of what is offered.
    Other(&'b [u8]),
}

enum Frame<'b> {
    Control(ControlType, Content<'b>),
    Data(&'b [u8]),
}

impl Frame<'_> {
    fn word(&self) -> &'static str {
        match self {
            Self::Control(control, _) => control.word(),
            Self::Data(_) => "a data frame",
        }
    }
}

/// Which end of which stream reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamKind {
    /// A file: nobody hears an answer. Several streams may lie in it, one after another.
    File,
    /// A connection: one stream, both ways or one way as the writer likes.
    Socket,
    /// A connection on which this end writes frames: only what the reader answers comes in.
    Answers,
}

/// What comes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'b> {
    /// Nothing to do.
    Nothing,
    /// The writer waits for ACCEPT.
    Accept,
    /// The payload of a data frame.
    Payload(&'b [u8]),
    /// The stream is over; the writer waits for FINISH if it began with READY.
    Over {
        /// It did.
        finish: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// READY, or START at once.
    Opening,
    /// START after READY.
    Accepted,
    /// Data.
    Running,
    /// Nothing more.
    Over,
}

/// The reading end of one stream: where it is, and what may come next.
#[derive(Debug, Clone)]
pub struct Session {
    kind: StreamKind,
    stage: Stage,
    both_ways: bool,
    frame: u64,
    offset: u64,
}

impl Session {
    /// A stream from its start.
    pub const fn new(kind: StreamKind) -> Self {
        Self { kind, stage: Stage::Opening, both_ways: false, frame: 1, offset: 0 }
    }

    /// Number of the next frame, from 1 on.
    pub const fn frame(&self) -> u64 {
        self.frame
    }

    /// Where the next frame begins, in bytes from the start of the stream.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the writer has begun with data.
    pub fn is_running(&self) -> bool {
        self.stage == Stage::Running
    }

    /// Whether the stream may end where it is now.
    pub fn may_end(&self) -> bool {
        matches!((self.stage, self.kind), (Stage::Over, _) | (Stage::Opening, StreamKind::File))
    }

    /// What is wrong, at the frame that comes next.
    pub const fn fault(&self, fault: FrameFault) -> FrameError {
        FrameError { frame: self.frame, offset: self.offset, fault }
    }

    /// Takes the frame at the start of `bytes`, and tells of how many bytes it was; `None` if it is not all there. At
    /// most [`DATA_BYTES_MAX`] and 4 bytes more are needed.
    ///
    /// # Errors
    /// It is malformed or does not belong there. Nothing after it can be read.
    pub fn next<'b>(&mut self, bytes: &'b [u8]) -> Result<Option<(Step<'b>, usize)>, FrameError> {
        let Some((frame, length)) = frame_at(bytes).map_err(|fault| self.fault(fault))? else {
            return Ok(None);
        };
        let step = self.step(&frame).map_err(|fault| self.fault(fault))?;
        self.frame += 1;
        self.offset += length as u64;
        Ok(Some((step, length)))
    }

    fn step<'b>(&mut self, frame: &Frame<'b>) -> Result<Step<'b>, FrameFault> {
        use ControlType::{Accept, Finish, Ready, Start, Stop};
        let unexpected = |wanted| Err(FrameFault::Unexpected { found: frame.word(), wanted });
        let (stage, step) = match (self.kind, self.stage, frame) {
            (StreamKind::Socket, Stage::Opening, Frame::Control(Ready, content)) => {
                content.check()?;
                self.both_ways = true;
                (Stage::Accepted, Step::Accept)
            }
            (
                StreamKind::File | StreamKind::Socket,
                Stage::Opening | Stage::Accepted,
                Frame::Control(Start, content),
            ) => {
                content.check()?;
                (Stage::Running, Step::Nothing)
            }
            (StreamKind::File | StreamKind::Socket, Stage::Running, Frame::Data(payload)) => {
                (Stage::Running, Step::Payload(payload))
            }
            (StreamKind::File, Stage::Running, Frame::Control(Stop, _)) => {
                (Stage::Opening, Step::Over { finish: false })
            }
            (StreamKind::Socket, Stage::Running, Frame::Control(Stop, _)) => {
                (Stage::Over, Step::Over { finish: self.both_ways })
            }
            (StreamKind::Answers, Stage::Opening, Frame::Control(Accept, content)) => {
                content.check()?;
                (Stage::Running, Step::Nothing)
            }
            (StreamKind::Answers, Stage::Running, Frame::Control(Finish, _)) => {
                (Stage::Over, Step::Over { finish: false })
            }
            (StreamKind::File, Stage::Opening, _) => return unexpected("START"),
            (StreamKind::Socket, Stage::Opening, _) => return unexpected("READY or START"),
            (StreamKind::Answers, Stage::Opening, _) => return unexpected("ACCEPT"),
            (StreamKind::Answers, Stage::Running, _) => return unexpected("FINISH"),
            (_, Stage::Accepted, _) => return unexpected("START"),
            (_, Stage::Running, _) => return unexpected("a data frame or STOP"),
            (_, Stage::Over, _) => return unexpected("the end of the stream"),
        };
        self.stage = stage;
        Ok(step)
    }
}

impl Content<'_> {
    fn check(self) -> Result<(), FrameFault> {
        match self {
            Self::Unsaid | Self::Dnstap => Ok(()),
            Self::Other(other) => Err(FrameFault::Content(other.escape_ascii().to_string())),
        }
    }
}

/// The frame at the start of `bytes`, and its length; `None` if it is not all there.
fn frame_at(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, FrameFault> {
    let Some((length, rest)) = number(bytes) else { return Ok(None) };
    if length != 0 {
        let payload_bytes = bounded(length, DATA_BYTES_MAX).ok_or(FrameFault::LongData(length))?;
        let payload = rest.get(..payload_bytes);
        return Ok(payload.map(|payload| (Frame::Data(payload), NUMBER_BYTES + payload_bytes)));
    }
    let Some((length, rest)) = number(rest) else { return Ok(None) };
    let control_bytes = bounded(length, CONTROL_BYTES_MAX)
        .filter(|length| *length >= NUMBER_BYTES)
        .ok_or(FrameFault::ControlLength(length))?;
    let Some(body) = rest.get(..control_bytes) else { return Ok(None) };
    let Some((kind, fields)) = number(body) else { return Ok(None) };
    let control = ControlType::from_number(kind).ok_or(FrameFault::ControlType(kind))?;
    let content = content_of(fields).ok_or(FrameFault::Fields(control.word()))?;
    Ok(Some((Frame::Control(control, content), 2 * NUMBER_BYTES + control_bytes)))
}

/// What the fields of a control frame say of the content; `None` if they are malformed. READY may offer several.
fn content_of(mut fields: &[u8]) -> Option<Content<'_>> {
    let mut content = Content::Unsaid;
    while !fields.is_empty() {
        let (kind, rest) = number(fields)?;
        let (length, rest) = number(rest)?;
        let (value, rest) = rest.split_at_checked(bounded(length, CONTENT_TYPE_BYTES_MAX)?)?;
        if kind != FIELD_CONTENT_TYPE {
            return None;
        }
        content = match content {
            _ if value == CONTENT_TYPE => Content::Dnstap,
            Content::Unsaid => Content::Other(value),
            Content::Dnstap | Content::Other(_) => content,
        };
        fields = rest;
    }
    Some(content)
}

fn bounded(length: u32, max: usize) -> Option<usize> {
    usize::try_from(length).ok().filter(|length| *length <= max)
}

fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<NUMBER_BYTES>()?;
    Some((u32::from_be_bytes(*number), rest))
}

/// Appends a control frame.
pub fn put_control(control: ControlType, out: &mut Vec<u8>) {
    let content: &[u8] = match control {
        ControlType::Ready | ControlType::Accept | ControlType::Start => CONTENT_TYPE,
        ControlType::Stop | ControlType::Finish => &[],
    };
    let mut put = |number: usize| out.extend(u32::try_from(number).unwrap_or(0).to_be_bytes());
    let fields = if content.is_empty() { 0 } else { 2 * NUMBER_BYTES + content.len() };
    put(0);
    put(NUMBER_BYTES + fields);
    out.extend(control.number().to_be_bytes());
    if !content.is_empty() {
        out.extend(FIELD_CONTENT_TYPE.to_be_bytes());
        out.extend(u32::try_from(content.len()).unwrap_or(0).to_be_bytes());
        out.extend(content);
    }
}

/// Appends a data frame whose payload `write` appends; nothing, and false, if that is empty or too long.
pub fn put_data(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> bool {
    let start = out.len();
    out.extend([0; NUMBER_BYTES]);
    write(out);
    let payload_bytes = out.len() - start - NUMBER_BYTES;
    let length = u32::try_from(payload_bytes).unwrap_or(0).to_be_bytes();
    match out.get_mut(start..start + NUMBER_BYTES) {
        Some(place) if (1..=DATA_BYTES_MAX).contains(&payload_bytes) => place.copy_from_slice(&length),
        Some(_) | None => {
            out.truncate(start);
            return false;
        }
    }
    true
}

impl fmt::Display for ControlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(control: ControlType) -> Vec<u8> {
        let mut out = Vec::new();
        put_control(control, &mut out);
        out
    }

    fn data(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        assert!(put_data(&mut out, |out| out.extend(payload)));
        out
    }

    /// What comes of a stream, and where it fails.
    fn read(kind: StreamKind, stream: &[u8]) -> (Vec<String>, Option<String>) {
        let (mut session, mut at, mut steps) = (Session::new(kind), 0, Vec::new());
        loop {
            match session.next(&stream[at..]) {
                Ok(Some((step, length))) => {
                    steps.push(match step {
                        Step::Payload(payload) => payload.escape_ascii().to_string(),
                        Step::Nothing | Step::Accept | Step::Over { .. } => format!("{step:?}"),
                    });
                    at += length;
                }
                Ok(None) => return (steps, None),
                Err(error) => return (steps, Some(error.to_string())),
            }
        }
    }

    /// As `fstrm_capture -d -d -d -d -d` of fstrm 0.6.1 prints them.
    #[test]
    fn control_frames_are_those_of_the_library() {
        assert_eq!(
            control(ControlType::Ready),
            b"\x00\x00\x00\x00\x00\x00\x00\"\x00\x00\x00\x04\x00\x00\x00\x01\x00\x00\x00\x16protobuf:dnstap.Dnstap"
        );
        assert_eq!(control(ControlType::Accept)[11], 1);
        assert_eq!(control(ControlType::Start)[11], 2);
        assert_eq!(control(ControlType::Stop), b"\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x03");
        assert_eq!(control(ControlType::Finish), b"\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x05");
    }

    #[test]
    fn streams_go_as_sockets_and_files_have_them() {
        use ControlType::{Accept, Finish, Ready, Start, Stop};
        let both = [control(Ready), control(Start), data(b"one"), data(b"two"), control(Stop)].concat();
        let steps = ["Accept", "Nothing", "one", "two", "Over { finish: true }"];
        let (seen, failed) = read(StreamKind::Socket, &both);
        assert_eq!((seen, failed), (steps.map(str::to_owned).to_vec(), None));
        let one = [control(Start), data(b"one"), control(Stop)].concat();
        let (seen, failed) = read(StreamKind::Socket, &one);
        assert_eq!((seen.join(" "), failed), ("Nothing one Over { finish: false }".to_owned(), None));
        // Files may be put behind each other.
        let (seen, failed) = read(StreamKind::File, &one.repeat(2));
        assert_eq!((seen.len(), failed), (6, None));
        let (seen, failed) = read(StreamKind::Answers, &[control(Accept), control(Finish)].concat());
        assert_eq!((seen.len(), failed), (2, None));
    }

    #[test]
    fn a_frame_that_is_cut_is_waited_for_at_every_byte() {
        let stream = [control(ControlType::Ready), control(ControlType::Start), data(b"abc")].concat();
        for end in 0..stream.len() {
            let (seen, failed) = read(StreamKind::Socket, &stream[..end]);
            assert!(seen.len() < 3 && failed.is_none(), "{end}: {seen:?} {failed:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let start = control(ControlType::Start);
        let field = |kind: u8, length: u8, value: &[u8]| {
            let size = u8::try_from(12 + value.len()).unwrap();
            [&[0, 0, 0, 0, 0, 0, 0, size, 0, 0, 0, 2, 0, 0, 0, kind, 0, 0, 0, length], value].concat()
        };
        let long = 262_145u32.to_be_bytes();
        let cases = [
            ([&start[..], &data(b"x"), &long].concat(), "frame 3 at byte 47: a data frame of 262145 bytes"),
            (b"\0\0\0\0\0\0\x02\x01".to_vec(), "frame 1 at byte 0: a control frame of 513 bytes; there are"),
            (b"\0\0\0\0\0\0\0\x03".to_vec(), "frame 1 at byte 0: a control frame of 3 bytes"),
            (b"\0\0\0\0\0\0\0\x04\0\0\0\x09".to_vec(), "a control frame of the unknown type 9"),
            (field(1, 9, b"x"), "the fields of a START frame do not fill it"),
            (field(2, 1, b"x"), "the fields of a START frame do not fill it"),
            (field(1, 4, b"text"), "the content is `text`, not `protobuf:dnstap.Dnstap`"),
            (data(b"x"), "frame 1 at byte 0: a data frame where READY or START belongs"),
            (start.repeat(2), "frame 2 at byte 42: START where a data frame or STOP belongs"),
            (control(ControlType::Finish), "FINISH where READY or START belongs"),
        ];
        for (stream, expected) in cases {
            let (_, failed) = read(StreamKind::Socket, &stream);
            assert!(
                failed.as_ref().is_some_and(|said| said.contains(expected)),
                "{failed:?}, not {expected}"
            );
        }
        let (_, failed) = read(StreamKind::File, &control(ControlType::Ready));
        assert_eq!(failed.unwrap(), "frame 1 at byte 0: READY where START belongs");
    }

    #[test]
    fn several_offers_are_enough_if_one_of_them_fits() {
        let mut ready = b"\0\0\0\0\0\0\0\x30\0\0\0\x04\0\0\0\x01\0\0\0\x06\0other".to_vec();
        ready.extend(b"\0\0\0\x01\0\0\0\x16protobuf:dnstap.Dnstap");
        assert_eq!(read(StreamKind::Socket, &ready).0, ["Accept"]);
    }

    #[test]
    fn no_frame_is_made_that_no_reader_would_take() {
        let mut out = vec![7];
        assert!(!put_data(&mut out, |_| {}));
        assert!(!put_data(&mut out, |out| out.resize(out.len() + DATA_BYTES_MAX + 1, 0)));
        assert_eq!(out, [7]);
    }
}
