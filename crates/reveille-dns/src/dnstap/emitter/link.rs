//! Where frames go: a collector that shakes hands, or a file that does not grow without end.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::dnstap::config::Destination;
use crate::dnstap::frames::{ControlType, FrameError, Session, StreamKind, put_control};

/// Longest that a collector may take to be connected to, and then to accept.
const OPEN_MS_MAX: u64 = 2_000;
/// Most bytes of an answer that are kept: a control frame is 520 bytes at most.
const ANSWER_BYTES_MAX: usize = 1_024;

/// Why nothing can be handed over.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("no connection: {0}")]
    NoConnection(#[source] io::Error),
    #[error("no connection, or no handshake, within {OPEN_MS_MAX} ms")]
    LateOpen,
    #[error("what the collector answers: {0}")]
    Answer(#[from] FrameError),
    #[error("the collector closed the connection")]
    Closed,
    #[error("the connection broke: {0}")]
    Broken(#[source] io::Error),
    #[error("the collector did not take what it was sent within {0} ms")]
    Slow(u128),
    #[error("the file cannot be written: {0}")]
    File(#[source] io::Error),
}

/// A stream both ways.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// Where frames go.
pub(super) enum Link {
    Collector(Collector),
    File(TapFile),
}

/// A collector that has accepted.
pub(super) struct Collector {
    wire: Box<dyn Wire>,
    session: Session,
    unread: Vec<u8>,
}

impl Link {
    /// Connects and shakes hands, or opens the file; goes on with one that is `open` already.
    pub async fn open(
        to: &Destination,
        file_bytes_max: u64,
        open: Option<TapFile>,
    ) -> Result<Self, LinkError> {
        if let Some(file) = open {
            return Ok(Self::File(file));
        }
        let opening = async {
            let wire: Box<dyn Wire> = match to {
                Destination::Unix(path) => {
                    Box::new(UnixStream::connect(path).await.map_err(LinkError::NoConnection)?)
                }
                Destination::Tcp(address) => {
                    let stream = TcpStream::connect(address).await.map_err(LinkError::NoConnection)?;
                    // What is written is a chunk; there is nothing to wait for.
                    stream.set_nodelay(true).map_err(LinkError::Broken)?;
                    Box::new(stream)
                }
                Destination::File(path) => {
                    return TapFile::open(path, file_bytes_max).map(Self::File).map_err(LinkError::File);
                }
            };
            let session = Session::new(StreamKind::Answers);
            let mut collector = Collector { wire, session, unread: Vec::new() };
            collector.begin().await?;
            Ok(Self::Collector(collector))
        };
        timeout(Duration::from_millis(OPEN_MS_MAX), opening).await.unwrap_or(Err(LinkError::LateOpen))
    }

    /// Hands frames over.
    pub async fn write(&mut self, frames: &[u8], longest: Duration) -> Result<(), LinkError> {
        match self {
            Self::Collector(collector) => match timeout(longest, collector.wire.write_all(frames)).await {
                Ok(written) => written.map_err(LinkError::Broken),
                Err(_) => Err(LinkError::Slow(longest.as_millis())),
            },
            Self::File(file) => file.write(frames).map_err(LinkError::File),
        }
    }

    /// The file, to be written to later.
    pub fn into_file(self) -> Option<TapFile> {
        match self {
            Self::Collector(_) => None,
            Self::File(file) => Some(file),
        }
    }

    /// Waits until the collector goes, which has nothing to say as long as frames come.
    pub async fn lost(&mut self) -> LinkError {
        match self {
            Self::Collector(collector) => match collector.answer().await {
                Ok(()) => LinkError::Closed,
                Err(error) => error,
            },
            Self::File(_) => std::future::pending().await,
        }
    }

    /// Says that nothing more comes, and waits until the collector has taken everything.
    pub async fn finish(&mut self) -> Result<(), LinkError> {
        match self {
            Self::Collector(collector) => {
                collector.say(&[ControlType::Stop]).await?;
                collector.answer().await
            }
            Self::File(file) => file.end().map_err(LinkError::File),
        }
    }
}

impl Collector {
    async fn begin(&mut self) -> Result<(), LinkError> {
        self.say(&[ControlType::Ready]).await?;
        self.answer().await?;
        self.say(&[ControlType::Start]).await
    }

    async fn say(&mut self, controls: &[ControlType]) -> Result<(), LinkError> {
        let mut bytes = Vec::new();
        controls.iter().for_each(|control| put_control(*control, &mut bytes));
        self.wire.write_all(&bytes).await.map_err(LinkError::Broken)
    }

    /// Waits for the next thing that the collector says.
    async fn answer(&mut self) -> Result<(), LinkError> {
        loop {
            if let Some((_, length)) = self.session.next(&self.unread)? {
                self.unread.drain(..length);
                return Ok(());
            }
            let mut bytes = [0; ANSWER_BYTES_MAX];
            let read = self.wire.read(&mut bytes).await.map_err(LinkError::Broken)?;
            if read == 0 {
                return Err(LinkError::Closed);
            }
            // Only what is no whole control frame yet stays, and data is no answer.
            self.unread.extend(bytes.iter().take(read));
            if self.unread.len() > 2 * ANSWER_BYTES_MAX {
                return Err(LinkError::Closed);
            }
        }
    }
}

/// A file of whole frames. What was there before is kept as `FILE.1`.
pub(super) struct TapFile {
    file: File,
    path: PathBuf,
    bytes: u64,
    bytes_max: u64,
}

impl TapFile {
    fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        match std::fs::metadata(path) {
            Ok(found) if found.is_file() && found.len() > 0 => std::fs::rename(path, older(path))?,
            Ok(found) if !found.is_file() => return Err(io::Error::other("it is no regular file")),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        // Who asked what is nobody else's affair.
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let mut opened = Self { file, path: path.to_owned(), bytes: 0, bytes_max };
        opened.control(ControlType::Start)?;
        Ok(opened)
    }

    /// Writes frames, into a new file if this one would be too long.
    fn write(&mut self, frames: &[u8]) -> io::Result<()> {
        if self.bytes + frames.len() as u64 > self.bytes_max {
            let next = Self::open(&self.path, self.bytes_max)?;
            // Under its other name by now.
            self.end()?;
            *self = next;
        }
        self.append(frames)
    }

    /// Ends the stream.
    fn end(&mut self) -> io::Result<()> {
        self.control(ControlType::Stop)
    }

    fn control(&mut self, control: ControlType) -> io::Result<()> {
        let mut bytes = Vec::new();
        put_control(control, &mut bytes);
        self.append(&bytes)
    }

    /// All of it or nothing: a part of a frame would make what follows unreadable.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            self.file.set_len(self.bytes)?;
            self.file.seek(SeekFrom::Start(self.bytes))?;
            return Err(error);
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}
