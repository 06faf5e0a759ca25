use reveille_core::model::Policy;

use super::*;

#[test]
fn the_files_that_are_shipped_are_those_that_are_built_in_and_have_no_faults() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../etc/profiles");
    let mut shipped: Vec<(String, String)> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(&path).unwrap())
        })
        .collect();
    let mut built_in: Vec<(String, String)> =
        BUILT_IN.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    shipped.sort();
    built_in.sort();
    assert_eq!(shipped, built_in);
    for (name, text) in BUILT_IN {
        let (profile, faults) = read(text);
        assert_eq!(faults, [], "{name}");
        assert!(!profile.about.is_empty() && !profile.boot.steps.is_empty(), "{name}");
        assert!(!profile.restore.steps.is_empty(), "{name}");
        assert!(profile.restore.total_ms_max < profile.boot.total_ms_max, "{name}: the lighter set");
        // They mean what they say for a service that sets nothing.
        for set in [WarmUpSet::Boot, WarmUpSet::Restore] {
            let (steps, left_ms) = (profile.set(set), set.left_ms(&Policy::default()));
            assert!(steps.total_ms_max <= left_ms, "{name}, {}: {left_ms} ms", set.word());
            for step in &steps.steps {
                let tries = u64::from(step.retries) + 1;
                assert!(step.timeout_ms * tries <= steps.total_ms_max, "{name}: {}", step.name);
            }
        }
    }
}

#[test]
fn every_fault_of_a_file_is_told_at_once_with_the_file_and_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let good = "[boot]\n[[boot.step]]\nexec = { path = \"/a\" }\n";
    fs::write(dir.path().join("good.toml"), good).unwrap();
    fs::write(dir.path().join("notes.txt"), "no profile").unwrap();
    let profiles = Profiles::load(dir.path()).unwrap();
    assert_eq!(profiles.iter().count(), 4);
    assert_eq!(profiles.get("good").unwrap().source, Source::User);
    assert_eq!(profiles.get("good").unwrap().profile.boot.total_ms_max, BOOT_MS);

    let odd = r#"
        surprise = 1
        [boot]
        total_ms_max = -5
        steps = 3
        [[boot.step]]
        http = { path = "/" }
        retrys = 2
        [[boot.step]]
        tcp = { connections = "many" }
        [[boot.step]]
        exec = { path = "relative" }
        on_failure = "panic"
        [[restore.step]]
    "#;
    fs::write(dir.path().join("odd.toml"), odd).unwrap();
    fs::write(dir.path().join("cache-heavy.toml"), good).unwrap();
    fs::write(dir.path().join("broken.toml"), "[boot").unwrap();
    let faults = Profiles::load(dir.path()).unwrap_err();
    let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
    let file = |name: &str| dir.path().join(name).display().to_string();
    for (name, part) in [
        ("odd.toml", "surprise = 1: about"),
        ("odd.toml", "boot.total_ms_max = -5: total_ms_max"),
        ("odd.toml", "boot.steps = 3: total_ms_max"),
        ("odd.toml", "boot.step[0].http = { path = \"/\" }: unknown field `path`"),
        ("odd.toml", "boot.step[0].retrys = 2: unknown field"),
        ("odd.toml", "boot.step[1].tcp = "),
        ("odd.toml", "boot.step[2].on_failure = \"panic\": unknown variant"),
        ("odd.toml", "restore.step[0] = 0 of them: exactly one of"),
        ("cache-heavy.toml", "the name = cache-heavy: another name"),
        ("broken.toml", "the text = no TOML: line 1"),
    ] {
        let expected = format!("{}: {part}", file(name));
        assert!(told.iter().any(|fault| fault.starts_with(&expected)), "no `{expected}` in {told:#?}");
    }
}

#[test]
fn a_service_names_a_profile_that_there_is() {
    let spec = |profile: &str| -> ServiceSpec {
        let ports = ["tcp/80"];
        let value =
            serde_json::json!({"name": "a.vm.test", "image": "i", "ports": ports, "profile": profile});
        serde_json::from_value(value).unwrap()
    };
    let profiles = Profiles::default();
    for known in ["auto", "cache-heavy"] {
        assert_eq!(profiles.fault_of(&spec(known)), None);
    }
    let fault = profiles.fault_of(&spec("mine")).unwrap().to_string();
    assert_eq!(fault, "profile = mine: auto, cache-heavy, compute-heavy, database-heavy");
    assert_eq!(Profiles::of(&spec("mine")), Some(("mine".to_owned(), None)));
    assert_eq!(Profiles::of(&spec("auto")).unwrap().0, "cache-heavy");
}

#[test]
fn a_set_that_is_longer_than_its_start_leaves_is_told_with_the_time_that_it_gets() {
    let spec = |policy: serde_json::Value| -> ServiceSpec {
        let (ports, profile) = (["tcp/80"], "long");
        let value = serde_json::json!({
            "name": "a.vm.test", "image": "i", "ports": ports, "profile": profile, "policy": policy,
        });
        serde_json::from_value(value).unwrap()
    };
    let step = "step]]\nwait_for = { ready = true }\n";
    let text = format!(
        "[boot]\ntotal_ms_max = 45000\n[[boot.{step}[restore]\ntotal_ms_max = 3000\n[[restore.{step}"
    );
    let profiles = Profiles::default().with("long", &text);
    let usual = spec(serde_json::json!({}));
    let times = |spec: &ServiceSpec| -> Vec<(&str, u64, u64)> {
        let times = profiles.times_of(spec).into_iter();
        times.map(|time| (time.set.word(), time.total_ms_max, time.effective_ms_max)).collect()
    };
    assert_eq!(times(&usual), [("boot", 45_000, 30_000), ("restore", 3_000, 3_000)]);
    let told: Vec<String> = profiles.too_long(&usual).iter().map(ToString::to_string).collect();
    let expected = "profile = long: a profile whose boot set takes 30000 ms at most, which is what policy.boot_ms_max \
                    leaves: of its 45000 ms it gets no more";
    assert_eq!(told, [expected]);
    let longer = spec(serde_json::json!({"boot_ms_max": 90_000, "restore_ms_max": 4_000}));
    assert_eq!(times(&longer), [("boot", 45_000, 45_000), ("restore", 3_000, 2_000)]);
    assert!(profiles.too_long(&longer)[0].to_string().contains("policy.restore_ms_max"));
    let without = ServiceSpec { profile: None, ..usual };
    assert_eq!((times(&without).len(), profiles.too_long(&without).len()), (0, 0));
}
