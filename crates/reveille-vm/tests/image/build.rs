//! What is built, and that the same is built again.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use reveille_vm::image::{BuildRequest, BuildStep, RootSource};

use crate::support::{Bench, package_cache, paths, unpack, with_debian_kernel};

/// The root of a bench as a tar archive, with other times than the files have.
fn tar_of(root: &Path) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.follow_symlinks(false);
    tar.mode(tar::HeaderMode::Deterministic);
    tar.append_dir_all(".", root).unwrap();
    tar.into_inner().unwrap()
}

#[test]
fn the_same_root_gives_the_same_image_from_wherever_it_comes() {
    let bench = Bench::new();
    bench.write("etc/motd", 0o644, b"hello\n");
    bench.write("usr/bin/tool", 0o755, &[7; 100_000]);
    symlink("tool", bench.root().join("usr/bin/alias")).unwrap();
    for directory in ["", "etc", "usr", "usr/bin", "sbin"] {
        fs::set_permissions(bench.root().join(directory), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let image = bench.build();
    assert_eq!(image.entries, paths(&image.initrd).len() as u64);
    assert_eq!(bench.build().digest, image.digest);
    assert_eq!(bench.store.list().unwrap().images, std::slice::from_ref(&image));

    let tar = tar_of(&bench.root());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let archives = [
        ("root.tar", tar.clone()),
        ("root.tar.gz", gzip.finish().unwrap()),
        ("root.tar.zst", zstd::encode_all(tar.as_slice(), 1).unwrap()),
    ];
    for (name, archive) in archives {
        fs::write(bench.path(name), archive).unwrap();
        let request = BuildRequest { root: RootSource::Tar(bench.path(name)), ..bench.request() };
        assert_eq!(bench.store.build(&request, &mut |_| ()).unwrap().digest, image.digest, "{name}");
    }

    // One bit of one mode is another image.
    fs::set_permissions(bench.root().join("etc/motd"), fs::Permissions::from_mode(0o640)).unwrap();
    assert_ne!(bench.build().digest, image.digest);
}

#[test]
fn what_is_in_the_root_is_in_the_image() {
    let bench = Bench::new();
    bench.write("srv/one", 0o4711, b"content");
    fs::hard_link(bench.root().join("srv/one"), bench.root().join("srv/two")).unwrap();
    symlink("/srv/one", bench.root().join("link")).unwrap();
    fs::create_dir(bench.root().join("empty")).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(bench.root().join("socket")).unwrap();
    let image = bench.build();
    drop(socket);

    assert_eq!(image.kernel_version, "6.1.0-test");
    assert_eq!(image.init, "/sbin/init");
    assert_eq!(fs::read(&image.kernel).unwrap(), fs::read(bench.kernel()).unwrap());
    assert_eq!(image.notes.len(), 3, "{:?}", image.notes);
    assert_eq!(image.notes[0], "1 sockets were left out");
    assert!(image.notes[1].contains("must have virtio built in"));
    assert_eq!(image.notes[2], reveille_vm::image::NO_AGENT);

    let unpacked = bench.path("unpacked");
    unpack(&image.initrd, &unpacked);
    let one = fs::metadata(unpacked.join("srv/one")).unwrap();
    assert_eq!(fs::read(unpacked.join("srv/one")).unwrap(), b"content");
    assert_eq!(one.mode() & 0o777, 0o711);
    assert_eq!(one.ino(), fs::metadata(unpacked.join("srv/two")).unwrap().ino());
    assert_eq!(fs::read_link(unpacked.join("link")).unwrap(), Path::new("/srv/one"));
    assert!(unpacked.join("empty").is_dir());
    assert!(!unpacked.join("socket").exists());
    let sorted = paths(&image.initrd);
    assert!(sorted.is_sorted());
    assert!(sorted.contains(&"dev/console".to_owned()));
}

#[test]
fn the_builder_is_told_how_far_it_is() {
    let bench = Bench::new();
    bench.write("large", 0o644, &vec![1; 3 << 20]);
    let mut seen = Vec::new();
    let image = bench.store.build(&bench.request(), &mut |progress| seen.push(progress)).unwrap();
    let of = |step| seen.iter().rev().filter(move |progress| progress.step == step);
    assert_eq!(of(BuildStep::Root).next().unwrap().entries, 3);
    assert!(of(BuildStep::Kernel).next().is_some());
    let last = of(BuildStep::Write).next().unwrap();
    assert_eq!(last.entries, image.entries);
    assert_eq!(last.bytes_total, Some(image.bytes));
    assert!(last.bytes > 3 << 20 && last.bytes <= image.bytes);
}

#[test]
fn debians_kernel_comes_with_its_drivers() {
    let bench = Bench::new();
    let request = with_debian_kernel(&bench.root());
    let image = bench.store.build(&request, &mut |_| ()).unwrap();
    assert!(image.kernel_version.ends_with("-cloud-amd64"), "{}", image.kernel_version);
    assert_eq!(image.notes, [reveille_vm::image::NO_AGENT]);
    let unpacked = bench.path("unpacked");
    unpack(&image.initrd, &unpacked);
    let configuration = fs::read_to_string(unpacked.join(".reveille/boot.conf")).unwrap();
    let order = configuration.lines().find_map(|line| line.strip_prefix("modules_virtio_net=")).unwrap();
    assert_eq!(order, "'virtio_ring virtio failover net_failover virtio_net'");
    for name in ["virtio_mmio", "virtio_net", "virtio_rng", "virtio_blk", "virtio_balloon", "net_failover"] {
        assert!(unpacked.join(format!(".reveille/modules/{name}.ko")).exists(), "{name}");
    }
    // The package that was fetched is there; given as such it makes the same image.
    let package = fs::read_dir(package_cache())
        .unwrap()
        .map(|item| item.unwrap().path())
        .find(|path| path.file_name().unwrap().to_string_lossy().contains(&image.kernel_version))
        .unwrap();
    let given =
        BuildRequest { kernel: reveille_vm::image::KernelSource::Package(package), ..bench.request() };
    assert_eq!(bench.store.build(&given, &mut |_| ()).unwrap().digest, image.digest);
}
