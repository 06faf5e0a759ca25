//! The file by which the command line on the daemon's host finds a token: both sides of the arrangement.
//!
//! The daemon makes a token at each start, writes it to a file that only its user can read, and removes it when
//! it stops. The place follows from the API's address, so `reveille --api http://127.0.0.1:8053 wake hello`
//! needs nothing else. Root finds the files of every user's daemon in `/run/user`, and its own in `/run`.
//!
//! Whoever reads such a file sends its content to the API's address. So that nobody can make root send some
//! other file there, only a regular file that holds exactly a token is taken.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::access::Token;

/// The environment variable that holds a token.
pub const TOKEN_VARIABLE: &str = "REVEILLE_TOKEN";
/// Longest token file that is read: a token, white space around it, and nothing else.
const FILE_BYTES_MAX: u64 = 256;
/// Most users whose runtime directories root looks into.
const USERS_MAX: usize = 1_024;

/// The directories in which token files may be, best first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places(Vec<PathBuf>);

/// Why a token file was not written or not read. It never tells the content.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// There is no directory to write it to.
    #[error("there is no place for the token file; set XDG_RUNTIME_DIR or HOME")]
    NoPlace,
    /// No directory took it.
    #[error("the token file {} cannot be written: {source}", path.display())]
    Write {
        /// The last one tried.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not there, or not for this user.
    #[error("the token file {} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others could have read it.
    #[error("the token file {} is open to other users; `chmod 600` it, and make a new token", path.display())]
    Open {
        /// The file.
        path: PathBuf,
    },
    /// It holds something else.
    #[error("the file {} holds no token: one is rvl_ and 64 hexadecimal digits", path.display())]
    NoToken {
        /// The file.
        path: PathBuf,
    },
    /// The variable holds something else.
    #[error("{TOKEN_VARIABLE} holds no token: one is rvl_ and 64 hexadecimal digits")]
    VariableNoToken,
}

impl Places {
    /// Those of this process: `/run/reveille` for root, `$XDG_RUNTIME_DIR/reveille`, `~/.local/state/reveille`.
    pub fn of_process() -> Self {
        let root = rustix::process::geteuid().is_root();
        let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let mut places = Vec::new();
        places.extend(root.then(|| PathBuf::from("/run/reveille")));
        places.extend(variable("XDG_RUNTIME_DIR").map(|dir| dir.join("reveille")));
        places.extend(variable("HOME").map(|home| home.join(".local/state/reveille")));
        Self(places)
    }

    /// The given directories.
    pub fn of(directories: Vec<PathBuf>) -> Self {
        Self(directories)
    }
}

// --- The daemon's side -----------------------------------------------------------------------------------------

/// A token file that is there as long as this value. After a crash it stays and is replaced at the next start.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    token: Token,
}

impl TokenFile {
    /// Writes `token` for the daemon whose API listens at `api`, in the first place that takes it.
    ///
    /// # Errors
    /// If none does.
    pub fn write(places: &Places, api: SocketAddr, token: Token) -> Result<Self, TokenFileError> {
        let mut failed = TokenFileError::NoPlace;
        for dir in &places.0 {
            let path = dir.join(file_name(api.ip(), api.port()));
            match write_private(dir, &path, &token) {
                Ok(()) => return Ok(Self { path, token }),
                Err(source) => failed = TokenFileError::Write { path, source },
            }
        }
        Err(failed)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        // Another daemon may have taken over the address, and with it the file.
        if read_token(&self.path).is_ok_and(|token| token == self.token)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the token file was not removed");
        }
    }
}

/// Writes a new file and renames it, so that a reader meets the old token or the new one, never half of one.
fn write_private(dir: &Path, path: &Path, token: &Token) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let owned = std::fs::metadata(dir)?;
    if owned.uid() != rustix::process::geteuid().as_raw() || owned.mode() & 0o022 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "other users may write to its directory",
        ));
    }
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}.new", std::process::id()));
    let new = PathBuf::from(new);
    let written = write_new(&new, token).and_then(|()| std::fs::rename(&new, path));
    if written.is_err() {
        // What is left of a failed try only takes up room; the error that counts is already known.
        let _ = std::fs::remove_file(&new);
    }
    written
}

fn write_new(new: &Path, token: &Token) -> io::Result<()> {
    match std::fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
    writeln!(file, "{}", token.secret())
}

// --- The command line's side -----------------------------------------------------------------------------------

/// The token to use: of `--token-file`, else of the variable's value, else of the file of a daemon of this host
/// that listens at one of `api`; `None` if there is none, which may be enough to look.
///
/// # Errors
/// If one was named and cannot be used.
pub fn find_token(
    named: Option<&Path>,
    variable: Option<&str>,
    places: &Places,
    api: &[SocketAddr],
) -> Result<Option<Token>, TokenFileError> {
    if let Some(path) = named {
        return read_token(path).map(Some);
    }
    if let Some(value) = variable {
        return value.trim().parse().map(Some).map_err(|_| TokenFileError::VariableNoToken);
    }
    let found = api.iter().flat_map(|address| candidates(places, *address));
    Ok(found.filter_map(|path| read_token(&path).ok()).next())
}

/// Reads a token from a file that only its owner can read.
///
/// # Errors
/// If it cannot be read, others can, or it holds no token.
pub fn read_token(path: &Path) -> Result<Token, TokenFileError> {
    let unreadable = |source| TokenFileError::Read { path: path.to_owned(), source };
    // Not waiting for the writer of a pipe that somebody put there.
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    let file: File = options.open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(TokenFileError::NoToken { path: path.to_owned() });
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(TokenFileError::Open { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(unreadable)?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    text.trim().parse().map_err(|_| TokenFileError::NoToken { path: path.to_owned() })
}

/// The files in which the token of a daemon could be that is reached at `api`.
fn candidates(places: &Places, api: SocketAddr) -> Vec<PathBuf> {
    let ip = api.ip().to_canonical();
    let mut listens = vec![ip];
    if ip.is_loopback() {
        // A daemon that listens on every address is reached here too.
        listens.extend([IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)]);
    }
    let mut dirs = places.0.clone();
    if rustix::process::geteuid().is_root()
        && let Ok(users) = std::fs::read_dir("/run/user")
    {
        dirs.extend(users.take(USERS_MAX).filter_map(|user| Some(user.ok()?.path().join("reveille"))));
    }
    let file =
        |dir: &PathBuf| listens.iter().map(|ip| dir.join(file_name(*ip, api.port()))).collect::<Vec<_>>();
    dirs.iter().flat_map(file).collect()
}

fn file_name(ip: IpAddr, port: u16) -> String {
    format!("{}-{port}.token", ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn api(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_command_line_finds_what_the_daemon_wrote_and_nothing_after_it_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let blocked = dir.path().join("blocked");
        std::fs::write(&blocked, b"").unwrap();
        let places = Places::of(vec![blocked.join("reveille"), dir.path().join("state/reveille")]);
        let token = Token::generate().unwrap();
        let file = TokenFile::write(&places, api("127.0.0.1:8053"), token.clone()).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(file.path()), 0o600);
        assert_eq!(mode(file.path().parent().unwrap()), 0o700);

        let find = |address| find_token(None, None, &places, &[api(address)]).unwrap();
        assert_eq!(find("127.0.0.1:8053"), Some(token.clone()));
        assert_eq!(find("127.0.0.1:8054"), None);
        assert_eq!(find("192.0.2.1:8053"), None);

        // A new start before the old file is gone, as after a crash: the new token replaces the old one, and
        // the late end of the old daemon does not take it away.
        let next = Token::generate().unwrap();
        let again = TokenFile::write(&places, api("127.0.0.1:8053"), next.clone()).unwrap();
        drop(file);
        assert_eq!(find("127.0.0.1:8053"), Some(next));
        drop(again);
        assert_eq!(find("127.0.0.1:8053"), None);
        assert_eq!(std::fs::read_dir(dir.path().join("state/reveille")).unwrap().count(), 0);
    }

    #[test]
    fn a_daemon_on_every_address_is_found_on_loopback() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::of(vec![dir.path().join("reveille")]);
        let token = Token::generate().unwrap();
        let _file = TokenFile::write(&places, api("0.0.0.0:8053"), token.clone()).unwrap();
        let found = find_token(None, None, &places, &[api("[::1]:8053"), api("127.0.0.1:8053")]).unwrap();
        assert_eq!(found, Some(token));
    }

    #[test]
    fn a_named_file_comes_first_then_the_variable() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::of(vec![dir.path().join("reveille")]);
        let [by_place, by_variable, by_name] = [(); 3].map(|()| Token::generate().unwrap());
        let _file = TokenFile::write(&places, api("127.0.0.1:1"), by_place).unwrap();
        let named = dir.path().join("named");
        write_new(&named, &by_name).unwrap();
        let secret = by_variable.secret();
        let find = |named, variable| find_token(named, variable, &places, &[api("127.0.0.1:1")]);
        assert_eq!(find(Some(&named), Some(secret)).unwrap(), Some(by_name));
        assert_eq!(find(None, Some(secret)).unwrap().as_ref(), Some(&by_variable));
        assert!(matches!(find(None, Some("rvl_x")), Err(TokenFileError::VariableNoToken)));
        let missing = find(Some(Path::new("/nowhere")), Some(secret));
        assert!(matches!(missing, Err(TokenFileError::Read { .. })), "a named file is never passed over");
    }

    #[test]
    fn only_a_private_regular_file_with_exactly_a_token_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        write_new(&path, &Token::generate().unwrap()).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(matches!(read_token(&path), Err(TokenFileError::Open { .. })));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(&path, "root:x:0:0:root\n").unwrap();
        let error = read_token(&path).unwrap_err();
        assert!(matches!(error, TokenFileError::NoToken { .. }));
        assert!(!error.to_string().contains("root:"), "{error}");
        assert!(matches!(read_token(dir.path()), Err(TokenFileError::NoToken { .. })));
    }

    #[test]
    fn a_directory_that_others_may_write_to_takes_no_token() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
        let written =
            TokenFile::write(&Places::of(vec![open]), api("127.0.0.1:1"), Token::generate().unwrap());
        assert!(matches!(written, Err(TokenFileError::Write { .. })));
    }
}
