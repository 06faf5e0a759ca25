//! `[dns.tls]` and `[dns.https]`: DNS where nobody can look inside.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use reveille_core::model::SpecFault;
use reveille_dns::dnstap::DnstapIn;
use serde::{Deserialize, Serialize};

/// Most addresses of one kind.
const LISTEN_MAX: usize = 64;

/// `[dns.tls]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Addresses on which DNS over TLS is served (RFC 7858).
    pub listen: Vec<SocketAddr>,
    /// The certificate in PEM, then those that lead to its authority; for HTTPS too. Empty: the server makes one.
    pub cert_file: PathBuf,
    /// The key of the certificate in PEM.
    pub key_file: PathBuf,
}

/// `[dns.https]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Https {
    /// Addresses on which DNS over HTTPS is served (RFC 8484).
    pub listen: Vec<SocketAddr>,
    /// Without TLS: a proxy on this host has it.
    pub plain: bool,
}

impl Tls {
    /// The files of the certificate, if there are any.
    pub fn files(&self) -> Option<(&Path, &Path)> {
        let named = |path: &Path| !path.as_os_str().is_empty();
        (named(&self.cert_file) && named(&self.key_file)).then_some((&self.cert_file, &self.key_file))
    }

    /// Relative paths are taken from where the config file lies.
    pub(super) fn rebase(&mut self, rebased: impl Fn(&Path) -> PathBuf) {
        for file in [&mut self.cert_file, &mut self.key_file] {
            if !file.as_os_str().is_empty() {
                *file = rebased(file);
            }
        }
    }
}

/// Every address that is to be listened on more than once. Port 0 is another port each time.
pub(super) fn shared_addresses(dns: &super::Dns, dnstap: &DnstapIn, api: SocketAddr) -> Vec<SpecFault> {
    let lists = [
        ("dns.listen", &dns.listen),
        ("dns.tls.listen", &dns.tls.listen),
        ("dns.https.listen", &dns.https.listen),
        ("observe.dnstap_in.listen", &dnstap.listen),
    ];
    let (mut taken, mut faults) = (BTreeSet::new(), Vec::new());
    let listened = lists.into_iter().flat_map(|(key, list)| list.iter().map(move |address| (key, *address)));
    for (key, address) in listened.chain([("api.listen", api)]) {
        if address.port() != 0 && !taken.insert(address) {
            faults.push(SpecFault::new(key, address, "an address and port that nothing else here has"));
        }
    }
    faults
}

/// Everything that is wrong with both.
pub(super) fn faults(tls: &Tls, https: &Https) -> Vec<SpecFault> {
    let mut faults = Vec::new();
    let has = |path: &Path| !path.as_os_str().is_empty();
    if has(&tls.cert_file) != has(&tls.key_file) {
        let (key, allowed) = if has(&tls.cert_file) {
            ("dns.tls.key_file", "the file of the certificate's key, as `cert_file` is set")
        } else {
            ("dns.tls.cert_file", "the file of the key's certificate, as `key_file` is set")
        };
        faults.push(SpecFault::new(key, "\"\"", allowed));
    }
    for (key, listen) in [("dns.tls.listen", &tls.listen), ("dns.https.listen", &https.listen)] {
        if listen.len() > LISTEN_MAX {
            let value = format!("{} addresses", listen.len());
            faults.push(SpecFault::new(key, value, format!("up to {LISTEN_MAX}")));
        }
    }
    if https.plain {
        for address in https.listen.iter().filter(|address| !address.ip().to_canonical().is_loopback()) {
            let allowed =
                "a loopback address while `plain = true`: without TLS it is for a proxy on this host";
            faults.push(SpecFault::new("dns.https.listen", address, allowed));
        }
    }
    faults
}
