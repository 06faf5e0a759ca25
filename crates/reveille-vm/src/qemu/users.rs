//! As whom QEMU runs when the daemon is root: as nobody who has anything else.
//!
//! Each instance has a group of its own, and by default a user of its own as well, by numbers that no package and no
//! `adduser` gives out. What a process may use is told by its instance's directory, not by each file: only that group may
//! enter it, and in it the process owns nothing but the directory of its sockets. So a guest that has broken out of its
//! emulator can neither read nor replace what is another's or the daemon's.
//!
//! ```text
//! i17/           root, group of i17, 0710       entered by that group alone
//!   run/         user and group of i17, 0700    its sockets: all that it can make
//!   image/       root                           hard links to kernel, initial RAM file system and base
//!   state/       root, 0711                     memory and layers can be written to, and nothing can be added
//! ```
//!
//! The change is made by `setpriv` before QEMU is run, not by QEMU (`-runas`, `-run-with user=`): there it comes after
//! everything was opened as root, differs between versions, and needs calls that the sandbox forbids.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use reveille_core::model::InstanceId;

use super::argv::Argv;
use super::process::SETPRIV;

/// The first number of users and groups that are an instance's own; above what systemd gives to containers and below what
/// does not fit into 31 bits.
const OWN_FIRST: u32 = 1_900_000_000;
/// How many there are; instances are numbered one after another.
const OWN_COUNT: u64 = 100_000_000;

/// As whom QEMU runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Users {
    /// As the daemon.
    #[default]
    Daemon,
    /// Each instance as a user of its own.
    Own,
    /// All as this user.
    Named(u32),
}

/// A user and its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub uid: u32,
    /// Its only group, which is the instance's.
    pub gid: u32,
}

impl Users {
    /// As whom the process of an instance runs; `None`: as the daemon.
    pub fn of(self, instance: InstanceId) -> Option<Identity> {
        let number = u32::try_from(instance.0 % OWN_COUNT).unwrap_or_default();
        let gid = OWN_FIRST + number;
        match self {
            Self::Daemon => None,
            Self::Own => Some(Identity { uid: gid, gid }),
            Self::Named(uid) => Some(Identity { uid, gid }),
        }
    }

    /// The number of a user that is named so, or is that number.
    ///
    /// # Errors
    /// One sentence.
    pub fn number(name: &str) -> Result<u32, String> {
        if let Ok(number) = name.parse() {
            return Ok(number);
        }
        let users = fs::read_to_string("/etc/passwd").map_err(|error| format!("/etc/passwd: {error}"))?;
        let known = users.lines().find_map(|line| {
            let (own, rest) = line.split_once(':')?;
            if own != name {
                return None;
            }
            rest.split(':').nth(1)?.parse().ok()
        });
        known.ok_or_else(|| {
            format!("there is no user `{name}` in /etc/passwd: adduser --system --no-create-home {name}")
        })
    }
}

/// The same program run as `identity`, with no rights and no way to any; with the group of `device` if its owner lets that
/// use it.
pub fn run_as(argv: &Argv, identity: Identity, device: Option<&Path>) -> Argv {
    let Identity { uid, gid } = identity;
    let mut wrapped = Argv::new(Path::new(SETPRIV));
    wrapped.flag(&format!("--reuid={uid}")).flag(&format!("--regid={gid}"));
    match device.and_then(|device| group_of(device).ok().flatten()) {
        Some(group) => wrapped.flag(&format!("--groups={group}")),
        None => wrapped.flag("--clear-groups"),
    };
    wrapped
        .flag("--inh-caps=-all")
        .flag("--ambient-caps=-all")
        .flag("--bounding-set=-all")
        .flag("--no-new-privs");
    wrapped.flag("--");
    wrapped.arguments.push(OsString::from(&argv.program));
    wrapped.arguments.extend(argv.arguments.iter().cloned());
    wrapped
}

/// The group that may use a device which not everybody may.
fn group_of(device: &Path) -> io::Result<Option<u32>> {
    let metadata = device.metadata()?;
    let (everybody, group) = (metadata.mode() & 0o006 == 0o006, metadata.mode() & 0o060 == 0o060);
    Ok((group && !everybody && metadata.gid() != 0).then_some(metadata.gid()))
}

/// Lets all who can reach a file use it.
pub fn open_to_all(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_have_numbers_of_their_own() {
        let of = |users: Users, instance| users.of(InstanceId(instance));
        assert_eq!(of(Users::Daemon, 1), None);
        assert_eq!(of(Users::Own, 1), Some(Identity { uid: 1_900_000_001, gid: 1_900_000_001 }));
        assert_ne!(of(Users::Own, 1), of(Users::Own, 2));
        assert_eq!(of(Users::Named(106), 2), Some(Identity { uid: 106, gid: 1_900_000_002 }));
        assert_eq!(Users::number("root"), Ok(0));
        assert_eq!(Users::number("106"), Ok(106));
        assert!(Users::number("no-such-user").unwrap_err().contains("adduser"));
    }
}
