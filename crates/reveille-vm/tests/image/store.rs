//! Names, digests, removal, damage.

use std::fs;

use reveille_vm::image::{BuildRequest, ImageStore, RemoveError, ResolveError, Use};

use crate::support::{Bench, left_overs};

#[test]
fn an_image_is_found_by_name_digest_and_the_beginning_of_one() {
    let bench = Bench::new();
    let none = bench.store.resolve("web").unwrap_err().to_string();
    assert_eq!(none, "there is no image `web`; there are: none; build one with `reveille image build`");
    let image = bench.build_named("web");
    assert_eq!(image.names, ["web"]);
    for reference in ["web", &image.digest, &image.digest[..6]] {
        assert_eq!(bench.store.resolve(reference).unwrap(), image, "{reference}");
    }
    let short = bench.store.resolve(&image.digest[..5]).unwrap_err().to_string();
    assert!(short.ends_with("there are: web"), "{short}");

    // A name that looks like the beginning of a digest is a name.
    bench.write("etc/other", 0o644, b"other");
    let other = bench.build_named(&image.digest[..8]);
    assert_ne!(other.digest, image.digest);
    assert_eq!(bench.store.resolve(&image.digest[..8]).unwrap().digest, other.digest);

    // A second directory with the same first digits.
    let twin = format!("{}{}", &other.digest[..10], "0".repeat(54));
    fs::create_dir(bench.images().join(&twin)).unwrap();
    let ambiguous = bench.store.resolve(&other.digest[..10]).unwrap_err();
    assert!(
        matches!(&ambiguous, ResolveError::Ambiguous { digests, .. } if digests.len() == 2),
        "{ambiguous}"
    );
}

#[test]
fn a_new_build_moves_the_name_and_keeps_the_old_image() {
    let bench = Bench::new();
    let old = bench.build_named("web");
    bench.write("etc/new", 0o644, b"new");
    let new = bench.build_named("web");
    assert_eq!(bench.store.resolve("web").unwrap().digest, new.digest);
    assert_eq!(bench.store.resolve(&old.digest).unwrap().names, Vec::<String>::new());
    bench.store.set_name("web", &old.digest).unwrap();
    assert_eq!(bench.store.resolve("web").unwrap().digest, old.digest);
}

#[test]
fn an_image_goes_with_its_last_name_and_not_while_it_is_used() {
    let bench = Bench::new();
    let image = bench.build_named("web");
    bench.store.set_name("shop", &image.digest).unwrap();
    let used = |image: &str| [Use { image: image.to_owned(), user: "service hello.vm.test".to_owned() }];

    let several = bench.store.remove(&image.digest, &[]).unwrap_err().to_string();
    assert_eq!(several, format!("image {} has the names shop, web; remove these", image.digest));
    let by_name = bench.store.remove("web", &used("web")).unwrap_err().to_string();
    assert_eq!(
        by_name,
        "image `web` is used by service hello.vm.test; remove that first, or give it another image"
    );
    // Who means the image by its digest does not need this name.
    let removed = bench.store.remove("web", &used(&image.digest)).unwrap();
    assert_eq!((removed.names, removed.image), (vec!["web".to_owned()], false));
    for meant in ["shop", &image.digest, &image.digest[..8]] {
        let refused = bench.store.remove("shop", &used(meant)).unwrap_err();
        assert!(matches!(refused, RemoveError::InUse { .. }), "{meant}: {refused}");
    }
    assert_eq!(bench.store.resolve("shop").unwrap().digest, image.digest);
    let removed = bench.store.remove(&image.digest[..8], &used("another")).unwrap();
    assert_eq!((removed.names, removed.image), (vec!["shop".to_owned()], true));
    assert!(bench.store.list().unwrap().images.is_empty());
    assert!(!bench.images().join(&image.digest).exists());
    assert_eq!(left_overs(&bench.images()), Vec::<String>::new());
    assert!(matches!(
        bench.store.remove("shop", &[]),
        Err(RemoveError::Resolve(ResolveError::Unknown { .. }))
    ));
}

#[test]
fn damage_is_found_told_and_repaired_by_building_again() {
    let bench = Bench::new();
    let image = bench.build_named("web");
    bench.store.verify("web").unwrap();
    let flip = |name: &str, at: usize| {
        let path = bench.images().join(&image.digest).join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
    };
    flip("initrd", 1000);
    let changed = bench.store.verify("web").unwrap_err().to_string();
    assert_eq!(changed, "image web cannot be used: `initrd` has changed since the image was built");
    assert_eq!(bench.build_named("web"), bench.store.verify("web").unwrap());

    fs::write(&image.kernel, b"short").unwrap();
    let changed = bench.store.resolve("web").unwrap_err().to_string();
    assert!(changed.contains("`kernel` has changed"), "{changed}");
    let listing = bench.store.list().unwrap();
    assert!(listing.images.is_empty());
    assert_eq!(listing.damaged[0].what, image.digest);
    bench.build();

    let manifest = bench.images().join(&image.digest).join("image.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("6.1.0-test", "6.2.0-test")).unwrap();
    let other = bench.store.resolve("web").unwrap_err().to_string();
    assert!(other.contains("image.json belongs to image "), "{other}");
    fs::remove_dir_all(bench.images().join(&image.digest)).unwrap();
    let damaged = bench.store.list().unwrap().damaged;
    assert_eq!(damaged[0].fault, format!("the name stands for image {}, which is not there", image.digest));
    bench.build();
    assert_eq!(bench.store.resolve("web").unwrap().digest, image.digest);
}

#[test]
fn what_a_living_builder_works_on_is_not_swept() {
    let bench = Bench::new();
    let other = ImageStore::open(bench.images()).unwrap();
    let dead = bench.images().join(".build-dead");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("initrd"), b"half").unwrap();
    let mut swept = Vec::new();
    bench.store.build(&bench.request(), &mut |_| swept.push(other.sweep().unwrap())).unwrap();
    assert_eq!(swept.first(), Some(&1));
    assert!(swept.len() > 2 && swept[1..].iter().all(|count| *count == 0), "{swept:?}");
}

#[test]
fn two_who_build_the_same_at_once_get_the_same() {
    let bench = Bench::new();
    bench.write("large", 0o644, &vec![3; 4 << 20]);
    let digests: Vec<String> = std::thread::scope(|scope| {
        let builds: Vec<_> = (0..4)
            .map(|builder| {
                let bench = &bench;
                let request = BuildRequest { name: Some(format!("name-{builder}")), ..bench.request() };
                scope.spawn(move || bench.store.build(&request, &mut |_| ()).unwrap().digest)
            })
            .collect();
        builds.into_iter().map(|build| build.join().unwrap()).collect()
    });
    assert!(digests.iter().all(|digest| *digest == digests[0]));
    let listing = bench.store.list().unwrap();
    assert_eq!(listing.images.len(), 1);
    assert_eq!(listing.images[0].names, ["name-0", "name-1", "name-2", "name-3"]);
    assert_eq!(left_overs(&bench.images()), Vec::<String>::new());
}
