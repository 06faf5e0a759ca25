//! The same story in a directory, in an S3 server (moto) and in an Azure Blob server (Azurite), which the tests start on
//! loopback. `scripts/setup.sh test` installs the two; a test whose server is missing says so and runs nothing.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;
#[path = "common/servers.rs"]
mod servers;

use std::fs;
use std::path::Path;

use common::{Dice, about, config, device, id, memory, pseudo_guest, same_content};
use reveille_depot::config::DepotConfig;
use reveille_depot::fetch::FetchOrder;
use reveille_depot::put::PutError;
use reveille_depot::verify::Depth;
use reveille_depot::{Depot, Watch};
use servers::Remote;

/// What a host does with its depot, and what another host sees.
async fn story(config: DepotConfig, temp: &Path) {
    let depot = Depot::open(&config).unwrap();
    let other = Depot::open(&config).unwrap();
    let (watch, service) = (Watch::default(), "hello.vm.test".parse().unwrap());
    let (first, second) = (id("hello.vm.test", 1), id("hello.vm.test", 2));
    let claims = tokio::join!(depot.claim(&service, "one", None), other.claim(&service, "two", None));
    assert!(claims.0.is_ok() != claims.1.is_ok(), "{claims:?}");
    let guest = temp.join("guest");
    pseudo_guest(&guest, 16 << 20, 40, &mut Dice(4));
    let parts = || vec![memory(&guest), device(b"registers")];
    let put = depot.put_version(&about("hello.vm.test", 1), parts(), None, &watch).await.unwrap();
    assert!(!put.was_there);
    let again = other.put_version(&about("hello.vm.test", 1), parts(), None, &watch).await.unwrap();
    assert!(again.was_there);
    // The other host reads the hashes of the first one's chunks.
    let put = other.put_version(&about("hello.vm.test", 2), parts(), Some(&first), &watch).await.unwrap();
    assert_eq!(put.pages_stored, 0);

    depot.pin(&first, true).await.unwrap();
    let listed = other.list(&service).await.unwrap();
    let seen: Vec<_> = listed.iter().map(|v| (v.id.number, v.pinned, v.manifest.is_ok())).collect();
    assert_eq!(seen, [(1, true, true), (2, false, true)]);
    assert_eq!(other.services().await.unwrap(), std::slice::from_ref(&service));
    depot.delete(&first).await.unwrap();
    let plan = other.collect(&watch).await.unwrap();
    assert!(plan.chunks.is_empty() && plan.others.is_empty() && plan.needed > 0, "{plan:?}");
    let verified = other.verify(&second, Depth::Pages, &watch).await.unwrap();
    assert_eq!(verified.faults_total, 0);
    let missing = other.show(&first).await.unwrap_err();
    assert!(missing.is_missing(), "{missing}");

    let to = temp.join("fetched");
    other.fetch(&second, &to, FetchOrder::WorkingSetFirst, &watch).await.unwrap();
    same_content(&to.join("memory"), &guest);
    assert_eq!(fs::read(to.join("device")).unwrap(), b"registers");

    // The other host takes over; the first one finds out whatever it does.
    let owner = depot.owner(&service).await.unwrap().unwrap();
    let takes = tokio::join!(depot.claim(&service, "one", Some(1)), other.claim(&service, "two", Some(1)));
    assert!(takes.0.is_ok() != takes.1.is_ok(), "{takes:?}");
    assert!(depot.renew(&service, &owner.host, 1).await.is_err());
    let now = depot.owner(&service).await.unwrap().unwrap();
    depot.renew(&service, &now.host, 2).await.unwrap();
    let late = depot.put_version(&about("hello.vm.test", 3), parts(), Some(&second), &watch).await;
    assert!(matches!(late, Err(PutError::Foreign { epoch: 1, now: 2, .. })), "{late:?}");
}

#[tokio::test]
async fn in_a_directory() {
    let temp = tempfile::tempdir().unwrap();
    story(config(&temp.path().join("depot")), temp.path()).await;
}

fn remote(remote: &Remote) -> DepotConfig {
    let mut config = DepotConfig::at(remote.url);
    config.endpoint = Some(remote.endpoint.clone());
    config.allow_http = true;
    config.region = remote.region.map(str::to_owned);
    config.credentials_file = Some(remote.credentials_file.clone());
    config
}

#[tokio::test]
async fn in_s3() {
    let temp = tempfile::tempdir().unwrap();
    let Some(server) = servers::s3(temp.path()) else { return };
    story(remote(&server), temp.path()).await;
}

#[tokio::test]
async fn in_azure() {
    let temp = tempfile::tempdir().unwrap();
    let Some(server) = servers::azure(temp.path()) else { return };
    story(remote(&server), temp.path()).await;
}
