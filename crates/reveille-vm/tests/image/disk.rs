//! Disks of images: what may be one, and that each is stored once.

use std::fs;
use std::os::unix::fs::MetadataExt;

use reveille_vm::driver::DiskFormat;
use reveille_vm::image::{BuildRequest, RootSource};
use reveille_vm::qcow2;

use crate::support::Bench;

const MIB: u64 = 1 << 20;

/// A build with the disk of that name.
fn with_disk(bench: &Bench, name: &str) -> BuildRequest {
    BuildRequest { disk: Some(bench.path(name)), ..bench.request() }
}

#[test]
fn a_disk_belongs_to_the_image_and_is_stored_once() {
    let bench = Bench::new();
    let mut raw = vec![0; 8 << 20];
    raw[5 << 20] = 7;
    fs::write(bench.path("raw"), &raw).unwrap();
    qcow2::create_layer(&bench.path("qcow2"), 3 * MIB).unwrap();

    let without = bench.build();
    let image = bench.store.build(&with_disk(&bench, "raw"), &mut |_| ()).unwrap();
    assert_ne!(image.digest, without.digest);
    let disk = image.disk.clone().unwrap();
    assert_eq!((disk.format, disk.bytes), (DiskFormat::Raw, 8 * MIB));
    assert_eq!(fs::read(&disk.base).unwrap(), raw);
    let stored = fs::metadata(&disk.base).unwrap();
    assert!(stored.blocks() * 512 <= MIB, "zeros are holes");
    assert_eq!(stored.mode() & 0o777, 0o444);

    // Another kernel's image has the very file.
    fs::write(bench.kernel(), crate::support::kernel("6.2.0-test")).unwrap();
    let other = bench.store.build(&with_disk(&bench, "raw"), &mut |_| ()).unwrap();
    assert_ne!(other.digest, image.digest);
    assert_eq!(fs::metadata(other.disk.unwrap().base).unwrap().ino(), stored.ino());
    bench.store.remove(&image.digest, &[]).unwrap();
    bench.store.verify(&other.digest).unwrap();

    let image = bench.store.build(&with_disk(&bench, "qcow2"), &mut |_| ()).unwrap();
    let disk = image.disk.clone().unwrap();
    assert_eq!((disk.format, disk.bytes), (DiskFormat::Qcow2, 3 * MIB));
    qcow2::check_base(&disk).unwrap();

    // One that changed is found, whoever changed it.
    fs::remove_file(&disk.base).unwrap();
    qcow2::create_layer(&disk.base, 4 * MIB).unwrap();
    let fault = bench.store.verify(&image.digest).unwrap_err().to_string();
    assert!(fault.contains("`disk` has changed since the image was built"), "{fault}");
    assert!(qcow2::check_base(&disk).is_err());
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let bench = Bench::new();
    qcow2::create_layer(&bench.path("good"), MIB).unwrap();
    let good = fs::read(bench.path("good")).unwrap();
    let bent = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let cases: [(Vec<u8>, &str); 7] = [
        (bent(15, 200), "it is an overlay of another file; flatten it"),
        (bent(79, 4), "its data lies in another file"),
        (bent(35, 1), "it is encrypted"),
        (bent(79, 1), "it is marked as not closed; repair it with `qemu-img check -r all`"),
        (bent(24, 1), "in sectors of 512"),
        (b"KDMV".repeat(512), "it is a disk of the format VMDK; convert it"),
        (b"some text".to_vec(), "it has 9 bytes"),
    ];
    for (bytes, expected) in cases {
        fs::write(bench.path("disk"), bytes).unwrap();
        let refused = bench.refusal(&with_disk(&bench, "disk"));
        assert!(refused.starts_with("the disk `") && refused.contains(expected), "{refused}");
    }
    let absent = bench.refusal(&with_disk(&bench, "nothing"));
    assert!(absent.contains("No such file"), "{absent}");
    let directory = bench.refusal(&with_disk(&bench, "root"));
    assert!(directory.contains("it is not a file"), "{directory}");

    let root = |device: &str| RootSource::OnDisk { device: device.to_owned() };
    let none = bench.refusal(&BuildRequest { root: root("/dev/vda"), ..bench.request() });
    assert_eq!(none, "the root is on the disk, and no disk was given");
    let odd = BuildRequest { root: root("/dev/vda';x"), ..with_disk(&bench, "good") };
    assert!(bench.refusal(&odd).contains("is no disk of the guest's"));
}
