//! Images from registries of containers.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::servers;
use crate::small::{from_environment, text};
use crate::world::World;

/// Runs a program, which must succeed.
fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output.stderr));
}

/// A container image, as `docker save` writes it, of this host's busybox.
fn saved(directory: &Path) -> String {
    let (root, parts) = (directory.join("root"), directory.join("parts"));
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir_all(&parts).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let part = |name: &str| parts.join(name).to_str().unwrap().to_owned();
    run("tar", &["-C", root.to_str().unwrap(), "-cf", &part("layer.tar"), "bin"]);
    let layer = Command::new("sha256sum").arg(part("layer.tar")).output().unwrap().stdout;
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Entrypoint": ["/bin/busybox", "sleep", "100000"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", &text(&layer)[..64])] },
    });
    let manifest =
        serde_json::json!([{ "Config": "config.json", "RepoTags": ["test:1"], "Layers": ["layer.tar"] }]);
    fs::write(part("config.json"), config.to_string()).unwrap();
    fs::write(part("manifest.json"), manifest.to_string()).unwrap();
    let archive = directory.join("saved.tar").to_str().unwrap().to_owned();
    run(
        "tar",
        &["-C", parts.to_str().unwrap(), "-cf", &archive, "manifest.json", "config.json", "layer.tar"],
    );
    archive
}

#[test]
fn an_image_is_built_from_what_a_registry_has() {
    let temp = tempfile::tempdir().unwrap();
    let Some(registry) = servers::registry(temp.path()) else { return };
    let reference = format!("{}/test/busy:1", registry.address());
    let archive = saved(temp.path());
    run(
        "skopeo",
        &[
            "copy",
            "-q",
            "--dest-tls-verify=false",
            &format!("docker-archive:{archive}"),
            &format!("docker://{reference}"),
        ],
    );
    let world = World::new().own_images();
    let state = world.path("state");
    let cache = from_environment("REVEILLE_TEST_CACHE");
    let build = |reference: &str| {
        [
            "image",
            "build",
            "busy",
            "--pull",
            reference,
            "--kernel",
            "debian",
            "--state-dir",
            state.to_str().unwrap(),
        ]
        .map(str::to_owned)
        .into_iter()
        .chain(["--package-cache".to_owned(), cache.to_str().unwrap().to_owned()])
        .collect::<Vec<_>>()
    };
    let ask = |words: Vec<String>| world.json(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let built = ask(build(&reference));
    assert_eq!(built["names"], serde_json::json!(["busy"]));

    let missing = build(&format!("{}/test/nobody:1", registry.address()));
    let refused = world.refused(&missing.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(
        refused.contains("cannot be had from its registry") && refused.contains("manifest unknown"),
        "{refused}"
    );
}
