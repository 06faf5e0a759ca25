//! Certificates, and clients that speak TLS.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::SystemTime;

use reveille_dns::{Certificate, CertificateSource, EncryptedConfig};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};
use tempfile::TempDir;

use super::common::{WAIT_MAX, World};

/// A server that is reached over TLS and HTTPS, and where its certificate lies.
pub struct Encrypted {
    pub world: World,
    pub certificate: Certificate,
    pub dir: TempDir,
}

impl Encrypted {
    /// With a certificate that the server made for itself.
    pub fn new(world: World) -> Self {
        let dir = TempDir::new().unwrap();
        let source = self_signed(dir.path(), &["127.0.0.53", "ns1.vm.test"]);
        Self::with(world, source, dir)
    }

    pub fn with(mut world: World, source: CertificateSource, dir: TempDir) -> Self {
        let certificate = Certificate::open(source, SystemTime::now()).unwrap();
        let free = SocketAddr::from(([127, 0, 0, 53], 0));
        let config = EncryptedConfig { tls: vec![free], https: vec![free], https_plain: false };
        {
            let _inside = world.runtime.enter();
            world.server.listen_encrypted(&config, Some(&certificate)).unwrap();
        }
        Self { world, certificate, dir }
    }

    pub fn tls(&self) -> SocketAddr {
        self.world.server.tls_addresses()[0]
    }

    pub fn https(&self) -> SocketAddr {
        self.world.server.https_addresses()[0]
    }

    /// The file of the certificate that the server made.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("self-signed-certificate.pem")
    }

    /// The certificate that the server made.
    pub fn own(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.ca()).unwrap()
    }

    /// A connection over TLS that is through the handshake.
    pub fn connect(&self) -> StreamOwned<ClientConnection, TcpStream> {
        connect(TcpStream::connect(self.tls()).unwrap(), self.own())
    }
}

/// A certificate that the server makes, for these names.
pub fn self_signed(dir: &Path, names: &[&str]) -> CertificateSource {
    let names = names.iter().map(|&name| name.to_owned()).collect();
    CertificateSource::SelfSigned { dir: dir.to_owned(), names }
}

/// Through the handshake with a server that has that certificate.
pub fn connect(stream: TcpStream, own: CertificateDer<'static>) -> StreamOwned<ClientConnection, TcpStream> {
    connect_with(stream, own, rustls::ALL_VERSIONS)
}

/// With one of these versions of TLS.
pub fn connect_with(
    stream: TcpStream,
    own: CertificateDer<'static>,
    versions: &[&'static SupportedProtocolVersion],
) -> StreamOwned<ClientConnection, TcpStream> {
    stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(own).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"dot".to_vec()];
    let name = ServerName::try_from("ns1.vm.test").unwrap();
    let session = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(session, stream);
    stream.flush().unwrap();
    stream
}

pub fn read_framed(stream: &mut impl Read) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).unwrap();
    answer
}

/// What a program says to an address: standard output, standard error, and how it ended.
pub fn run(program: &str, arguments: &[&str]) -> (String, Output) {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; `make test` installs what the tests need"));
    let text = [&output.stdout[..], &output.stderr].concat();
    (String::from_utf8_lossy(&text).into_owned(), output)
}

/// What kdig or dig print that ask one question at that address.
pub fn ask(program: &str, address: SocketAddr, arguments: &[&str]) -> (String, bool) {
    let (host, port) = (format!("@{}", address.ip()), address.port().to_string());
    let limits: &[&str] =
        if program == "dig" { &["+time=10", "+tries=1"] } else { &["+timeout=10", "+retry=0"] };
    let arguments: Vec<&str> =
        [&[host.as_str(), "-p", port.as_str()], limits, arguments].concat().into_iter().collect();
    let (text, output) = run(program, &arguments);
    (text, output.status.success())
}

/// A certificate of an operator in `dir`, which nobody vouches for either; gives its files.
pub fn operators(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    let key = rcgen::KeyPair::generate().unwrap();
    let wanted = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let (certificate_file, key_file) = (dir.join("cert.pem"), dir.join("key.pem"));
    replace(&certificate_file, wanted.self_signed(&key).unwrap().pem().as_bytes(), 0o644);
    replace(&key_file, key.serialize_pem().as_bytes(), 0o600);
    (certificate_file, key_file)
}

/// A new file in place of the one that is there, as certificates are renewed.
pub fn replace(path: &Path, content: &[u8], mode: u32) {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, content).unwrap();
    fs::set_permissions(&fresh, fs::Permissions::from_mode(mode)).unwrap();
    fs::rename(&fresh, path).unwrap();
}
