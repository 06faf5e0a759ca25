//! Versions over the wire: every call, and the refusals that people meet.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what failed by failing"
)]

mod support;

use reveille_api::types::{Redeploy, VersionPlace};
use reveille_api::{Anonymous, ClientError, Connections, Depth, Pin, Scope, Unstored, Wait};
use support::{Daemon, name};

/// The kind and the sentence of a refusal.
fn told(error: &ClientError) -> (String, String) {
    (error.problem().unwrap().kind.to_string(), error.to_string())
}

#[tokio::test]
async fn every_call_about_versions_makes_the_round_trip() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::None).await;
    let (client, hello) = (daemon.client(Scope::Admin), name("hello"));

    let list = client.versions(&hello).await.unwrap();
    assert_eq!(list.service, name("hello.vm.test"));
    let numbers: Vec<(u64, VersionPlace, bool)> =
        list.versions.iter().map(|version| (version.number, version.place, version.is_next)).collect();
    let store = VersionPlace::Store;
    assert_eq!(numbers, [(3, VersionPlace::Both, true), (2, store, false), (1, store, false)]);
    let shown = client.version(&hello, 2).await.unwrap();
    assert_eq!((shown.summary.number, shown.needs["machine"].as_str()), (2, "microvm"));

    assert_eq!(client.verify_version(&hello, 2, Depth::Pages).await.unwrap().chunks, 12);
    assert_eq!(client.verify_version(&hello, 2, Depth::Lengths).await.unwrap().chunks, 0);
    client.pin_version(&hello, 2, Pin::Set).await.unwrap();
    assert_eq!(*daemon.memory.pinned.lock().unwrap(), [2]);
    client.pin_version(&hello, 2, Pin::Cleared).await.unwrap();
    assert!(daemon.memory.pinned.lock().unwrap().is_empty());
    client.delete_version(&hello, 1).await.unwrap();

    let begun = client.restore_version(&hello, 1, Unstored::Keep, Wait::UntilAccepted).await.unwrap();
    assert_eq!((begun.from, begun.number, begun.done), (1, 4, false));
    let done = client.restore_version(&hello, 2, Unstored::Discard, Wait::UntilDone).await.unwrap();
    assert!(done.done);
    let pruned = client.prune(true).await.unwrap();
    assert!(pruned.dry_run && pruned.freed_bytes == 4_096);
    assert!(!client.prune(false).await.unwrap().dry_run);

    let wanted = Redeploy { image: Some("demo-2".to_owned()), ..Redeploy::default() };
    let deployed = client.redeploy(&hello, &wanted, Unstored::Keep, Wait::UntilDone).await.unwrap();
    assert_eq!((deployed.image.as_str(), deployed.changed), ("demo-2", true));
    let back = client.rollback(&hello, Unstored::Keep, Wait::UntilDone).await.unwrap();
    assert_eq!(back.restored.unwrap().from, 1);
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::Read).await;
    let (client, hello) = (daemon.client(Scope::Admin), name("hello"));
    let restore = async |number, unstored| {
        let asked = client.restore_version(&hello, number, unstored, Wait::UntilAccepted);
        asked.await.map(|reply| reply.from).map_err(|error| told(&error))
    };
    let (kind, sentence) = restore(9, Unstored::Keep).await.unwrap_err();
    assert_eq!(kind, "/problems/unknown-version");
    assert!(sentence.contains("`reveille snapshot list hello.vm.test`"), "{sentence}");
    let (kind, sentence) = restore(2, Unstored::Keep).await.unwrap_err();
    assert_eq!(kind, "/problems/busy");
    assert!(sentence.contains("version 3 of hello.vm.test is not in the object store yet"), "{sentence}");
    assert_eq!(restore(2, Unstored::Discard).await, Ok(2));
    client.wake(&hello, Wait::UntilDone).await.unwrap();
    let (kind, sentence) = restore(2, Unstored::Discard).await.unwrap_err();
    assert_eq!(kind, "/problems/refused");
    assert!(sentence.contains("`reveille hibernate hello.vm.test`"), "{sentence}");
    client.hibernate(&hello, Connections::Cut, Wait::UntilDone).await.unwrap();

    let (kind, _) = told(&client.delete_version(&hello, 3).await.unwrap_err());
    assert_eq!(kind, "/problems/refused");
    *daemon.memory.has_depot.lock().unwrap() = false;
    let (kind, sentence) = told(&client.prune(true).await.unwrap_err());
    assert_eq!(kind, "/problems/no-depot");
    assert!(sentence.contains("[depot]"), "{sentence}");
}

#[tokio::test]
async fn what_is_no_number_and_what_is_no_key_is_refused_by_name() {
    let daemon = Daemon::start(&["hello.vm.test"], Anonymous::Read).await;
    for number in ["0", "-1", "x", "1.5", "99999999999999999999"] {
        let path = format!("/v1/services/hello/versions/{number}");
        let answer = daemon.ask("GET", &path, None, "", "").await;
        assert_eq!(answer.status, 422, "{number}: {answer:?}");
        assert!(answer.body.contains("a version's number"), "{answer:?}");
    }
    let json = "Content-Type: application/json\r\n";
    let path = "/v1/services/hello/redeploy";
    let answer = daemon.ask("POST", path, Some(Scope::Admin), json, r#"{"imgae":"demo"}"#).await;
    assert_eq!(answer.status, 422);
    assert!(answer.body.contains("imgae"), "{answer:?}");
    let path = "/v1/services/hello/versions/1/restore?force=true";
    assert_eq!(daemon.ask("POST", path, Some(Scope::Admin), "", "").await.status, 400);
}
