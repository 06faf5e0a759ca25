//! Whether a file of the root can be run by the guest: its init, and what runs its init in turn.

use super::elf::{Elf, ElfFault, ReadRange};
use super::tree::{Entry, Node, Tree, lossy};

/// Where an init is looked for when none is named, in this order.
pub const INIT_PATHS: [&str; 4] = ["/sbin/init", "/init", "/etc/init", "/bin/init"];
/// Longest first line of a script; Linux reads no more.
const SCRIPT_LINE_BYTES_MAX: usize = 255;
/// How many scripts may run each other, as in Linux.
const SCRIPTS_MAX: usize = 4;

/// Why an init cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// None of the usual places has one.
    #[error("no init: the root has none of {}; give it one or name the program to run", INIT_PATHS.join(", "))]
    None,
    /// The named one is not there.
    #[error("no init: `{0}` is not in the root")]
    NotThere(String),
    /// Not a path that the boot stage can be told.
    #[error("`{0}` cannot be an init: write an absolute path without control characters")]
    Path(String),
    /// A directory or a device.
    #[error("init `{0}` is not a file")]
    NotAFile(String),
    /// No execute permission.
    #[error("init `{path}` is not executable (mode {permissions:04o}); chmod +x it")]
    NotExecutable {
        /// The file.
        path: String,
        /// Its mode.
        permissions: u32,
    },
    /// Neither an ELF file nor a script, or for another machine.
    #[error("init `{path}` cannot be run: {why}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// What runs it is missing.
    #[error("init `{path}` needs `{interpreter}`, which is not in the root")]
    InterpreterMissing {
        /// The file.
        path: String,
        /// Its script interpreter or dynamic linker.
        interpreter: String,
    },
}

/// Finds the init and checks that it, and whatever runs it, can be run. Returns its path as it is to be called.
pub(super) fn find_init(tree: &Tree, named: Option<&str>) -> Result<String, InitError> {
    if let Some(named) = named {
        check_path(named)?;
        check(tree, named.as_bytes(), 0)?;
        return Ok(named.to_owned());
    }
    let found = INIT_PATHS.into_iter().find(|path| tree.follow(path.as_bytes()).is_some());
    let found = found.ok_or(InitError::None)?;
    check(tree, found.as_bytes(), 0)?;
    Ok(found.to_owned())
}

/// The init of a root that cannot be looked into.
pub(super) fn named_init(named: Option<&str>) -> Result<String, InitError> {
    let [usual, ..] = INIT_PATHS;
    let init = named.unwrap_or(usual);
    check_path(init)?;
    Ok(init.to_owned())
}

fn check_path(named: &str) -> Result<(), InitError> {
    if !named.starts_with('/') || named.ends_with('/') || named.chars().any(char::is_control) {
        return Err(InitError::Path(named.to_owned()));
    }
    Ok(())
}

fn check(tree: &Tree, named: &[u8], scripts: usize) -> Result<(), InitError> {
    let path = lossy(named);
    let Some(Entry { node, permissions, .. }) = tree.follow(named).and_then(|real| tree.get(&real)) else {
        return Err(InitError::NotThere(path));
    };
    let content = match node {
        Node::File(index) => tree.content(*index),
        Node::Directory | Node::Symlink(_) | Node::Character(..) | Node::Block(..) | Node::Fifo => None,
    };
    let Some(content) = content else { return Err(InitError::NotAFile(path)) };
    if permissions & 0o111 == 0 {
        return Err(InitError::NotExecutable { path, permissions: permissions & 0o7777 });
    }
    let format = |why: String| InitError::Format { path: path.clone(), why };
    let start = content.read_range(0, SCRIPT_LINE_BYTES_MAX).map_err(|error| format(error.to_string()))?;
    let runs_it = match start.strip_prefix(b"#!") {
        Some(line) => Some(
            script_interpreter(line).ok_or_else(|| format("its first line names no program".to_owned()))?,
        ),
        None => Elf::parse(content).and_then(|elf| elf.interpreter()).map_err(|fault| {
            format(match fault {
                ElfFault::NotElf => "it is neither an ELF file nor a script that begins with #!".to_owned(),
                other @ (ElfFault::Machine(_) | ElfFault::Damaged | ElfFault::Io(_)) => other.to_string(),
            })
        })?,
    };
    let Some(interpreter) = runs_it else { return Ok(()) };
    if scripts == SCRIPTS_MAX {
        return Err(format(format!("more than {SCRIPTS_MAX} scripts run each other")));
    }
    check(tree, &interpreter, scripts + 1).map_err(|error| match error {
        InitError::NotThere(interpreter) => InitError::InterpreterMissing { path: path.clone(), interpreter },
        other @ (InitError::None
        | InitError::Path(_)
        | InitError::NotAFile(_)
        | InitError::NotExecutable { .. }
        | InitError::Format { .. }
        | InitError::InterpreterMissing { .. }) => other,
    })
}

/// The program in `#! PROGRAM [ARGUMENT]`.
fn script_interpreter(line: &[u8]) -> Option<Vec<u8>> {
    let line = line.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| *byte == b' ' || *byte == b'\t').filter(|word| !word.is_empty());
    words.next().filter(|word| word.starts_with(b"/")).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, u32, &[u8])]) -> Tree {
        let mut tree = Tree::default();
        for (path, permissions, content) in files {
            tree.add_file(path, *permissions, content).unwrap();
        }
        tree
    }

    fn elf(machine: u8) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18] = machine;
        file
    }

    fn refusal(tree: &Tree, named: Option<&str>) -> String {
        find_init(tree, named).unwrap_err().to_string()
    }

    #[test]
    fn the_usual_places_are_looked_at_in_order() {
        let tree = root(&[("bin/init", 0o755, &elf(62)), ("init", 0o755, &elf(62))]);
        assert_eq!(find_init(&tree, None).unwrap(), "/init");
        assert_eq!(find_init(&tree, Some("/bin/init")).unwrap(), "/bin/init");
    }

    #[test]
    fn every_fault_of_an_init_is_told() {
        let program = elf(62);
        assert_eq!(
            refusal(&root(&[]), None),
            "no init: the root has none of /sbin/init, /init, /etc/init, /bin/init; \
             give it one or name the program to run"
        );
        assert_eq!(refusal(&root(&[]), Some("/srv/x")), "no init: `/srv/x` is not in the root");
        assert!(refusal(&root(&[]), Some("srv/x")).contains("write an absolute path"));
        assert!(refusal(&root(&[]), Some("/srv\n/x")).contains("write an absolute path"));
        assert_eq!(refusal(&root(&[("init/x", 0o644, b"")]), Some("/init")), "init `/init` is not a file");
        assert_eq!(
            refusal(&root(&[("init", 0o644, &program)]), None),
            "init `/init` is not executable (mode 0644); chmod +x it"
        );
        assert_eq!(
            refusal(&root(&[("init", 0o755, &elf(183))]), None),
            "init `/init` cannot be run: it is built for another machine than x86-64 (it is for arm64)"
        );
        assert_eq!(
            refusal(&root(&[("init", 0o755, b"echo")]), None),
            "init `/init` cannot be run: it is neither an ELF file nor a script that begins with #!"
        );
        assert_eq!(
            refusal(&root(&[("init", 0o755, b"#!/bin/sh\n")]), None),
            "init `/init` needs `/bin/sh`, which is not in the root"
        );
        assert_eq!(
            refusal(&root(&[("init", 0o755, b"#! /bin/sh -e\n"), ("bin/sh", 0o644, &program)]), None),
            "init `/bin/sh` is not executable (mode 0644); chmod +x it"
        );
        assert!(refusal(&root(&[("init", 0o755, b"#!/init\n")]), None).contains("more than 4 scripts"));
        assert!(refusal(&root(&[("init", 0o755, b"#!\n")]), None).contains("names no program"));
    }

    #[test]
    fn a_dynamic_program_needs_its_linker_in_the_root() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        // The headers, up to the name of the linker, are all that is looked at.
        let own = &own[..own.len().min(8192)];
        let missing = refusal(&root(&[("init", 0o755, own)]), None);
        assert_eq!(missing, "init `/init` needs `/lib64/ld-linux-x86-64.so.2`, which is not in the root");
        let tree = root(&[("init", 0o755, own), ("lib64/ld-linux-x86-64.so.2", 0o755, &elf(62))]);
        assert_eq!(find_init(&tree, None).unwrap(), "/init");
    }
}
