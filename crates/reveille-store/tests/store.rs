//! What the state database keeps, bounds, refuses and survives, within one process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what failed by failing"
)]

use std::fs;
use std::path::Path;

use reveille_core::decide::{Action, Decision, Reason};
use reveille_core::health::{Fault, Health, HealthReason, Probe};
use reveille_core::model::{
    DomainName, Instance, InstanceId, Policy, Resources, Rung, ServiceSpec, Stage, Timestamp, Trigger,
    WakeOutcome, WakeRecord,
};
use reveille_store::{
    Change, DECISIONS_MAX, HEALTH_MAX, Loaded, OpenError, Origin, Store, StoredDecision, StoredHealth,
    StoredPublished, StoredService, StoredStaticSet, StoredToken, TokenHash, WAKES_MAX,
};

fn name(text: &str) -> DomainName {
    text.parse().unwrap()
}

fn service(text: &str) -> StoredService {
    let spec = ServiceSpec {
        name: name(text),
        kind: Default::default(),
        image: "demo".to_owned(),
        resources: Resources::default(),
        ports: vec!["tcp/8080".parse().unwrap()],
        ready: None,
        profile: None,
        address: None,
        address6: None,
        priority: 3,
        egress: Default::default(),
        egress_allow: Vec::new(),
        egress_deny: Vec::new(),
        policy: Policy { rest: Rung::Armed, ..Policy::default() },
        health: Default::default(),
    };
    StoredService {
        spec,
        address: "127.64.0.1".parse().unwrap(),
        created_at: Timestamp::from_ms(5),
        origin: Origin::Api,
    }
}

fn instance(id: InstanceId) -> Instance {
    Instance::new(id, name("hello.vm.test"), Timestamp::from_ms(7))
}

fn put(id: u64) -> Change {
    Change::PutInstance(Box::new(instance(InstanceId(id))))
}

fn wake(at: u64) -> WakeRecord {
    WakeRecord {
        service: name("hello.vm.test"),
        instance: InstanceId(1),
        trigger: Trigger::Operator,
        asks: 1,
        from: Rung::Local,
        at: Timestamp::from_ms(at),
        stages_us: vec![(Stage::Decided, 120)],
        outcome: None,
    }
}

fn decision(at: u64) -> Change {
    Change::AddDecision(Box::new(StoredDecision {
        at: Timestamp::from_ms(at),
        decision: Decision {
            service: name("hello.vm.test"),
            instance: InstanceId(1),
            action: Action::Restore { from: Rung::Armed, keep: false },
            reason: Reason::Asked { trigger: Trigger::Operator, asks: 2 },
        },
    }))
}

fn fallen(at: u64) -> StoredHealth {
    let fault = Fault::Status { status: 503 };
    StoredHealth {
        at: Timestamp::from_ms(at),
        service: name("hello.vm.test"),
        instance: InstanceId(1),
        health: Health::Down,
        reason: HealthReason::Fails {
            probe: Probe::Http,
            failed: 3,
            of: 4,
            fault,
            guest_answers: Some(true),
        },
    }
}

fn reopen(store: Store, dir: &Path) -> (Store, Loaded) {
    drop(store);
    Store::open(dir).unwrap()
}

#[test]
fn everything_written_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let (store, loaded) = Store::open(dir.path()).unwrap();
    assert_eq!(loaded, Loaded::default());

    let token = StoredToken {
        hash: TokenHash([7; 32]),
        name: "ci".to_owned(),
        scope: "operate".to_owned(),
        created_at: Timestamp::from_ms(1),
        expires: Some(Timestamp::from_ms(9)),
    };
    let id = store.reserve_instance_id();
    let changes = vec![
        Change::PutService(Box::new(service("hello.vm.test"))),
        Change::PutInstance(Box::new(instance(id))),
        Change::AddWake(Box::new(wake(10))),
        decision(11),
        Change::PutToken(Box::new(token.clone())),
    ];
    store.write(changes).wait().unwrap();

    let (store, loaded) = reopen(store, dir.path());
    assert_eq!(loaded.services, [service("hello.vm.test")]);
    assert_eq!(loaded.instances, [instance(id)]);
    assert_eq!(loaded.tokens.first(), Some(&token));
    assert_eq!(store.tokens().unwrap(), [token]);
    let wakes = store.wakes(&name("hello.vm.test"), None, 10).unwrap();
    assert_eq!(wakes.iter().map(|wake| &wake.entry).collect::<Vec<_>>(), [&wake(10)]);
    let decisions = store.decisions(&name("hello.vm.test"), None, 10).unwrap();
    assert_eq!(decisions.len(), 1);
    assert_eq!(decisions[0].entry.at, Timestamp::from_ms(11));

    let gone = vec![
        Change::DropService(name("hello.vm.test")),
        Change::DropInstance(id),
        Change::DropToken(TokenHash([7; 32])),
    ];
    store.write(gone).wait().unwrap();
    let (store, loaded) = reopen(store, dir.path());
    assert_eq!(loaded, Loaded::default());
    assert!(
        store.wakes(&name("hello.vm.test"), None, 10).unwrap().is_empty(),
        "history goes with its service"
    );
    assert!(store.decisions(&name("hello.vm.test"), None, 10).unwrap().is_empty());
}

#[test]
fn an_instance_identity_is_never_given_out_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let ids: Vec<u64> = (0..3).map(|_| store.reserve_instance_id().0).collect();
    assert_eq!(ids, [1, 2, 3]);
    store.write(vec![put(1)]).wait().unwrap();
    let (store, _) = reopen(store, dir.path());
    assert_eq!(store.reserve_instance_id(), InstanceId(2), "2 and 3 were never used");
    // The highest was used and dropped again; nothing of it is left but its number.
    store.write(vec![put(3)]).wait().unwrap();
    store.write(vec![Change::DropInstance(InstanceId(3))]).wait().unwrap();
    let (store, _) = reopen(store, dir.path());
    assert_eq!(store.reserve_instance_id(), InstanceId(4));
}

#[test]
fn history_is_bounded_per_service_and_read_newest_first_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let other = WakeRecord { service: name("hello.vm.tes"), ..wake(1) };
    drop(store.write(vec![Change::AddWake(Box::new(other.clone()))]));
    for at in 0..(WAKES_MAX as u64 + 40) {
        drop(store.write(vec![Change::AddWake(Box::new(wake(at)))]));
    }
    drop(store.write((0..(DECISIONS_MAX as u64 + 40)).map(decision).collect()));
    store.write(Vec::new()).wait().unwrap();

    let hello = name("hello.vm.test");
    let wakes = store.wakes(&hello, None, usize::MAX).unwrap();
    let newest = WAKES_MAX as u64 + 39;
    let expected: Vec<u64> = (40..=newest).rev().collect();
    assert_eq!(wakes.iter().map(|wake| wake.entry.at.as_ms()).collect::<Vec<_>>(), expected);
    assert_eq!(store.decisions(&hello, None, usize::MAX).unwrap().len(), DECISIONS_MAX);
    let fallen = (0..(HEALTH_MAX as u64 + 40)).map(|at| Change::AddHealth(Box::new(fallen(at))));
    store.write(fallen.collect()).wait().unwrap();
    assert_eq!(store.health(&hello, None, usize::MAX).unwrap().len(), HEALTH_MAX);
    assert_eq!(store.wakes(&other.service, None, 5).unwrap()[0].entry, other, "names do not mix");

    let first = store.wakes(&hello, None, 2).unwrap();
    let second = store.wakes(&hello, Some(first[1].seq), 2).unwrap();
    let at: Vec<u64> = first.iter().chain(&second).map(|wake| wake.entry.at.as_ms()).collect();
    assert_eq!(at, [newest, newest - 1, newest - 2, newest - 3]);
}

#[test]
fn a_wake_that_goes_on_keeps_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let mut ended = wake(1);
    ended.reached(Stage::FirstByte, 90_000);
    ended.outcome = Some(WakeOutcome::Ready);
    for record in [wake(1), wake(2), ended.clone()] {
        store.write(vec![Change::AddWake(Box::new(record))]).wait().unwrap();
    }
    let wakes = store.wakes(&name("hello.vm.test"), None, 10).unwrap();
    let wakes: Vec<WakeRecord> = wakes.into_iter().map(|wake| wake.entry).collect();
    assert_eq!(wakes, [wake(2), ended]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_are_acknowledged_and_the_last_write_of_each_wins() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let store = std::sync::Arc::new(store);
    let tasks: Vec<_> = (1..=20_u64)
        .map(|id| {
            let store = std::sync::Arc::clone(&store);
            tokio::spawn(async move {
                for start in 1..=20 {
                    let mut row = instance(InstanceId(id));
                    row.start = start;
                    store.write(vec![Change::PutInstance(Box::new(row))]).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let store = std::sync::Arc::into_inner(store).unwrap();
    let (_store, loaded) = reopen(store, dir.path());
    assert_eq!(loaded.instances.len(), 20);
    assert!(loaded.instances.iter().all(|row| row.start == 20));
}

#[test]
fn what_waits_in_the_queue_is_written_when_the_store_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let acks: Vec<_> = (1..=500).map(|id| store.write(vec![put(id)])).collect();
    let (_store, loaded) = reopen(store, dir.path());
    assert_eq!(loaded.instances.len(), 500);
    for ack in acks {
        ack.wait().unwrap();
    }
}

#[test]
fn a_second_daemon_on_the_directory_is_refused_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let error = Store::open(dir.path()).err().unwrap();
    assert!(
        matches!(&error, OpenError::InUse { pid: Some(pid), .. } if *pid == std::process::id()),
        "{error}"
    );
    assert!(error.to_string().contains("another daemon (process"), "{error}");
    reopen(store, dir.path());
}

#[test]
fn a_database_of_a_newer_reveille_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let path = store.path();
    drop(store);
    let raw = redb::Database::open(&path).unwrap();
    let meta: redb::TableDefinition<&str, u64> = redb::TableDefinition::new("meta");
    let transaction = raw.begin_write().unwrap();
    transaction.open_table(meta).unwrap().insert("schema", 2).unwrap();
    transaction.commit().unwrap();
    drop(raw);
    let error = Store::open(dir.path()).err().unwrap();
    assert!(matches!(error, OpenError::Newer { found: 2, known: 1, .. }), "{error}");
    assert!(path.exists());
}

#[test]
fn a_row_that_cannot_be_read_is_named_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let path = store.path();
    drop(store);
    let raw = redb::Database::open(&path).unwrap();
    let instances: redb::TableDefinition<u64, &[u8]> = redb::TableDefinition::new("instances");
    let transaction = raw.begin_write().unwrap();
    transaction.open_table(instances).unwrap().insert(17, &b"{\"id\":17}"[..]).unwrap();
    transaction.commit().unwrap();
    drop(raw);
    let sentence = Store::open(dir.path()).err().unwrap().to_string();
    assert!(sentence.contains("`instances`") && sentence.contains("17"), "{sentence}");
    assert!(path.exists());
}

#[test]
fn a_damaged_file_is_refused_with_a_sentence_or_was_not_hurt_and_is_never_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let path = store.path();
    for id in 1..=100 {
        drop(store.write(vec![put(id)]));
    }
    drop(store);
    let whole = fs::read(&path).unwrap();

    let mut refused = 0;
    // A stride that is coprime to the page size visits every place in a page over the run.
    for at in (0..whole.len()).step_by(8_191) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        refused += usize::from(refused_or_whole(dir.path(), &path, &bytes));
    }
    for length in [1, 100, 4_096, whole.len() / 2] {
        refused += usize::from(refused_or_whole(dir.path(), &path, &whole[..length]));
    }
    assert!(refused_or_whole(dir.path(), &path, b"this is no database at all, only some text"));
    assert!(refused > 4, "{refused} refused");
    fs::write(&path, &whole).unwrap();
    assert_eq!(Store::open(dir.path()).unwrap().1.instances.len(), 100, "a copy put back is taken");
}

#[test]
fn one_changed_digit_in_a_row_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let path = store.path();
    store.write(vec![put(1)]).wait().unwrap();
    drop(store);
    let mut bytes = fs::read(&path).unwrap();
    let row = b"\"last_activity\":7";
    let places: Vec<usize> =
        (0..bytes.len() - row.len()).filter(|at| bytes[*at..].starts_with(row)).collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at + row.len() - 1] = b'8';
    }
    fs::write(&path, &bytes).unwrap();
    let error = Store::open(dir.path()).err().unwrap();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), bytes, "left as it is");
}

/// Whether the bytes were refused; if not, all that was written must be there.
fn refused_or_whole(dir: &Path, path: &Path, bytes: &[u8]) -> bool {
    fs::write(path, bytes).unwrap();
    match Store::open(dir) {
        Ok((_, loaded)) => {
            let expected: Vec<Instance> = (1..=100).map(|id| instance(InstanceId(id))).collect();
            assert_eq!(loaded.instances, expected, "a damaged file was taken and is not whole");
            false
        }
        Err(error) => {
            let sentence = error.to_string();
            assert!(sentence.contains("state.redb") && sentence.contains("left as it is"), "{sentence}");
            assert!(path.exists());
            true
        }
    }
}

#[test]
fn an_interrupted_first_start_leaves_nothing_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("state.redb.new"), b"half").unwrap();
    let (_, loaded) = Store::open(dir.path()).unwrap();
    assert_eq!(loaded, Loaded::default());
}

#[test]
fn only_the_owner_can_read_the_state() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("deep/state");
    let (store, _) = Store::open(&state).unwrap();
    assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(store.path()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    let sentence = Store::open(&file.join("state")).err().unwrap().to_string();
    assert!(sentence.contains("cannot be used") && sentence.contains("file"), "{sentence}");
}

#[test]
fn verdicts_on_health_are_kept_also_by_a_database_that_had_none() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    drop(store);
    let database = redb::Database::create(dir.path().join("state.redb")).unwrap();
    let table: redb::TableDefinition<'_, (&str, u64), &[u8]> = redb::TableDefinition::new("health");
    let transaction = database.begin_write().unwrap();
    assert!(transaction.delete_table(table).unwrap(), "a database of before");
    transaction.commit().unwrap();
    drop(database);
    let (store, _) = Store::open(dir.path()).unwrap();
    let hello = name("hello.vm.test");
    assert_eq!(store.health(&hello, None, 9).unwrap(), []);
    store.write(vec![Change::AddHealth(Box::new(fallen(7)))]).wait().unwrap();
    let (store, _) = reopen(store, dir.path());
    assert_eq!(store.health(&hello, None, 9).unwrap()[0].entry, fallen(7));
    store.write(vec![Change::DropService(hello.clone())]).wait().unwrap();
    assert_eq!(store.health(&hello, None, 9).unwrap(), [], "it goes with its service");
}

#[test]
fn serial_ceilings_are_known_again_also_to_a_database_that_had_none() {
    let dir = tempfile::tempdir().unwrap();
    let put = |apex: &str, ceiling| vec![Change::PutSerialCeiling { apex: name(apex), ceiling }];
    let (store, loaded) = Store::open(dir.path()).unwrap();
    assert!(loaded.serial_ceilings.is_empty());
    let file = store.path();
    drop(store);
    // As an older Reveille left it.
    let database = redb::Database::open(&file).unwrap();
    let transaction = database.begin_write().unwrap();
    let table: redb::TableDefinition<'_, &str, u32> = redb::TableDefinition::new("serial_ceilings");
    assert!(transaction.delete_table(table).unwrap());
    transaction.commit().unwrap();
    drop(database);

    let (store, loaded) = Store::open(dir.path()).unwrap();
    assert!(loaded.serial_ceilings.is_empty());
    store.write(put("vm.test", 1_001)).wait().unwrap();
    store.write(put("other.test", u32::MAX)).wait().unwrap();
    store.write(put("vm.test", 2_001)).wait().unwrap();
    drop(store);
    let (_, loaded) = Store::open(dir.path()).unwrap();
    let expected = [(name("other.test"), u32::MAX), (name("vm.test"), 2_001)];
    assert_eq!(loaded.serial_ceilings.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn what_updates_changed_and_what_was_published_is_known_again_also_to_a_database_that_had_no_such_tables() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let file = store.path();
    drop(store);
    // As an older Reveille left it.
    let database = redb::Database::open(&file).unwrap();
    let transaction = database.begin_write().unwrap();
    let sets: redb::TableDefinition<'_, (&str, &[u8], u16), &[u8]> =
        redb::TableDefinition::new("static_sets");
    let published: redb::TableDefinition<'_, (&str, &str), &[u8]> = redb::TableDefinition::new("published");
    let serials: redb::TableDefinition<'_, &str, u32> = redb::TableDefinition::new("published_serials");
    assert!(transaction.delete_table(sets).unwrap());
    assert!(transaction.delete_table(published).unwrap());
    assert!(transaction.delete_table(serials).unwrap());
    transaction.commit().unwrap();
    drop(database);

    let (store, loaded) = Store::open(dir.path()).unwrap();
    assert_eq!(loaded, Loaded::default());
    let set = |owner: &[u8], rtype| StoredStaticSet {
        zone: name("vm.test"),
        owner: DomainName::from_wire(owner).unwrap(),
        rtype,
        ttl: 60,
        added: vec![vec![0, 127, 255], Vec::new()],
        removed: vec![b"\x03abc".to_vec()],
    };
    // A name that has no text form that could be read again.
    let (odd, gone) = (set(b"\x03a.\0\x02vm\x04test\0", 16), set(b"\x03www\x02vm\x04test\0", 1));
    let row = |certain| StoredPublished { v4: Some([127, 64, 0, 1].into()), v6: None, ttl_s: 5, certain };
    let put = |target: &str, label: &str, certain| Change::PutPublished {
        target: target.into(),
        name: name(label),
        row: row(certain),
    };
    let changes = vec![
        Change::PutStaticSet(Box::new(odd.clone())),
        Change::PutStaticSet(Box::new(gone.clone())),
        put("192.0.2.1:53 vm.test", "a.vm.test", false),
        put("192.0.2.1:53 vm.test", "b.vm.test", true),
        put("192.0.2.2:53 vm.test", "a.vm.test", true),
        Change::PutPublishedSerial { target: "192.0.2.1:53 vm.test".into(), serial: u32::MAX },
    ];
    store.write(changes).wait().unwrap();
    let gone = Change::DropStaticSet { zone: gone.zone, owner: gone.owner, rtype: gone.rtype };
    let dropped = Change::DropPublished { target: "192.0.2.1:53 vm.test".into(), name: name("b.vm.test") };
    store.write(vec![gone, dropped]).wait().unwrap();
    drop(store);
    let (_, loaded) = Store::open(dir.path()).unwrap();
    assert_eq!(loaded.static_sets, [odd]);
    let published: Vec<_> = loaded.published.into_iter().collect();
    assert_eq!(
        published,
        [
            ("192.0.2.1:53 vm.test".to_owned(), vec![(name("a.vm.test"), row(false))]),
            ("192.0.2.2:53 vm.test".to_owned(), vec![(name("a.vm.test"), row(true))]),
        ]
    );
    assert_eq!(
        loaded.published_serials.into_iter().collect::<Vec<_>>(),
        [("192.0.2.1:53 vm.test".into(), u32::MAX)]
    );
}
