//! The files of keys: for other tools, after losses, and under `kill -9`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use reveille_core::answer::Zone;
use reveille_core::model::Timestamp;
use reveille_dns::sign::{KeyError, KeyPolicy, KeyState, RolloverError, Signing, SigningLimits};
use tempfile::TempDir;

use crate::common::name;
use crate::signed::{SignedWorld, child_records, ds_data, now};

const DAY_MS: u64 = 86_400_000;
/// Longest wait for the next word of a child.
const SPOKEN_WITHIN: Duration = Duration::from_secs(30);

fn zone() -> Zone {
    child_records("vm.test", 300, 30).zone("vm.test")
}

fn open_at(dir: &Path, now: Timestamp) -> Result<Signing, Vec<KeyError>> {
    Signing::open(dir, [(&zone(), 0)], KeyPolicy::default(), &SigningLimits::default(), now)
}

fn open(dir: &Path) -> Signing {
    open_at(dir, now()).unwrap()
}

/// Why the keys are refused.
fn refused(dir: &Path) -> String {
    let errors = open_at(dir, now()).unwrap_err();
    assert_eq!(errors.len(), 1);
    errors[0].to_string()
}

fn states(signing: &Signing) -> Vec<(u16, KeyState)> {
    let report = signing.report(&name("vm.test"), now()).unwrap();
    report.keys.iter().map(|key| (key.tag, key.state)).collect()
}

fn keys_of(dir: &Path) -> PathBuf {
    dir.join("keys/vm.test")
}

/// The key's files without their endings.
fn base(dir: &Path, tag: u16) -> PathBuf {
    keys_of(dir).join(format!("Kvm.test.+013+{tag:05}"))
}

fn run(program: &str, arguments: &[&str], dir: &Path) -> String {
    let output = Command::new(program).args(arguments).current_dir(dir).output();
    let output =
        output.unwrap_or_else(|error| panic!("{program}: {error}; `make test` installs what the tests need"));
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

#[test]
fn bind_reads_the_keys_and_its_keys_are_read() {
    let dir = TempDir::new().unwrap();
    let signing = open(dir.path());
    let (tag, _) = states(&signing)[0];
    let file = format!("Kvm.test.+013+{tag:05}");
    let keys = keys_of(dir.path());
    for (path, mode) in [(keys.clone(), 0o700), (keys.join(file.clone() + ".private"), 0o600)] {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{path:?}");
    }
    let ds = run("dnssec-dsfromkey", &["-2", &file], &keys);
    let told = signing.report(&name("vm.test"), now()).unwrap().keys[0].ds.clone().unwrap();
    assert_eq!(ds_data(ds.trim()), ds_data(&told));
    assert!(run("dnssec-settime", &["-p", "all", &file], &keys).contains("Activate: "));
    // It signs with it, too.
    let records = "$TTL 60\n@ SOA ns hostmaster 1 3600 600 604800 60\n@ NS ns\nns A 127.0.0.1\n";
    fs::write(keys.join("zone"), records).unwrap();
    run("dnssec-signzone", &["-S", "-z", "-o", "vm.test", "-f", "signed", "zone"], &keys);
    run("dnssec-verify", &["-z", "-o", "vm.test", "signed"], &keys);

    // A zone that was signed by BIND comes with its key.
    let dir = TempDir::new().unwrap();
    fs::create_dir_all(keys_of(dir.path())).unwrap();
    let made = run("dnssec-keygen", &["-q", "-a", "13", "-f", "KSK", "vm.test"], &keys_of(dir.path()));
    let tag: u16 = made.trim().rsplit('+').next().unwrap().parse().unwrap();
    assert_eq!(states(&open(dir.path())), [(tag, KeyState::Active)]);
    // Of two, nobody knows which one the parent has.
    let dir = TempDir::new().unwrap();
    fs::create_dir_all(keys_of(dir.path())).unwrap();
    for _ in 0..2 {
        run("dnssec-keygen", &["-q", "-a", "13", "-f", "KSK", "vm.test"], &keys_of(dir.path()));
    }
    assert!(refused(dir.path()).contains("more than one key and no state file"));
    // Not a key that signs a zone as a whole.
    let dir = TempDir::new().unwrap();
    fs::create_dir_all(keys_of(dir.path())).unwrap();
    run("dnssec-keygen", &["-q", "-a", "13", "vm.test"], &keys_of(dir.path()));
    assert!(refused(dir.path()).contains("flags 257"));
}

/// RFC 7344: the parent follows what the child publishes, as BIND's tool for parents reads it.
#[test]
fn a_parent_that_looks_at_cds_takes_the_new_key_and_no_other() {
    let policy = KeyPolicy { ttl_s_max: 1, dnskey_ttl_s: 1, propagation_s: 1, ..KeyPolicy::default() };
    let world = SignedWorld::new(
        policy,
        &SigningLimits::default(),
        vec![child_records("vm.test", 1, 1).zone("vm.test")],
        vec![],
    );
    let dir = world.dir.path();
    let published = || {
        let ask = |qtype| world.dig(&["+dnssec", "+noall", "+answer", "+tcp", "vm.test", qtype]);
        [ask("DNSKEY"), ask("CDS"), ask("CDNSKEY")].concat()
    };
    assert!(!published().contains("CDS"), "too early");
    world.step_until("the DS may be put to the parent", |world| !world.ds("vm.test").is_empty());
    let (first, _) = world.states("vm.test")[0];
    let ds_of = |tag| run("dnssec-dsfromkey", &["-2", base(dir, tag).to_str().unwrap()], dir);
    fs::write(dir.join("dsset"), ds_of(first)).unwrap();
    let follow = || {
        fs::write(dir.join("child"), published()).unwrap();
        run("dnssec-cds", &["-s", "-10800", "-f", "child", "-d", "dsset", "vm.test"], dir)
    };
    let tags = |text: String| -> Vec<u16> {
        text.lines()
            .map(|line| {
                u16::from_be_bytes(
                    ds_data(&line.replace("3600", "").replace(" 1 ", " "))[..2].try_into().unwrap(),
                )
            })
            .collect()
    };
    assert_eq!(tags(follow()), [first]);
    world.signing.ds_seen(&name("vm.test"), now()).unwrap();
    world.signing.begin_rollover(&name("vm.test"), now()).unwrap();
    // In the zone, but not to be followed yet.
    assert_eq!(tags(follow()), [first]);
    world.step_until("the new key is ready", |world| world.states("vm.test")[1].1 == KeyState::Ready);
    assert_eq!(tags(follow()), [world.states("vm.test")[1].0]);
}

#[test]
fn a_zone_whose_keys_are_gone_is_refused_and_given_no_others() {
    let dir = TempDir::new().unwrap();
    let before = states(&open(dir.path()));
    assert_eq!(states(&open(dir.path())), before, "the same key at the next start");

    let away = dir.path().join("away");
    fs::rename(dir.path().join("keys"), &away).unwrap();
    let text = refused(dir.path());
    assert!(text.contains("vm.test was signed before") && text.contains("state.toml"), "{text}");
    assert!(!keys_of(dir.path()).exists());
    fs::rename(&away, dir.path().join("keys")).unwrap();
    assert_eq!(states(&open(dir.path())), before);

    // Each file by itself.
    let base = base(dir.path(), before[0].0);
    for ending in ["private", "key"] {
        let path = PathBuf::from(format!("{}.{ending}", base.display()));
        let kept = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(refused(dir.path()).contains(&*path.to_string_lossy()));
        fs::write(&path, "nonsense").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(refused(dir.path()).contains(&*path.to_string_lossy()));
        fs::write(&path, kept).unwrap();
    }
    let state = keys_of(dir.path()).join("state.toml");
    let kept = fs::read_to_string(&state).unwrap();
    for broken in
        ["", "nonsense", &kept.replace("version = 1", "version = 2"), &kept.replace("vm.test", "other.test")]
    {
        fs::write(&state, broken).unwrap();
        assert!(refused(dir.path()).contains("state.toml"));
    }
    fs::remove_file(&state).unwrap();
    assert!(
        refused(dir.path()).contains("was signed before"),
        "a key without its ledger is not guessed about"
    );
    fs::write(&state, kept).unwrap();

    // Another key under the same name, and one that others may read.
    let (private, public) = (format!("{}.private", base.display()), format!("{}.key", base.display()));
    let kept = fs::read(&public).unwrap();
    let other = TempDir::new().unwrap();
    let (tag, _) = states(&open(other.path()))[0];
    fs::copy(self::base(other.path(), tag).to_string_lossy().into_owned() + ".key", &public).unwrap();
    assert!(refused(dir.path()).contains("does not belong to the public key"));
    fs::write(&public, kept).unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(refused(dir.path()).contains("Make it 600"));
    fs::set_permissions(&private, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(states(&open(dir.path())), before);
}

#[test]
fn a_zone_that_its_parent_may_know_as_signed_is_not_served_unsigned() {
    let dir = TempDir::new().unwrap();
    let leave = || Signing::leave_unsigned(dir.path(), &name("vm.test"));
    assert!(leave().is_ok() && fs::read_dir(dir.path()).unwrap().next().is_none());
    let early = Timestamp::from_ms(now().as_ms() - 10 * DAY_MS);
    let before = states(&open_at(dir.path(), early).unwrap());
    // Nobody was told of the key yet: it is kept, but counts from the next time that the zone is signed.
    assert!(leave().is_ok() && leave().is_ok());
    let signing = open(dir.path());
    assert_eq!(states(&signing), before);
    let look = signing.step(now(), now());
    assert!(look.changes.is_empty(), "caches may hold unsigned answers: {look:?}");
    let later = now().plus_ms(2 * DAY_MS);
    assert_eq!(signing.step(later, later).changes.len(), 1);
    let text = leave().unwrap_err().to_string();
    assert!(text.contains("remove the DS at the parent") && text.contains("signed-zones"), "{text}");
    // Nor if it cannot be known.
    fs::rename(dir.path().join("keys"), dir.path().join("away")).unwrap();
    assert!(leave().unwrap_err().to_string().contains("was signed before"));
    assert!(Signing::leave_unsigned(dir.path(), &name("other.test")).is_ok());
}

/// Two zones are to be unsigned from now on; with one of them it cannot be.
#[test]
fn zones_cease_to_be_signed_together_or_not_at_all() {
    let dir = TempDir::new().unwrap();
    let zones = ["a.test", "vm.test"].map(|apex| child_records(apex, 300, 30).zone(apex));
    let early = Timestamp::from_ms(now().as_ms() - 10 * DAY_MS);
    let open = |zones: &[Zone]| {
        let limits = SigningLimits::default();
        let zones = zones.iter().map(|zone| (zone, 0));
        Signing::open(dir.path(), zones, KeyPolicy::default(), &limits, early).unwrap()
    };
    let (none, both) = (BTreeSet::new(), BTreeSet::from([name("a.test"), name("vm.test")]));
    let signing = open(&zones);
    // Nobody was told of the key of a.test; that of vm.test is in somebody's hands by the time of the reload.
    let state = dir.path().join("keys/a.test/state.toml");
    let (ledger, list) = (fs::read(&state).unwrap(), fs::read(dir.path().join("signed-zones")).unwrap());
    signing.leave(&BTreeSet::from([name("a.test")]), &none).unwrap();
    assert_eq!(fs::read(&state).unwrap(), ledger, "keys of a zone that is not served any more stay");
    let later = early.plus_ms(3 * DAY_MS);
    assert_eq!(signing.step(later, later).changes.len(), 1);
    signing.add(&zones[0], 0, later).unwrap();
    let errors = signing.leave(&none, &both).unwrap_err();
    assert!(
        matches!(&errors[..], [KeyError::Delegated { zone, .. }] if *zone == name("vm.test")),
        "{errors:?}"
    );
    assert!(signing.is_signed(&name("a.test")) && signing.is_signed(&name("vm.test")));
    assert_eq!(fs::read(&state).unwrap(), ledger);
    assert_eq!(fs::read(dir.path().join("signed-zones")).unwrap(), list);
    // Alone it can be. It begins anew when it is signed again, not where the old ledger was.
    signing.leave(&none, &BTreeSet::from([name("a.test")])).unwrap();
    assert!(!signing.is_signed(&name("a.test")) && signing.is_signed(&name("vm.test")) && !state.exists());
    signing.add(&zones[0], 0, later).unwrap();
    assert_ne!(fs::read(&state).unwrap(), ledger);
}

#[test]
fn the_ds_waits_for_unsigned_answers_that_the_zones_records_say_nothing_of() {
    let dir = TempDir::new().unwrap();
    // A service in it was answered unsigned for three days.
    let held = [(&zone(), 3 * 86_400)];
    let signing =
        Signing::open(dir.path(), held, KeyPolicy::default(), &SigningLimits::default(), now()).unwrap();
    let at = |days: u64| now().plus_ms(days * DAY_MS);
    assert!(signing.step(at(2), at(2)).changes.is_empty());
    assert!(signing.ds_seen(&name("vm.test"), at(2)).is_err());
    assert_eq!(signing.step(at(4), at(4)).changes.len(), 1);
    assert!(signing.ds_seen(&name("vm.test"), at(4)).is_ok());
}

#[test]
fn a_clock_that_jumps_ahead_does_not_hurry_a_rollover() {
    let dir = TempDir::new().unwrap();
    let signing = open(dir.path());
    let daemon = now().plus_ms(1_000);
    signing.step(daemon, daemon.plus_ms(1_000 * DAY_MS));
    let error = signing.ds_seen(&name("vm.test"), daemon).unwrap_err();
    assert!(matches!(error, KeyError::Rollover(RolloverError::TooEarly { .. })), "{error}");
    signing.step(daemon.plus_ms(2 * DAY_MS), daemon.plus_ms(2 * DAY_MS));
    assert!(signing.ds_seen(&name("vm.test"), daemon.plus_ms(2 * DAY_MS)).is_ok());
}

/// What a process that was killed between two steps leaves behind.
#[test]
fn half_a_step_is_gone_on_from() {
    let dir = TempDir::new().unwrap();
    let before = states(&open(dir.path()));
    let (list, keys) = (dir.path().join("signed-zones"), keys_of(dir.path()));
    // The key, but no ledger and no entry in the list: it was not used yet, and is taken.
    fs::remove_file(&list).unwrap();
    fs::remove_file(keys.join("state.toml")).unwrap();
    assert_eq!(states(&open(dir.path())), before);
    // The ledger, but no entry in the list.
    fs::remove_file(&list).unwrap();
    assert_eq!(states(&open(dir.path())), before);
    assert!(fs::read_to_string(&list).unwrap().contains("vm.test\n"));
    // Files that were not given their names.
    for path in [list.clone(), keys.join("state.toml"), base(dir.path(), 1).with_extension("private")] {
        fs::write(path.to_string_lossy().into_owned() + ".new", "half").unwrap();
    }
    // A key for a rollover that was not begun.
    let other = TempDir::new().unwrap();
    let (tag, _) = states(&open(other.path()))[0];
    for ending in [".key", ".private"] {
        let file = |dir: &Path| base(dir, tag).to_string_lossy().into_owned() + ending;
        fs::copy(file(other.path()), file(dir.path())).unwrap();
    }
    let signing = open(dir.path());
    assert_eq!(states(&signing), before);
    let later = now().plus_ms(2 * DAY_MS);
    signing.step(later, later);
    signing.begin_rollover(&name("vm.test"), later).unwrap();
    assert_eq!(states(&open(dir.path())), states(&signing));
}

/// The keys that were not removed, as one line.
fn line(signing: &Signing) -> String {
    let live = states(signing).into_iter().filter(|(_, state)| *state != KeyState::Removed);
    let words = live.map(|(tag, state)| format!("{tag} {}", state.word()));
    format!("has {}.", words.collect::<Vec<_>>().join(", "))
}

/// Whether the second line is what comes after the first one.
fn follows(before: &str, after: &str) -> bool {
    fn keys(line: &str) -> Vec<(&str, &str)> {
        let keys = line.trim_start_matches("has ").trim_end_matches('.').split(", ");
        keys.map(|key| key.split_once(' ').unwrap()).collect()
    }
    match (&keys(before)[..], &keys(after)[..]) {
        ([old], [same, (_, "published")]) => old == same,
        ([old, (new, "published")], [same, (tag, "ready")]) => old == same && new == tag,
        ([(old, "active"), (new, "ready")], [(tag, "retired"), (next, "active")]) => {
            old == tag && new == next
        }
        ([(_, "retired"), new], [same]) => new == same,
        _ => false,
    }
}

/// Run by the test below in a process of its own, which it kills: rolls keys as fast as the disk allows, and tells
/// after each step what must be there from then on.
#[test]
#[ignore = "a part of the next test"]
fn rolls_keys_until_it_is_killed() {
    let Some(dir) = std::env::var_os("ROLLS_KEYS_IN") else { return };
    let zone = name("vm.test");
    let signing = open(Path::new(&dir));
    let report = signing.report(&zone, now()).unwrap();
    let mut clock = report.keys.iter().map(|key| key.since).max().unwrap();
    loop {
        println!("\n{}", line(&signing));
        clock = clock.plus_ms(10 * DAY_MS);
        signing.step(clock, clock);
        println!("\n{}", line(&signing));
        match &states(&signing)[..] {
            [.., (_, KeyState::Ready)] => signing.ds_seen(&zone, clock).unwrap(),
            _ => signing.begin_rollover(&zone, clock).unwrap(),
        };
    }
}

#[test]
fn what_was_told_survives_kill_9() {
    let dir = TempDir::new().unwrap();
    for round in 0..25u64 {
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "keys::rolls_keys_until_it_is_killed", "--ignored", "--nocapture"])
            .env("ROLLS_KEYS_IN", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (tell, hear) = std::sync::mpsc::channel();
        let reading = std::thread::spawn(move || {
            let lines = out.lines().map_while(Result::ok);
            for line in lines.filter(|line| line.starts_with("has ") && line.ends_with('.')) {
                // Nobody hears it any more when enough was told; it is still read, so that the child is not held up.
                let _ = tell.send(line);
            }
        });
        // Killed at another place each time: after so many words, and a little.
        let mut told: Vec<String> = Vec::new();
        while told.len() < usize::try_from(round).unwrap() * 3 + 1 {
            told.push(hear.recv_timeout(SPOKEN_WITHIN).expect("it rolls keys"));
        }
        std::thread::sleep(Duration::from_micros(round * 300));
        child.kill().unwrap();
        child.wait().unwrap();
        reading.join().unwrap();
        told.extend(hear.try_iter());
        for pair in told.windows(2) {
            assert!(pair[0] == pair[1] || follows(&pair[0], &pair[1]), "{pair:?}");
        }
        let Some(last) = told.last() else { continue };
        let now = line(&open(dir.path()));
        // The next step may have been durable already, and killed before it was told.
        assert!(now == *last || follows(last, &now), "told {last}\nis   {now}");
    }
}
