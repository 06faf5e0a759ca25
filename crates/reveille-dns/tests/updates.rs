//! Dynamic updates as nsupdate sends them: what dig sees afterwards, and what is still there after a restart.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use arc_swap::ArcSwap;
use common::{World, name, service, zone};
use reveille_core::answer::{Acl, AclEntry, Network, View, Zones};
use reveille_dns::DnsConfig;
use reveille_dns::tsig::{Algorithm, Key, Keyring};
use reveille_dns::update::{
    Grant, SetAside, SetChange, StaticBook, UPDATE_GROUP_MAX, UPDATE_RECORDS_MAX, UPDATES_WAITING_MAX,
    UpdateAsk, UpdateDesk, ZoneRows, lay_over,
};
use reveille_store::{Change, Loaded, Store, StoredStaticSet};
use tokio::sync::{mpsc, watch};

const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const SECRET_BYTES: &[u8] = b"0123456789abcdef0123456789abcdef";
/// May change everything.
const ADMIN: &str = "admin.key.test";
/// May change TXT below `acme.vm.test`.
const ACME: &str = "acme.key.test";

fn keys() -> Keyring {
    Keyring::new([ADMIN, ACME].map(|key| Key::new(name(key), Algorithm::HmacSha256, SECRET_BYTES).unwrap()))
}

fn grants() -> Vec<Grant> {
    let grant = |key| Grant { key: name(key), networks: Vec::new(), names: Vec::new(), types: Vec::new() };
    let acme = Grant { names: vec!["*.acme.vm.test".parse().unwrap()], types: vec![16], ..grant(ACME) };
    vec![grant(ADMIN), acme]
}

/// A server of `vm.test` whose static records can be updated, on a store of its own.
struct Primary {
    world: World,
    judge: tokio::task::JoinHandle<()>,
}

impl Primary {
    fn start(dir: &Path) -> Self {
        let (store, Loaded { static_sets, .. }) = Store::open(dir).unwrap();
        let to = AclEntry { networks: vec![Network::LOOPBACK4], key: None };
        let file = Arc::new(zone().with_transfer(Acl::new([to])));
        let rows: Vec<SetChange> = static_sets.into_iter().map(from_stored).collect();
        let mut book = StaticBook::default();
        book.open_page(Arc::clone(&file), grants(), rows.iter().map(|row| (row.owner.clone(), row.rtype)));
        let (laid, aside) = lay_over(file, rows, |_| None);
        assert_eq!(aside, Vec::<SetAside>::new());
        let services = [service("hello.vm.test", 1)].map(Arc::new);
        let view = View::new(1, Zones::new([laid]), services, View::default_monitors());
        let (sender, asks) = mpsc::channel(UPDATES_WAITING_MAX);
        let config = DnsConfig {
            listen: vec![SocketAddr::from(([127, 0, 0, 53], 0))],
            udp_threads: 1,
            keys: keys(),
            updates: Some(sender),
            ..DnsConfig::default()
        };
        let world = World::serving(view, &config);
        let judge = world.runtime.spawn(judge(
            UpdateDesk::new(book),
            asks,
            store,
            Arc::clone(&world.shared),
            world.generation.clone(),
        ));
        Self { world, judge }
    }

    /// Ends without a word, as by `kill -9`: what was not durable is lost.
    fn kill(self) {
        self.judge.abort();
        let _ = self.world.runtime.block_on(self.judge);
    }

    fn nsupdate(&self, key: &str, options: &[&str], script: &str) -> String {
        let mut all = vec!["-y".to_owned(), format!("hmac-sha256:{key}:{SECRET}")];
        all.extend(options.iter().map(ToString::to_string));
        self.run(&all, script)
    }

    /// What nsupdate prints; nothing is success.
    fn run(&self, options: &[String], script: &str) -> String {
        let mut child = Command::new("nsupdate")
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("nsupdate: {error}; `make test` installs what the tests need"));
        let (address, port) = (self.world.address().ip(), self.world.address().port());
        let script = format!("server {address} {port}\nzone vm.test\n{script}\nsend\n");
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    fn short(&self, owner: &str, rtype: &str) -> Vec<String> {
        let text = self.world.dig(&["+short", owner, rtype]);
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    fn serial(&self) -> u32 {
        self.short("vm.test", "SOA")[0].split(' ').nth(2).unwrap().parse().unwrap()
    }
}

/// The control loop's part: judges, writes, publishes, answers.
async fn judge(
    mut desk: UpdateDesk,
    mut asks: mpsc::Receiver<UpdateAsk>,
    store: Store,
    shared: Arc<ArcSwap<View>>,
    generation: watch::Sender<u64>,
) {
    let mut group = Vec::new();
    while asks.recv_many(&mut group, UPDATE_GROUP_MAX).await > 0 {
        let view = shared.load_full();
        let rows = desk.judge(&view, std::mem::take(&mut group));
        if rows.is_empty() {
            continue;
        }
        store.write(changes(rows)).await.unwrap();
        let next = view.advanced(view.generation + 1, [], desk.durable());
        generation.send_replace(next.generation);
        shared.store(Arc::new(next));
        desk.published();
    }
}

fn changes(rows: Vec<ZoneRows>) -> Vec<Change> {
    let of_zone = |(zone, rows): ZoneRows| {
        rows.into_iter().map(move |((owner, rtype), row)| match row {
            None => Change::DropStaticSet { zone: zone.clone(), owner, rtype },
            Some(SetChange { owner, rtype, ttl, added, removed }) => {
                let zone = zone.clone();
                Change::PutStaticSet(Box::new(StoredStaticSet { zone, owner, rtype, ttl, added, removed }))
            }
        })
    };
    rows.into_iter().flat_map(of_zone).collect()
}

fn from_stored(set: StoredStaticSet) -> SetChange {
    let StoredStaticSet { owner, rtype, ttl, added, removed, .. } = set;
    SetChange { owner, rtype, ttl, added, removed }
}

#[test]
fn what_nsupdate_was_told_is_made_is_seen_at_once_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(dir.path());
    for (options, script, owner, rtype, expected) in [
        (&[][..], "update add new.vm.test 60 A 192.0.2.9", "new.vm.test", "A", &["192.0.2.9"][..]),
        (&["-v"], "update add new.vm.test 60 A 192.0.2.10", "new.vm.test", "A", &["192.0.2.10", "192.0.2.9"]),
        (&[], "update delete new.vm.test A 192.0.2.9", "new.vm.test", "A", &["192.0.2.10"]),
        (
            &[],
            "prereq nxdomain once.vm.test\nprereq yxrrset new.vm.test A 192.0.2.10\nprereq yxdomain hello.vm.test\n\
             update add once.vm.test 60 TXT \"a text\" \"of two\"",
            "once.vm.test",
            "TXT",
            &["\"a text\" \"of two\""],
        ),
        (
            &[],
            "update delete www.vm.test CNAME\nupdate add www.vm.test 60 AAAA ::1",
            "www.vm.test",
            "AAAA",
            &["::1"],
        ),
        (&[], "update delete big.vm.test", "big.vm.test", "TXT", &[]),
        (
            &[],
            "update add *.wild.vm.test 60 MX 10 www.vm.test.",
            "x.wild.vm.test",
            "MX",
            &["10 www.vm.test."],
        ),
        (
            &[],
            "update add sub.vm.test 60 NS ns.sub.vm.test.\nupdate add ns.sub.vm.test 60 A 192.0.2.5",
            "ns.sub.vm.test",
            "A",
            &[],
        ),
    ] {
        let before = primary.serial();
        assert_eq!(primary.nsupdate(ADMIN, options, script), "", "{script}");
        assert_eq!(primary.short(owner, rtype), expected, "{script}");
        assert_eq!(primary.serial(), before + 1, "{script}");
    }
    assert!(
        primary
            .world
            .dig(&["+norec", "x.sub.vm.test", "A"])
            .contains("ns.sub.vm.test.\t\t60\tIN\tA\t192.0.2.5")
    );
    // What changes nothing costs no serial.
    let before = primary.serial();
    assert_eq!(primary.nsupdate(ADMIN, &[], "update add www.vm.test 60 AAAA ::1"), "");
    assert_eq!(primary.serial(), before);
    let counts = primary.world.server.counts();
    assert_eq!((counts.updates, counts.updates_dropped), (9, 0));

    // Secondaries get the same by differences.
    let text = primary.world.dig(&["+noall", "+answer", "+tcp", "vm.test", "IXFR=7"]);
    let new = ["*.wild.vm.test.", "sub.vm.test.", "ns.sub.vm.test."];
    let lines =
        |owner: &str| text.lines().filter(|line| line.split_whitespace().next() == Some(owner)).count();
    assert_eq!((new.map(lines), text.lines().count()), ([1, 1, 1], 7), "{text}");

    primary.kill();
    let primary = Primary::start(dir.path());
    assert_eq!(primary.short("new.vm.test", "A"), ["192.0.2.10"]);
    assert_eq!(primary.short("once.vm.test", "TXT"), ["\"a text\" \"of two\""]);
    assert_eq!(primary.short("www.vm.test", "AAAA"), ["::1"]);
    assert_eq!(primary.short("big.vm.test", "TXT"), [""; 0]);
    assert_eq!(primary.short("x.wild.vm.test", "MX"), ["10 www.vm.test."]);
    // And it can be taken back as if nothing had been.
    let back = "update delete www.vm.test AAAA\nupdate add www.vm.test 300 CNAME hello.vm.test.";
    assert_eq!(primary.nsupdate(ADMIN, &[], back), "");
    assert_eq!(primary.short("www.vm.test", "A"), ["127.64.0.1", "hello.vm.test."]);
}

/// More records than one update may have.
fn too_many() -> String {
    let one = |number| format!("update add n{number}.vm.test 60 A 192.0.2.9");
    (0..=UPDATE_RECORDS_MAX).map(one).collect::<Vec<_>>().join("\n")
}

#[test]
fn whoever_may_not_is_refused_and_nothing_changes() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(dir.path());
    let add = "update add new.vm.test 60 A 192.0.2.9";
    let wrong = SECRET.replace('M', "N");
    let with = |key: &str| vec!["-y".to_owned(), format!("hmac-sha256:{key}")];
    let many = too_many();
    for (options, script, said) in [
        (Vec::new(), add, "update failed: REFUSED"),
        (with(&format!("{ADMIN}:{wrong}")), add, "BADSIG"),
        (with(&format!("other.key.test:{SECRET}")), add, "BADKEY"),
        (with(&format!("{ACME}:{SECRET}")), add, "update failed: REFUSED"),
        (
            with(&format!("{ACME}:{SECRET}")),
            "update add x.acme.vm.test 60 A 192.0.2.9",
            "update failed: REFUSED",
        ),
        (
            with(&format!("{ADMIN}:{SECRET}")),
            "update add hello.vm.test 60 A 192.0.2.9",
            "update failed: REFUSED",
        ),
        (with(&format!("{ADMIN}:{SECRET}")), "update delete hello.vm.test", "update failed: REFUSED"),
        (with(&format!("{ADMIN}:{SECRET}")), &many, "update failed: REFUSED"),
        (
            with(&format!("{ADMIN}:{SECRET}")),
            "update add _vmstate.hello.vm.test 60 TXT x",
            "update failed: REFUSED",
        ),
        (
            with(&format!("{ADMIN}:{SECRET}")),
            "update add www.example 60 A 192.0.2.9",
            "update failed: NOTZONE",
        ),
        (
            with(&format!("{ADMIN}:{SECRET}")),
            "prereq nxdomain www.vm.test\nupdate delete www.vm.test",
            "YXDOMAIN",
        ),
        (
            with(&format!("{ADMIN}:{SECRET}")),
            "prereq yxdomain none.vm.test\nupdate delete www.vm.test",
            "NXDOMAIN",
        ),
        (
            with(&format!("{ADMIN}:{SECRET}")),
            "prereq nxrrset big.vm.test TXT\nupdate delete big.vm.test",
            "YXRRSET",
        ),
        (
            with(&format!("{ADMIN}:{SECRET}")),
            "prereq yxrrset www.vm.test A\nupdate delete www.vm.test",
            "NXRRSET",
        ),
        (
            with(&format!("{ADMIN}:{SECRET}")),
            "zone example\nupdate add www.example 60 A 192.0.2.9",
            "NOTAUTH",
        ),
    ] {
        let text = primary.run(&options, script);
        assert!(text.contains(said), "{options:?} {script}: {text:?}");
    }
    assert_eq!(primary.serial(), 1);
    assert!(primary.world.dig(&["new.vm.test", "A"]).contains("NXDOMAIN"));
    // The apex stays what it is, whatever is asked.
    assert_eq!(primary.nsupdate(ADMIN, &[], "update delete vm.test NS"), "");
    assert_eq!(primary.nsupdate(ADMIN, &[], "update delete vm.test"), "");
    assert_eq!(primary.short("vm.test", "NS"), ["ns1.vm.test."]);
    assert_eq!(primary.serial(), 1);
    // What is granted is granted.
    assert_eq!(primary.nsupdate(ACME, &[], "update add x.acme.vm.test 60 TXT token"), "");
    assert_eq!(primary.short("x.acme.vm.test", "TXT"), ["\"token\""]);
}

#[test]
fn everything_that_was_acknowledged_in_a_burst_survives() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(dir.path());
    let script = |client: usize| -> String {
        let one = |number: usize| {
            format!(
                "update add n{number}.c{client}.vm.test 60 A 192.0.2.{client}\nsend\n\
                 update delete gone.c{client}.vm.test\nupdate add gone.c{client}.vm.test 60 TXT {number}\nsend\n"
            )
        };
        (0..50).map(one).collect()
    };
    std::thread::scope(|scope| {
        for client in 0..4 {
            let (primary, script) = (&primary, script(client));
            scope.spawn(move || assert_eq!(primary.nsupdate(ADMIN, &["-v"], &script), ""));
        }
    });
    let counts = primary.world.server.counts();
    assert_eq!(counts.updates_dropped, 0);
    primary.kill();
    let primary = Primary::start(dir.path());
    for client in 0..4 {
        for number in [0, 17, 49] {
            let owner = format!("n{number}.c{client}.vm.test");
            assert_eq!(primary.short(&owner, "A"), [format!("192.0.2.{client}")]);
        }
        assert_eq!(primary.short(&format!("gone.c{client}.vm.test"), "TXT"), ["\"49\""]);
    }
}

/// Nobody judges: the client is told to come again, and is not kept waiting longer than it would wait itself.
#[test]
fn a_judge_that_is_busy_costs_an_error_and_nothing_else() {
    let (sender, asks) = mpsc::channel(1);
    let view = View::new(1, Zones::new([Arc::new(zone())]), [], View::default_monitors());
    let listen = vec![SocketAddr::from(([127, 0, 0, 53], 0))];
    let world = World::serving(
        view,
        &DnsConfig { listen, udp_threads: 1, keys: keys(), updates: Some(sender), ..DnsConfig::default() },
    );
    let judge = world.runtime.spawn(std::future::pending());
    let primary = Primary { world, judge };
    let add = "update add new.vm.test 60 A 192.0.2.9";
    for options in [&[][..], &["-v"]] {
        let text = primary.nsupdate(ADMIN, options, add);
        assert!(text.contains("update failed: SERVFAIL"), "{text}");
        // Questions are answered meanwhile.
        assert_eq!(primary.short("vm.test", "NS"), ["ns1.vm.test."]);
    }
    let counts = primary.world.server.counts();
    assert_eq!(
        (counts.updates, counts.updates_dropped),
        (1, 1),
        "one waits in the channel, the other has no room"
    );
    drop(asks);
    let text = primary.nsupdate(ADMIN, &[], add);
    assert!(text.contains("update failed: SERVFAIL"), "{text}");
}
