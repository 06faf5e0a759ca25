//! What is refused, with which sentence, and that nothing is left of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use reveille_vm::image::{BuildRequest, KernelSource, RootSource};
use tar::EntryType;

use crate::support::{Bench, kernel, package_cache, with_debian_kernel};

/// An archive of one entry, as another program than a friendly one would write it.
fn archive(path: &str, kind: EntryType, target: &str) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_device_major(1).unwrap();
    header.set_device_minor(3).unwrap();
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn refused_archive(bench: &Bench, bytes: &[u8]) -> String {
    fs::write(bench.path("root.tar"), bytes).unwrap();
    bench.refusal(&BuildRequest { root: RootSource::Tar(bench.path("root.tar")), ..bench.request() })
}

#[test]
fn an_archive_cannot_reach_out_of_the_root() {
    let bench = Bench::new();
    let cases = [
        ("/etc/passwd", EntryType::Regular, "", "`/etc/passwd` in the root: it begins with `/`"),
        ("../../escape", EntryType::Regular, "", "`../../escape` in the root: it has `..` in it"),
        ("a/../../b", EntryType::Directory, "", "it has `..` in it"),
        (
            "link",
            EntryType::Link,
            "/etc/shadow",
            "it is a hard link to `/etc/shadow`, which is not an earlier",
        ),
        ("link", EntryType::Link, "later", "it is a hard link to `later`, which is not an earlier"),
        ("link", EntryType::Symlink, "", "it is a symbolic link to nothing"),
        ("sparse", EntryType::GNUSparse, "", "sparse"),
        ("odd", EntryType::new(b'Q'), "", "of a kind that tar archives seldom have"),
        (".reveille/busybox", EntryType::Regular, "", "`.reveille` in the root: this path is taken"),
    ];
    for (path, kind, target, sentence) in cases {
        let refused = refused_archive(&bench, &archive(path, kind, target));
        assert!(refused.contains(sentence), "{path}: {refused}");
    }
    // What lies below a link would be written wherever the link leads.
    let mut both = archive("etc", EntryType::Symlink, "/tmp");
    both.truncate(512);
    both.extend(archive("etc/passwd", EntryType::Regular, ""));
    let refused = refused_archive(&bench, &both);
    assert!(
        refused.contains("`etc/passwd` in the root: it lies below `etc`, which is not a directory"),
        "{refused}"
    );
    // Devices are entries like others; they are only written down.
    let mut device = archive("dev/null", EntryType::Char, "");
    device.truncate(512);
    device.extend(archive("init", EntryType::Symlink, ".reveille/busybox"));
    fs::write(bench.path("root.tar"), device).unwrap();
    let request = BuildRequest { root: RootSource::Tar(bench.path("root.tar")), ..bench.request() };
    bench.store.build(&request, &mut |_| ()).unwrap();
}

#[test]
fn what_is_no_archive_is_told() {
    let bench = Bench::new();
    let cases: [(&[u8], &str); 4] = [
        (&[1; 2048], "is no tar archive, or a damaged one"),
        (b"\xfd7zXZ\0 and so on", "is compressed with xz; unpack it, or give a plain, gzip or zstd archive"),
        (b"\x1f\x8b but not gzip", "is no tar archive, or a damaged one"),
        (b"", "no init: the root has none of /sbin/init"),
    ];
    for (bytes, sentence) in cases {
        let refused = refused_archive(&bench, bytes);
        assert!(refused.contains(sentence), "{refused}");
    }
    let mut truncated = tar::Builder::new(Vec::new());
    truncated.append_dir_all(".", bench.root()).unwrap();
    let mut truncated = truncated.into_inner().unwrap();
    truncated.truncate(truncated.len() - 1536);
    let refused = refused_archive(&bench, &truncated);
    assert!(refused.ends_with("a damaged one: it ends too early"), "{refused}");
    // A header that claims a name of a gigabyte is not read.
    let mut long = tar::Header::new_gnu();
    long.set_entry_type(EntryType::GNULongName);
    long.set_size(1 << 30);
    long.set_cksum();
    let refused = refused_archive(&bench, long.as_bytes());
    assert!(refused.contains("a header has 1073741824 bytes"), "{refused}");
}

#[test]
fn a_root_must_be_there_and_have_something_to_run() {
    let bench = Bench::new();
    let from = |path: &Path| BuildRequest { root: RootSource::Directory(path.to_owned()), ..bench.request() };
    let refused = bench.refusal(&from(&bench.path("nowhere")));
    assert!(refused.contains("nowhere` cannot be read: No such file"), "{refused}");
    let refused = bench.refusal(&from(&bench.kernel()));
    assert!(refused.ends_with("is not a directory; a tar archive is given as such"), "{refused}");

    bench.write("srv/tool", 0o644, b"#!/bin/sh\n");
    let init = |init: &str| BuildRequest { init: Some(init.to_owned()), ..bench.request() };
    assert_eq!(bench.refusal(&init("/srv/none")), "no init: `/srv/none` is not in the root");
    let refused = bench.refusal(&init("/srv/tool"));
    assert_eq!(refused, "init `/srv/tool` is not executable (mode 0644); chmod +x it");
    bench.write("srv/tool", 0o755, b"#!/bin/sh\n");
    assert_eq!(
        bench.refusal(&init("/srv/tool")),
        "init `/srv/tool` needs `/bin/sh`, which is not in the root"
    );
    // A link out of the root is looked up in the root, as the guest will.
    symlink("/etc/passwd", bench.root().join("srv/link")).unwrap();
    assert_eq!(bench.refusal(&init("/srv/link")), "no init: `/srv/link` is not in the root");
    fs::remove_dir_all(bench.root().join("sbin")).unwrap();
    assert!(bench.refusal(&bench.request()).starts_with("no init: the root has none of /sbin/init, /init,"));
    bench.write(".reveille/x", 0o644, b"");
    assert!(bench.refusal(&bench.request()).contains("taken by the boot stage"));
}

#[test]
fn a_kernel_must_be_one() {
    let bench = Bench::new();
    let file = |kernel: &Path| {
        let kernel = KernelSource::File { kernel: kernel.to_owned(), modules: None };
        BuildRequest { kernel, ..bench.request() }
    };
    let refused = bench.refusal(&file(&bench.path("none")));
    assert!(refused.starts_with("no kernel: `") && refused.contains("none` cannot be read"), "{refused}");
    let refused = bench.refusal(&file(Path::new("/bin/busybox")));
    assert!(refused.contains("is not a kernel: it is an ELF file without a PVH entry point"), "{refused}");
    let refused = bench.refusal(&file(Path::new("/etc/passwd")));
    assert!(refused.contains("is not a kernel: it has neither the header of a bzImage"), "{refused}");
    assert!(bench.refusal(&file(&bench.root())).contains("is not a kernel: it is not a file"));
    let huge = bench.path("huge");
    fs::File::create(&huge).unwrap().set_len((256 << 20) + 1).unwrap();
    assert!(bench.refusal(&file(&huge)).contains("a kernel has at most 268435456"));

    let package =
        |path: &Path| BuildRequest { kernel: KernelSource::Package(path.to_owned()), ..bench.request() };
    let refused = bench.refusal(&package(&bench.kernel()));
    assert!(refused.contains("is no Debian package, or a damaged one"), "{refused}");
    let tree = bench.path("package");
    fs::create_dir_all(tree.join("DEBIAN")).unwrap();
    let control = "Package: empty\nVersion: 1\nArchitecture: all\nMaintainer: A <a@b>\nDescription: none\n";
    fs::write(tree.join("DEBIAN/control"), control).unwrap();
    let made = Command::new("dpkg-deb").arg("-b").arg(&tree).arg(bench.path("empty.deb")).output().unwrap();
    assert!(made.status.success());
    let refused = bench.refusal(&package(&bench.path("empty.deb")));
    assert!(
        refused.starts_with("no kernel: the package `") && refused.ends_with("has no boot/vmlinuz-*"),
        "{refused}"
    );
}

#[test]
fn modules_must_be_of_the_kernel() {
    let bench = Bench::new();
    let with = |modules: &Path| {
        let kernel = KernelSource::File { kernel: bench.kernel(), modules: Some(modules.to_owned()) };
        BuildRequest { kernel, ..bench.request() }
    };
    let refused = bench.refusal(&with(&bench.root()));
    assert!(refused.contains("has no modules of kernel 6.1.0-test"), "{refused}");

    // The drivers of Debian's kernel under the version of another.
    bench.store.build(&with_debian_kernel(&bench.root()), &mut |_| ()).unwrap();
    let package = fs::read_dir(package_cache())
        .unwrap()
        .map(|item| item.unwrap().path())
        .find(|path| path.to_string_lossy().contains("linux-image"))
        .unwrap();
    let unpacked = bench.path("unpacked");
    assert!(Command::new("dpkg-deb").arg("-x").args([&package, &unpacked]).status().unwrap().success());
    let modules = ["lib/modules", "usr/lib/modules"].map(|inside| unpacked.join(inside));
    let modules = modules.into_iter().find(|path| path.exists()).unwrap();
    let version = fs::read_dir(&modules).unwrap().next().unwrap().unwrap().file_name().into_string().unwrap();
    fs::rename(modules.join(&version), modules.join("6.1.0-test")).unwrap();
    let refused = bench.refusal(&with(&modules));
    let sentence = format!("is a module of kernel {version}, but the kernel is 6.1.0-test");
    assert!(refused.contains(&sentence), "{refused}");

    // With the right version one that is needed is missing.
    fs::rename(modules.join("6.1.0-test"), modules.join(&version)).unwrap();
    fs::write(bench.kernel(), kernel(&version)).unwrap();
    bench.store.build(&with(&modules), &mut |_| ()).unwrap();
    let needed = modules.join(&version).join("kernel/net/core");
    fs::remove_dir_all(needed).unwrap();
    let refused = bench.refusal(&with(&modules));
    assert!(refused.contains("the module net_failover needs failover, which"), "{refused}");
}

#[test]
fn a_busybox_must_be_static_and_a_name_a_name() {
    let bench = Bench::new();
    let dynamic = std::env::current_exe().unwrap();
    let refused = bench.refusal(&BuildRequest { busybox: Some(dynamic), ..bench.request() });
    assert!(refused.contains("is not static: it needs /lib64/ld-linux-x86-64.so.2"), "{refused}");
    let long = "a".repeat(65);
    for name in ["", "../x", "Upper", "-x", ".x", "a b", &long, &"0123456789abcdef".repeat(4)] {
        let refused = bench.refusal(&BuildRequest { name: Some(name.to_owned()), ..bench.request() });
        assert!(refused.starts_with(&format!("`{name}` cannot be the name of an image")), "{refused}");
    }
}

#[test]
fn too_large_for_the_memory_is_told_with_both_sizes() {
    let bench = Bench::new();
    bench.write("large", 0o644, &vec![1; 40 << 20]);
    let with = |memory| BuildRequest { memory_mib: Some(memory), ..bench.request() };
    let refused = bench.refusal(&with(128));
    assert!(refused.starts_with("the root is too large for 128 MiB of memory"), "{refused}");
    let image = bench.store.build(&with(512), &mut |_| ()).unwrap();
    assert!(refused.contains(&format!("needs {} MiB", image.memory_mib_min)), "{refused}");
    assert_eq!(bench.store.build(&with(image.memory_mib_min), &mut |_| ()).unwrap().digest, image.digest);
    bench.store.remove(&image.digest, &[]).unwrap();
    assert!(bench.refusal(&with(image.memory_mib_min - 1)).starts_with("the root is too large"));
}

#[test]
fn a_file_that_changes_meanwhile_is_named() {
    let bench = Bench::new();
    bench.write("srv/changing", 0o644, &vec![1; 1 << 20]);
    let path = bench.root().join("srv/changing");
    let mut shortened = false;
    let refused = bench.store.build(&bench.request(), &mut |progress| {
        if progress.step == reveille_vm::image::BuildStep::Kernel && !shortened {
            shortened = true;
            fs::write(&path, b"short").unwrap();
        }
    });
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("`srv/changing` in the root: it became shorter while it was read"), "{refused}");
    assert!(bench.store.list().unwrap().images.is_empty());
}
