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

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Dice, about, config, device, id, memory, pseudo_guest, same_content};
use reveille_depot::config::DepotConfig;
use reveille_depot::fetch::FetchOrder;
use reveille_depot::put::PutError;
use reveille_depot::verify::Depth;
use reveille_depot::{Depot, Watch};

/// A server is there within this.
const START_MAX: Duration = Duration::from_secs(60);
/// The account and the key that every Azurite has.
const AZURITE: &str = "AZURE_STORAGE_ACCOUNT_NAME=devstoreaccount1\nAZURE_STORAGE_ACCOUNT_KEY=\
Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==\n";

/// A server that ends with the test.
struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts a program on a free port, with `{port}` in its arguments.
    fn start(program: &Path, arguments: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let arguments = arguments.iter().map(|argument| argument.replace("{port}", &port.to_string()));
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, port };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < START_MAX, "{} does not listen", program.display());
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }
}

/// A program that `scripts/setup.sh test` has installed, or the host has.
fn installed(inside: &str, name: &str) -> Option<PathBuf> {
    let own =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/object-stores").join(inside).join(name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::iter::once(own).chain(std::env::split_paths(&path).map(|dir| dir.join(name)));
    let found = found.into_iter().find(|path| path.is_file());
    if found.is_none() {
        // To the process's own output: what a test prints is shown only when it fails.
        let line = format!("NOT RUN: {name} is not installed; scripts/setup.sh test installs it\n");
        fs::write("/dev/stderr", line).unwrap();
    }
    found
}

fn secret(path: PathBuf, content: &str) -> PathBuf {
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    path
}

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

#[tokio::test]
async fn in_s3() {
    let Some(moto) = installed("venv/bin", "moto_server") else { return };
    let temp = tempfile::tempdir().unwrap();
    let server = Server::start(&moto, &["-H", "127.0.0.1", "-p", "{port}"]);
    let mut bucket = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    bucket
        .write_all(
            b"PUT /bucket HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        )
        .unwrap();
    let mut answer = String::new();
    bucket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let mut config = DepotConfig::at("s3://bucket/some/prefix");
    config.endpoint = Some(format!("http://127.0.0.1:{}", server.port));
    config.allow_http = true;
    config.region = Some("us-east-1".to_owned());
    let credentials = "AWS_ACCESS_KEY_ID=test\nAWS_SECRET_ACCESS_KEY=test\n";
    config.credentials_file = Some(secret(temp.path().join("credentials"), credentials));
    story(config, temp.path()).await;
}

#[tokio::test]
async fn in_azure() {
    let Some(azurite) = installed("node_modules/.bin", "azurite-blob") else { return };
    let temp = tempfile::tempdir().unwrap();
    let location = temp.path().join("azurite");
    let arguments = ["--silent", "--skipApiVersionCheck", "--blobHost", "127.0.0.1", "--blobPort", "{port}"];
    let location_argument = ["--location", location.to_str().unwrap()];
    let server = Server::start(&azurite, &[&arguments[..], &location_argument[..]].concat());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/azure-container.js");
    let made =
        Command::new("node").arg(script).args([&server.port.to_string(), "container"]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let mut config = DepotConfig::at("az://container/some/prefix");
    config.endpoint = Some(format!("http://127.0.0.1:{}/devstoreaccount1", server.port));
    config.allow_http = true;
    config.credentials_file = Some(secret(temp.path().join("credentials"), AZURITE));
    story(config, temp.path()).await;
}
