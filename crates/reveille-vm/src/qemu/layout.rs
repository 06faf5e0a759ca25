//! Where an instance's files are.
//!
//! ```text
//! <state>/instances/i17/        0700; QEMU's working directory, so that its arguments name files by short paths
//!   lock                        held by the QEMU process as its standard input, exactly as long as it lives
//!   run/qmp.sock                its control socket
//!   run/net.sock                the other end of the guest's network card
//!   run/agent.sock, …           the other ends of the ports at which the guest's agent and its refresher listen
//!   image/                      its image's files under a second name, where QEMU is a user of its own (see `users`)
//!   serial.log, serial.log.1    what the guest wrote on its console
//!   qemu.log, qemu.log.1        what QEMU complained of
//!   state/                      one state of the guest (see `version`)
//!   next/                       a state in the making, which takes the place of `state/` as a whole
//!   fetched/                    a version on its way from the object store
//!   checkpoint/                 the last checkpoint of the running guest
//!   aside/1, aside/2, …         states that a cold boot, or a version from the store, took the place of
//!   away                        the disk is in the object store alone: the address of its base
//! <state>/removed/i17           what an instance had whose service was removed, if it had a disk or a version
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use reveille_core::model::InstanceId;
use rustix::fs::RenameFlags;

use reveille_failpoint::failpoint;

use super::disk::{PREFIX as LAYER, RECORD};
use super::users::{Identity, open_to_all};
use super::version::StateDir;

/// Permissions of a directory within an instance's: who comes as far may enter it, and not list it.
const ENTERED: u32 = 0o711;
/// Permissions of a file within an instance's directory that its process writes to.
pub const USED: u32 = 0o666;
/// States set aside that are kept per instance and base of a disk, with a version, and as many without; older ones are
/// removed.
const ASIDE_MAX: usize = 2;
/// Bases of disks of which states are kept aside. A service that is given other images changes them.
const ASIDE_BASES_MAX: usize = 8;
/// A log that is larger is rotated; its newest part is kept as `….1`.
pub const LOG_BYTES_MAX: u64 = 1 << 20;
/// Bytes at the end of a log that are looked at for its last line.
const LOG_TAIL_BYTES: u64 = 4 << 10;
/// Longest line of a log that is quoted, in characters.
const QUOTE_CHARS_MAX: usize = 300;

/// The control socket, from QEMU's working directory.
pub const SOCKET: &str = "run/qmp.sock";
/// The socket of the network link, from QEMU's working directory.
pub const NETWORK: &str = "run/net.sock";
/// The socket of the agent's port, from QEMU's working directory.
pub const AGENT: &str = "run/agent.sock";
/// The socket of the refresher's port, from QEMU's working directory.
pub const REFRESH: &str = "run/refresh.sock";
/// The serial log, from QEMU's working directory.
pub const SERIAL: &str = "serial.log";
/// Says which process has a version loaded that has not run since.
const LOADED: &str = "loaded";
/// Says that the disk is in the object store alone.
const AWAY: &str = "away";
/// The directory of the sockets, from QEMU's working directory.
pub const RUN: &str = "run";
/// The directory of the image's files, from QEMU's working directory.
const IMAGE: &str = "image";
/// The directory of the state, from QEMU's working directory.
pub const STATE: &str = "state";
/// The guest's memory, from QEMU's working directory.
pub const MEMORY: &str = "state/memory";

/// The directory of one instance.
#[derive(Debug, Clone)]
pub struct InstanceDir {
    root: PathBuf,
}

impl InstanceDir {
    /// The directory of `instance` below `instances`; nothing is created.
    pub fn of(instances: &Path, instance: InstanceId) -> Self {
        Self { root: instances.join(instance.to_string()) }
    }

    /// The instances that have a directory below `instances`.
    pub fn all(instances: &Path) -> io::Result<Vec<InstanceId>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(instances)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix('i')).and_then(|id| id.parse().ok());
            found.extend(number.map(InstanceId));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The lock file.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Notes that the process has a version loaded, and that no vCPU has run since. Nothing is flushed: where this is lost, the
    /// process is, too.
    pub fn note_loaded(&self, pid: i32) -> io::Result<()> {
        private()
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.root.join(LOADED))?
            .write_all(pid.to_string().as_bytes())
    }

    /// Whether that is noted of this process.
    pub fn is_noted_loaded(&self, pid: i32) -> bool {
        fs::read_to_string(self.root.join(LOADED)).is_ok_and(|noted| noted == pid.to_string())
    }

    /// Takes that back, before a vCPU runs.
    ///
    /// # Errors
    /// It is still noted.
    pub fn forget_loaded(&self) -> io::Result<()> {
        match fs::remove_file(self.root.join(LOADED)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The serial log.
    pub fn serial(&self) -> PathBuf {
        self.root.join(SERIAL)
    }

    /// QEMU's standard error.
    pub fn log(&self) -> PathBuf {
        self.root.join("qemu.log")
    }

    /// The guest's state.
    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// A version that is being made of a running guest, to take the place of [`InstanceDir::state`].
    pub fn next(&self) -> PathBuf {
        self.root.join("next")
    }

    /// A version that is fetched from the object store.
    pub fn fetched(&self) -> PathBuf {
        self.root.join("fetched")
    }

    /// Makes the directory `new` the state, durably, and removes what was there.
    pub fn replace_state(&self, new: &Path) -> io::Result<()> {
        // A process that is there goes on opening layers in it.
        open_to_all(new, ENTERED)?;
        let (cwd, state) = (rustix::fs::CWD, self.state());
        match rustix::fs::renameat_with(cwd, new, cwd, &state, RenameFlags::EXCHANGE) {
            Ok(()) => {}
            Err(rustix::io::Errno::NOENT) => fs::rename(new, &state)?,
            Err(error) => return Err(error.into()),
        }
        failpoint!("vm.state.exchanged");
        sync_dir(&self.root)?;
        match fs::remove_dir_all(new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes the state: first it is no longer in its place, durably.
    pub fn drop_state(&self) -> io::Result<()> {
        let empty = self.fresh("empty")?;
        self.replace_state(&empty)
    }

    /// An empty directory in place of [`InstanceDir::next`].
    pub fn fresh_next(&self) -> io::Result<PathBuf> {
        self.fresh("next")
    }

    /// An empty directory of that name, whatever an earlier daemon has left there.
    fn fresh(&self, name: &str) -> io::Result<PathBuf> {
        let dir = self.root.join(name);
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        create_private_dir(&dir)?;
        open_to_all(&dir, ENTERED)?;
        Ok(dir)
    }

    /// The last checkpoint of the running guest.
    pub fn checkpoint(&self) -> PathBuf {
        self.root.join("checkpoint")
    }

    fn aside(&self) -> PathBuf {
        self.root.join("aside")
    }

    /// A path to one of the sockets that fits `sockaddr_un` (108 bytes) however deep the directory lies, valid as
    /// long as the returned handle is open.
    pub fn short_path(&self, socket: &str) -> io::Result<(File, PathBuf)> {
        let dir = File::open(&self.root)?;
        let path = format!("/proc/self/fd/{}/{socket}", dir.as_raw_fd());
        Ok((dir, path.into()))
    }

    /// Creates what is missing, open to this user alone.
    pub fn create(&self) -> io::Result<()> {
        if !self.root.exists() {
            create_private_dir(&self.root)?;
        }
        if !self.state().exists() {
            create_private_dir(&self.state())?;
        }
        open_to_all(&self.state(), ENTERED)
    }

    /// Lets a process that runs as `identity` use what it is to use and nothing else (see `users`). It is to be called
    /// when all files are there, and before the process is.
    pub fn admit(&self, identity: Option<Identity>) -> io::Result<()> {
        let run = self.root.join(RUN);
        // What an earlier process has left there is removed as a whole, whatever it is.
        match fs::remove_dir_all(&run) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => create_private_dir(&run)?,
        }
        let Some(Identity { uid, gid }) = identity else { return Ok(()) };
        chown(&self.root, None, Some(gid))?;
        open_to_all(&self.root, 0o710)?;
        chown(&run, Some(uid), Some(gid))?;
        open_to_all(&self.state(), ENTERED)?;
        open_to_all(&self.serial(), USED)?;
        for entry in fs::read_dir(self.state())? {
            let entry = entry?;
            let name = entry.file_name();
            if name == "memory" || name.to_str().is_some_and(|name| name.starts_with(LAYER)) {
                open_to_all(&entry.path(), USED)?;
            }
        }
        Ok(())
    }

    /// Gives files of an image second names in this directory, so that a process can open them wherever the image lies,
    /// and returns these, from QEMU's working directory. A file on another file system keeps its own name.
    pub fn at_hand<const N: usize>(&self, files: [&Path; N]) -> io::Result<[PathBuf; N]> {
        let dir = self.fresh(IMAGE)?;
        let mut names = files.map(Path::to_owned);
        for (number, (file, name)) in files.into_iter().zip(&mut names).enumerate() {
            let own = number.to_string();
            if fs::hard_link(file, dir.join(&own)).is_ok() {
                let mode = file.metadata()?.permissions().mode();
                if mode & 0o004 == 0 {
                    open_to_all(file, mode | 0o004)?;
                }
                *name = Path::new(IMAGE).join(own);
            }
        }
        Ok(names)
    }

    /// Moves the state, whatever is in it, out of the way of a fresh one. Once it returns, also after a power
    /// failure no version is in its place.
    pub fn set_state_aside(&self) -> io::Result<()> {
        let empty = self.fresh("empty")?;
        self.put_in_place_of_state(&empty)
    }

    /// Makes the directory `new` the state, durably and in one step, and keeps what was there aside.
    pub fn put_in_place_of_state(&self, new: &Path) -> io::Result<()> {
        open_to_all(new, ENTERED)?;
        let aside = self.aside();
        create_private_dir(&aside)?;
        let next = numbered(&aside)?.last().map_or(1, |last| last + 1);
        let place = aside.join(next.to_string());
        // What is new is put where the old one is to be, so that no moment is without either.
        fs::rename(new, &place)?;
        sync_dir(&aside)?;
        let cwd = rustix::fs::CWD;
        rustix::fs::renameat_with(cwd, &place, cwd, self.state(), RenameFlags::EXCHANGE)?;
        failpoint!("vm.aside.exchanged");
        sync_dir(&aside)?;
        sync_dir(&self.root)?;
        self.forget_aside()
    }

    /// The states that were set aside, oldest first.
    pub fn set_aside(&self) -> io::Result<Vec<PathBuf>> {
        let aside = self.aside();
        match numbered(&aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            numbers => Ok(numbers?.into_iter().map(|number| aside.join(number.to_string())).collect()),
        }
    }

    /// Removes what was set aside too long ago. Disks that a lost guest wrote to are counted apart: they are in no store.
    /// So are the disks of each image, for the service may be given that one again.
    fn forget_aside(&self) -> io::Result<()> {
        let (mut counts, mut bases) = (BTreeMap::new(), BTreeSet::new());
        for dir in self.set_aside()?.into_iter().rev() {
            let base = StateDir::at(dir.clone()).chain().ok().flatten().map(|chain| chain.base);
            let is_version = dir.join("manifest.json").exists() || !dir.join(RECORD).exists();
            bases.insert(base.clone());
            let count: &mut usize = counts.entry((base, is_version)).or_default();
            *count += 1;
            if *count > ASIDE_MAX || bases.len() > ASIDE_BASES_MAX {
                fs::remove_dir_all(dir)?;
            }
        }
        Ok(())
    }

    /// Notes that the disk, which lies over that base, is in the object store alone, durably.
    pub fn note_away(&self, base: &str) -> io::Result<()> {
        replace_durably(&self.root.join(AWAY), base.as_bytes())
    }

    /// Whether a disk over that base is in the object store alone.
    pub fn is_away(&self, base: &str) -> io::Result<bool> {
        match fs::read(self.root.join(AWAY)) {
            // An earlier release did not say which.
            Ok(noted) => Ok(noted.is_empty() || noted == base.as_bytes()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The disk is here again.
    pub fn note_back(&self) -> io::Result<()> {
        match fs::remove_file(self.root.join(AWAY)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => sync_dir(&self.root),
        }
    }

    /// Begins new logs, keeping the last ones.
    pub fn rotate_logs(&self) -> io::Result<()> {
        for log in [self.serial(), self.log()] {
            match fs::rename(&log, rotated(&log)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            private().append(true).create(true).open(&log)?;
        }
        Ok(())
    }

    /// Shortens a log that outgrew [`LOG_BYTES_MAX`] while QEMU writes to it (QEMU appends, so it goes on at the
    /// new end).
    pub fn limit_logs(&self) -> io::Result<()> {
        for log in [self.serial(), self.log()] {
            let mut file = OpenOptions::new().read(true).write(true).open(&log)?;
            let bytes = file.metadata()?.len();
            if bytes > LOG_BYTES_MAX {
                file.seek(SeekFrom::Start(bytes - LOG_BYTES_MAX))?;
                let mut kept = private().write(true).create(true).truncate(true).open(rotated(&log))?;
                io::copy(&mut Read::by_ref(&mut file).take(LOG_BYTES_MAX), &mut kept)?;
                file.set_len(0)?;
            }
        }
        Ok(())
    }
}

/// What a state on the disk needs of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The state's directory.
    pub path: PathBuf,
    /// Content address of the image that its version was taken of.
    pub image: Option<String>,
    /// Content address of the base of its disk.
    pub base: Option<String>,
}

/// What the states below a state directory need of images: those of instances, those set aside, those of removed
/// services.
///
/// # Errors
/// A directory that cannot be read.
pub fn needs_on_disk(state_dir: &Path) -> io::Result<Vec<Need>> {
    let mut needs = Vec::new();
    for place in ["instances", "removed"] {
        for instance in directories(&state_dir.join(place))? {
            let states = [instance.join("state"), instance.join("checkpoint"), instance.join("fetched")];
            for path in states.into_iter().chain(directories(&instance.join("aside"))?) {
                let state = StateDir::at(path.clone());
                let (image, base) = (state.image(), state.chain().ok().flatten().map(|chain| chain.base));
                if image.is_some() || base.is_some() {
                    needs.push(Need { path, image, base });
                }
            }
        }
    }
    Ok(needs)
}

fn directories(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// The last line of a log that says something; `None` if there is none or it cannot be read.
pub fn last_line(log: &Path) -> Option<String> {
    last_line_unless(log, |_| false)
}

/// The last line of QEMU's log that is more than a warning.
pub fn last_complaint(log: &Path) -> Option<String> {
    last_line_unless(log, |line| line.contains("warning: "))
}

fn last_line_unless(log: &Path, skipped: impl Fn(&str) -> bool) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let bytes = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(bytes.saturating_sub(LOG_TAIL_BYTES))).ok()?;
    let mut tail = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut tail).ok()?;
    let tail = String::from_utf8_lossy(&tail);
    let line = tail.lines().rev().map(str::trim).find(|line| !line.is_empty() && !skipped(line))?;
    Some(line.chars().filter(|character| !character.is_control()).take(QUOTE_CHARS_MAX).collect())
}

/// Creates a directory with mode 0700, parents included; one that is there is made so.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    rustix::fs::chmod(path, rustix::fs::Mode::RWXU)?;
    Ok(())
}

/// Options that create files with mode 0600.
pub fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// Makes the entries of a directory durable.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Replaces the file at `path` as a whole, durably.
pub fn replace_durably(path: &Path, contents: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = private().write(true).create(true).truncate(true).open(&temporary)?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

fn rotated(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

fn numbered(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> (tempfile::TempDir, InstanceDir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = InstanceDir::of(temp.path(), InstanceId(17));
        dir.create().unwrap();
        (temp, dir)
    }

    #[test]
    fn states_set_aside_are_kept_and_limited() {
        let (_temp, dir) = dir();
        for content in ["a", "b", "c"] {
            fs::write(dir.state().join("memory"), content).unwrap();
            dir.set_state_aside().unwrap();
            assert!(!dir.state().join("memory").exists());
        }
        assert_eq!(numbered(&dir.aside()).unwrap(), [2, 3]);
        assert_eq!(fs::read_to_string(dir.aside().join("3/memory")).unwrap(), "c");
    }

    #[test]
    fn a_log_that_is_being_written_is_cut_and_its_end_kept() {
        let (_temp, dir) = dir();
        dir.rotate_logs().unwrap();
        let mut qemu = OpenOptions::new().append(true).open(dir.serial()).unwrap();
        let flood = vec![b'x'; usize::try_from(LOG_BYTES_MAX).unwrap()];
        qemu.write_all(&flood).unwrap();
        qemu.write_all(b"the end\n").unwrap();
        dir.limit_logs().unwrap();
        qemu.write_all(b"more\n").unwrap();
        assert_eq!(fs::read_to_string(dir.serial()).unwrap(), "more\n");
        let kept = fs::read(rotated(&dir.serial())).unwrap();
        assert_eq!(kept.len(), flood.len());
        assert!(kept.ends_with(b"xthe end\n"));
    }

    #[test]
    fn the_last_line_is_the_last_that_says_something() {
        let (_temp, dir) = dir();
        assert_eq!(last_line(&dir.log()), None);
        fs::write(dir.log(), "first\nqemu: no \u{1b}[31mroom\r\n\n").unwrap();
        assert_eq!(last_line(&dir.log()).unwrap(), "qemu: no [31mroom");
        fs::write(dir.log(), "qemu: no room\nqemu: warning: something is deprecated\n").unwrap();
        assert_eq!(last_complaint(&dir.log()).unwrap(), "qemu: no room");
    }

    #[test]
    fn other_names_are_no_instances() {
        let (temp, _dir) = dir();
        for name in ["i3", "x4", "i5x", "accel.json"] {
            fs::create_dir(temp.path().join(name)).unwrap();
        }
        assert_eq!(InstanceDir::all(temp.path()).unwrap(), [InstanceId(3), InstanceId(17)]);
    }
}
