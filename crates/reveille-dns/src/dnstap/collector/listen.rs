//! Where senders come in: the unix socket, with who may use it, and TCP addresses.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Room;
use super::connection::receive;
use crate::places::Seat;

/// Pause after an error of accept (such as no file descriptors left), so that a lasting one does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Silence after which a host is asked whether it is still there, how often then, and how often in vain.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(10), 3);

/// Why there is no unix socket.
#[derive(Debug, thiserror::Error)]
pub enum UnixSocketError {
    /// Another process listens there.
    #[error("somebody listens on {} already; stop it or set another path under `observe.dnstap_in.unix`", .0.display())]
    Taken(PathBuf),
    /// Something else lies there.
    #[error("{} is no socket; remove it or set another path under `observe.dnstap_in.unix`", .0.display())]
    NoSocket(PathBuf),
    /// It cannot be made.
    #[error("cannot make the socket {}: {source}; its directory must be there and be writable", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A socket that listens; removed when dropped.
#[derive(Debug)]
pub(super) struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and number of the file, so that nobody else's is removed.
    file: (u64, u64),
}

impl UnixSocket {
    /// Makes it, in place of one that nobody listens on any more.
    pub fn open(path: &Path, mode: u32) -> Result<Self, UnixSocketError> {
        let failed = |source| UnixSocketError::Io { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
            Ok(found) if !found.file_type().is_socket() => {
                return Err(UnixSocketError::NoSocket(path.to_owned()));
            }
            Ok(_) if is_listened_on(path).map_err(failed)? => {
                return Err(UnixSocketError::Taken(path.to_owned()));
            }
            Ok(_) => fs::remove_file(path).map_err(failed)?,
        }
        // Until its mode is set it has at most that of the umask, with which others may not write to it.
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
        let made = fs::symlink_metadata(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned(), file: (made.dev(), made.ino()) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        let own = |found: &fs::Metadata| (found.dev(), found.ino()) == self.file;
        if fs::symlink_metadata(&self.path).is_ok_and(|found| own(&found)) {
            // If it stays, the next start removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether somebody accepts connections there. Never waits: a queue that is full is somebody's.
fn is_listened_on(path: &Path) -> io::Result<bool> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

/// Everything that is listened on.
pub(super) struct Listeners {
    pub tcp: Vec<TcpListener>,
    pub unix: Option<UnixSocket>,
}

/// Begins to accept, by a task for each. To be called inside the collector's runtime.
pub(super) fn accept(listeners: Listeners, room: &Arc<Room>, stop: &watch::Receiver<bool>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for listener in listeners.tcp {
        tasks.spawn(accept_tcp(listener, Arc::clone(room), stop.clone()));
    }
    if let Some(unix) = listeners.unix {
        tasks.spawn(accept_unix(unix, Arc::clone(room), stop.clone()));
    }
    tasks
}

async fn accept_tcp(listener: TcpListener, room: Arc<Room>, stop: watch::Receiver<bool>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return room.note("a TCP listener", &error),
    };
    let mut senders = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = senders.join_next() => continue,
        };
        let Ok((stream, peer)) = accepted else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let peer: SocketAddr = peer;
        let is_allowed = room.allow.iter().any(|network| network.contains(peer.ip()));
        let Some(place) = is_allowed.then(|| room.tcp_places.take(peer.ip())).flatten() else {
            room.tally.refused.fetch_add(1, Relaxed);
            if !is_allowed {
                room.note(&peer.ip().to_string(), &"it is in no network of observe.dnstap_in.allow");
            }
            continue;
        };
        let (time, interval, retries) = KEEPALIVE;
        let keepalive = TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries);
        // Without it a host that vanished keeps its place until somebody else needs it.
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        let (room, stop) = (Arc::clone(&room), stop.clone());
        senders.spawn(async move {
            receive(stream, peer.ip().to_canonical().to_string(), &room, place.seat(), stop).await;
            drop(place);
        });
    }
}

async fn accept_unix(unix: UnixSocket, room: Arc<Room>, stop: watch::Receiver<bool>) {
    let listener = match unix.listener.try_clone().and_then(tokio::net::UnixListener::from_std) {
        Ok(listener) => listener,
        Err(error) => return room.note("the unix socket", &error),
    };
    let mut senders = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = senders.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(place) = Arc::clone(&room.unix_places).try_acquire_owned() else {
            room.tally.refused.fetch_add(1, Relaxed);
            room.note("the unix socket", &"more senders than there are places for");
            continue;
        };
        let (room, stop) = (Arc::clone(&room), stop.clone());
        senders.spawn(async move {
            receive(stream, "unix".to_owned(), &room, Arc::<Seat>::default(), stop).await;
            drop(place);
        });
    }
}
