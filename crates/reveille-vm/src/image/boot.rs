//! The boot stage that is added to every root: a static busybox, the drivers and a script that is PID 1 until the
//! root's own init takes over.
//!
//! All of it lies below `/.reveille`, which a root must not have, but for `/init`, where the kernel looks for its
//! first program. An `/init` of the root waits below `/.reveille` and is moved back before it could be missed.
//!
//! What the script takes from the kernel command line: `reveille.hostname=`, `reveille.address=A.B.C.D/N`,
//! `reveille.gateway=` and `reveille.nameserver=` (empty for none).

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::elf::{Elf, ElfFault};
use super::modules::Modules;
use super::tree::{Content, Entry, EntryFault, Node, Tree, TreeError, fault};

/// What the boot stage prints on the console as its first line.
pub const USER_SPACE_REACHED: &str = "reveille: user space reached";

const STAGE_1: &str = include_str!("stage1.sh");
/// Its tables for mount: one call for many, since starting programs is what takes the time.
const TABLES: [(&str, &str); 2] =
    [("fstab", include_str!("fstab")), ("fstab.dev", include_str!("fstab.dev"))];
/// The programs that it calls.
const APPLETS: [&str; 10] =
    ["chroot", "insmod", "ip", "ln", "mkdir", "mount", "mv", "rm", "sleep", "switch_root"];
/// The refresher: see `refresh.S`, of which this is made.
const REFRESH: &[u8] = include_bytes!("refresh");
const REFRESH_PATH: &str = ".reveille/refresh";
/// The name, at the guest's side, of the port at which the refresher waits.
pub const REFRESH_PORT: &str = "reveille.refresh";
const OWN_DIRECTORY: &str = ".reveille";
const OWN_BUSYBOX: &str = ".reveille/busybox";
/// A script that the root's source wants run in place of an init.
pub(super) const PROGRAM: &str = "/.reveille/program";
const ROOT_INIT: &[u8] = b".reveille/root-init";
/// Directories that the script mounts something on, or writes to.
const MOUNT_POINTS: [(&str, u32); 6] =
    [("proc", 0o555), ("sys", 0o555), ("dev", 0o755), ("run", 0o755), ("tmp", 0o1777), ("etc", 0o755)];

/// Why a busybox cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum BusyboxError {
    /// Not there, or not readable.
    #[error("busybox `{}` cannot be read: {source}; apt-get install busybox-static, or name another", path.display())]
    Unreadable {
        /// What was given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Needs a dynamic linker, which the guest may not have.
    #[error("busybox `{}` is not static: it needs {linker}; apt-get install busybox-static, or name another", path.display())]
    Dynamic {
        /// What was given.
        path: PathBuf,
        /// What it asks for.
        linker: String,
    },
    /// Not a program for the guest.
    #[error("busybox `{}` cannot be used: {why}", path.display())]
    Format {
        /// What was given.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Checks that a busybox needs nothing else to run.
pub(super) fn check_busybox(path: &Path) -> Result<(), BusyboxError> {
    let unreadable = |source| BusyboxError::Unreadable { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    let linker = Elf::parse(&file).and_then(|elf| elf.interpreter()).map_err(|fault| match fault {
        ElfFault::Io(source) => unreadable(source),
        other @ (ElfFault::NotElf | ElfFault::Machine(_) | ElfFault::Damaged) => {
            BusyboxError::Format { path: path.to_owned(), why: other.to_string() }
        }
    })?;
    match linker {
        None => Ok(()),
        Some(linker) => Err(BusyboxError::Dynamic {
            path: path.to_owned(),
            linker: String::from_utf8_lossy(&linker).into_owned(),
        }),
    }
}

/// Adds what a root's init may rely on, before it is looked for: busybox, mount points, the console.
pub(super) fn add_base(tree: &mut Tree, busybox: &Path) -> Result<(), TreeError> {
    if tree.get(OWN_DIRECTORY.as_bytes()).is_some() {
        return Err(fault(OWN_DIRECTORY.as_bytes(), EntryFault::Reserved));
    }
    let path = OWN_BUSYBOX.as_bytes();
    let bytes = std::fs::metadata(busybox).map_err(|error| fault(path, error.into()))?.len();
    let content = tree.add_content(path, Content::File { path: busybox.into(), bytes })?;
    tree.insert(path, Entry::owned_by_root(0o755, Node::File(content)))?;
    for (directory, permissions) in MOUNT_POINTS {
        tree.ensure_directory(directory, permissions)?;
    }
    // The kernel opens it for the first program, before anything is mounted.
    if tree.follow(b"dev").as_deref() == Some(b"dev") && tree.get(b"dev/console").is_none() {
        tree.insert(b"dev/console", Entry::owned_by_root(0o600, Node::Character(5, 1)))?;
    }
    Ok(())
}

/// Adds the script and the drivers. With `root`, a disk, the root and its init are there.
pub(super) fn add_stage(
    tree: &mut Tree,
    init: &str,
    root: Option<&str>,
    modules: &Modules,
) -> Result<(), TreeError> {
    if let Some(own_init) = tree.take_out(b"init")? {
        tree.insert(ROOT_INIT, own_init)?;
    }
    tree.add_file("init", 0o755, STAGE_1.as_bytes())?;
    tree.add_file(".reveille/boot.conf", 0o644, configuration(init, root, modules).as_bytes())?;
    for (name, table) in TABLES {
        tree.add_file(&format!("{OWN_DIRECTORY}/{name}"), 0o644, table.as_bytes())?;
    }
    for applet in APPLETS {
        let path = format!("{OWN_DIRECTORY}/bin/{applet}");
        tree.insert(path.as_bytes(), Entry::owned_by_root(0o777, Node::Symlink(b"../busybox".to_vec())))?;
    }
    tree.add_file(REFRESH_PATH, 0o700, REFRESH)?;
    tree.ensure_directory(".reveille/modules", 0o755)?;
    for (name, content) in &modules.files {
        tree.add_file(&format!(".reveille/modules/{name}.ko"), 0o644, content)?;
    }
    Ok(())
}

/// Shell assignments that the script reads.
fn configuration(init: &str, root: Option<&str>, modules: &Modules) -> String {
    let mut lines = format!("init='{}'\n", init.replace('\'', r"'\''"));
    // Letters and digits alone: see `source`.
    let _ = writeln!(lines, "root='{}'", root.unwrap_or_default());
    for (driver, order) in &modules.orders {
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "modules_{driver}='{}'", order.join(" "));
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_first_command_of_the_script_prints_the_mark() {
        let command = STAGE_1.lines().find(|line| !line.starts_with('#')).unwrap();
        assert_eq!(command, format!("echo '{USER_SPACE_REACHED}'"));
    }

    #[test]
    fn the_script_is_one_that_busybox_can_read() {
        let status = Command::new("/bin/busybox").args(["sh", "-n", "-c", STAGE_1]).status().unwrap();
        assert!(status.success());
    }

    #[test]
    fn every_program_that_the_script_calls_is_there() {
        let own = ["echo", "load", "eval", "for", "exec", "read", "unset"];
        let called = STAGE_1.lines().filter_map(|line| {
            let line = line.trim().rsplit("|| ").next()?;
            line.split(' ').next().filter(|word| word.bytes().all(|byte| byte.is_ascii_lowercase()))
        });
        let syntax = ["case", "esac", "done", "do", "if", "fi", "continue", "break", ""];
        for word in called.filter(|word| !own.contains(word) && !syntax.contains(word)) {
            assert!(APPLETS.contains(&word), "{word}");
        }
    }

    #[test]
    fn the_program_that_refreshes_is_what_its_source_says() {
        let temp = tempfile::tempdir().unwrap();
        let (source, object, program) =
            (temp.path().join("refresh.S"), temp.path().join("refresh.o"), temp.path().join("refresh"));
        std::fs::write(&source, include_str!("refresh.S")).unwrap();
        let assembled = Command::new("as").arg("-o").args([&object, &source]).status().unwrap();
        assert!(assembled.success());
        let copied =
            Command::new("objcopy").args(["-O", "binary", "-j", ".text"]).args([&object, &program]).status();
        assert!(copied.unwrap().success());
        assert_eq!(std::fs::read(program).unwrap(), REFRESH);
    }

    #[test]
    fn a_name_with_quotes_reaches_the_script_unchanged() {
        let name = r#"/srv/it's "$(here)" \ `x`"#;
        let script = format!("{}printf %s \"$init\"", configuration(name, None, &Modules::default()));
        let output = Command::new("/bin/busybox").args(["sh", "-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), name);
    }

    #[test]
    fn the_roots_own_init_waits_below_the_boot_stage() {
        let mut tree = Tree::default();
        tree.add_file("init", 0o700, b"own").unwrap();
        add_base(&mut tree, Path::new("/bin/busybox")).unwrap();
        add_stage(&mut tree, "/init", None, &Modules::default()).unwrap();
        assert!(matches!(tree.get(ROOT_INIT), Some(Entry { permissions: 0o700, .. })));
        assert!(matches!(tree.get(b"init"), Some(Entry { permissions: 0o755, .. })));
        let again = add_base(&mut tree, Path::new("/bin/busybox")).unwrap_err().to_string();
        assert_eq!(again, "`.reveille` in the root: this path is taken by the boot stage; rename it");
    }

    #[test]
    fn a_busybox_that_needs_a_linker_is_refused() {
        check_busybox(Path::new("/bin/busybox")).unwrap();
        let dynamic = check_busybox(&std::env::current_exe().unwrap()).unwrap_err().to_string();
        assert!(dynamic.contains("is not static: it needs /lib64/ld-linux-x86-64.so.2"), "{dynamic}");
        let none = check_busybox(Path::new("/nowhere/busybox")).unwrap_err().to_string();
        assert!(none.contains("apt-get install busybox-static"), "{none}");
        let text = check_busybox(Path::new("/etc/passwd")).unwrap_err().to_string();
        assert!(text.contains("it is no ELF file"), "{text}");
    }
}
