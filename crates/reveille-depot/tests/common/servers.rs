//! Servers of object stores that tests start on loopback. `scripts/setup.sh test` installs them; a test whose server is
//! missing says so and runs nothing.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

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

/// Where a store is, and what opens it.
pub struct Remote {
    pub url: &'static str,
    pub endpoint: String,
    pub region: Option<&'static str>,
    pub credentials_file: PathBuf,
    server: Server,
}

impl Remote {
    /// Keeps the server from answering, or lets it answer again.
    pub fn stop(&self, stopped: bool) {
        let signal = if stopped { "STOP" } else { "CONT" };
        let sent = Command::new("kill")
            .args([&format!("-{signal}"), "--", &self.server.child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }
}

/// A registry of container images.
pub struct Registry(Server);

impl Registry {
    /// Where it is.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.0.port)
    }
}

/// An empty registry, which needs no certificate; and `skopeo`, which speaks with it.
pub fn registry(temp: &Path) -> Option<Registry> {
    let (program, _) = (installed("", "docker-registry")?, installed("", "skopeo")?);
    let (config, images) = (temp.join("registry.yml"), temp.join("registry"));
    let storage = format!("storage: {{ filesystem: {{ rootdirectory: {} }} }}", images.display());
    fs::write(&config, format!("version: 0.1\n{storage}\nhttp: {{ addr: '127.0.0.1:0' }}\n")).unwrap();
    let (program, config) = (program.to_str()?, config.to_str()?);
    let arguments = ["REGISTRY_HTTP_ADDR=127.0.0.1:{port}", program, "serve", config];
    Some(Registry(Server::start(Path::new("/usr/bin/env"), &arguments)))
}

/// An S3 server with an empty bucket.
pub fn s3(temp: &Path) -> Option<Remote> {
    let moto = installed("venv/bin", "moto_server")?;
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
    let credentials = "AWS_ACCESS_KEY_ID=test\nAWS_SECRET_ACCESS_KEY=test\n";
    Some(Remote {
        url: "s3://bucket/some/prefix",
        endpoint: format!("http://127.0.0.1:{}", server.port),
        region: Some("us-east-1"),
        credentials_file: secret(temp.join("credentials"), credentials),
        server,
    })
}

/// An Azure Blob server with an empty container.
pub fn azure(temp: &Path) -> Option<Remote> {
    let azurite = installed("node_modules/.bin", "azurite-blob")?;
    let location = temp.join("azurite");
    let arguments = ["--silent", "--skipApiVersionCheck", "--blobHost", "127.0.0.1", "--blobPort", "{port}"];
    let location_argument = ["--location", location.to_str().unwrap()];
    let server = Server::start(&azurite, &[&arguments[..], &location_argument[..]].concat());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../reveille-depot/tests/common/azure-container.js");
    let made =
        Command::new("node").arg(script).args([&server.port.to_string(), "container"]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    Some(Remote {
        url: "az://container/some/prefix",
        endpoint: format!("http://127.0.0.1:{}/devstoreaccount1", server.port),
        region: None,
        credentials_file: secret(temp.join("credentials"), AZURITE),
        server,
    })
}
