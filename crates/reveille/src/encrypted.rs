//! DNS over TLS and HTTPS: from the config to a certificate, and the look at its files while the daemon runs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use reveille_api::Time;
use reveille_core::model::{DomainName, Timestamp};
use reveille_dns::{About, Certificate, CertificateSource, DnsServer, EncryptedConfig, Refreshed};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::config::Config;

/// Time between two looks at the files of the certificate.
const LOOK: Duration = Duration::from_secs(5);
/// From this long before a certificate ends it is warned of, once in [`WARN_AGAIN`].
const WARN_BEFORE: Duration = Duration::from_secs(14 * 86_400);
const WARN_AGAIN: Duration = Duration::from_secs(86_400);

/// Listens for DNS over TLS and HTTPS as the config says. Tells of the certificate, and of each that takes its place,
/// until what is given back is dropped; `None` if there is none.
///
/// # Errors
/// The files of the certificate cannot be used, or an address cannot be had.
pub fn listen(config: &Config, dns: &mut DnsServer) -> anyhow::Result<Option<Watched>> {
    let (tls, https) = (&config.dns.tls, &config.dns.https);
    let wanted =
        EncryptedConfig { tls: tls.listen.clone(), https: https.listen.clone(), https_plain: https.plain };
    let opened = source(config).map(|source| Certificate::open(source, SystemTime::now()));
    let certificate = opened.transpose()?;
    dns.listen_encrypted(&wanted, certificate.as_ref())?;
    Ok(certificate.map(|certificate| watch(Arc::new(certificate))))
}

/// Every fault of the certificate that the config names; makes none.
pub fn faults(config: &Config) -> Vec<String> {
    match source(config) {
        Some(source @ CertificateSource::Files { .. }) => {
            let opened = Certificate::open(source, SystemTime::now());
            opened.err().iter().map(ToString::to_string).collect()
        }
        Some(CertificateSource::SelfSigned { .. }) | None => Vec::new(),
    }
}

/// The certificate that is shown, and the look at its files, which ends with this.
pub struct Watched {
    /// The certificate.
    pub certificate: Arc<Certificate>,
    _watching: JoinSet<()>,
}

fn watch(certificate: Arc<Certificate>) -> Watched {
    tell(&certificate.source(), &certificate.about(), "certificate of DNS over TLS and HTTPS");
    let mut watching = JoinSet::new();
    watching.spawn(look(Arc::clone(&certificate)));
    Watched { certificate, _watching: watching }
}

/// Where the certificate comes from; `None` if nobody is shown one.
pub fn source(config: &Config) -> Option<CertificateSource> {
    let (tls, https) = (&config.dns.tls, &config.dns.https);
    if tls.listen.is_empty() && (https.plain || https.listen.is_empty()) {
        return None;
    }
    if let Some((certificate, key)) = tls.files() {
        return Some(CertificateSource::Files { certificate: certificate.to_owned(), key: key.to_owned() });
    }
    let addresses = tls.listen.iter().chain(&https.listen).map(std::net::SocketAddr::ip);
    let mut names: BTreeSet<String> =
        addresses.filter(|address| !address.is_unspecified()).map(|address| address.to_string()).collect();
    for zone in &config.zone {
        let ns = zone.ns.clone().or_else(|| zone.name.prepend("ns1").ok());
        names.extend(ns.as_ref().map(DomainName::to_string));
    }
    let dir = config.daemon.state_dir.join("tls");
    Some(CertificateSource::SelfSigned { dir, names: names.into_iter().collect() })
}

async fn look(certificate: Arc<Certificate>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut warned: Option<Instant> = None;
    let mut last_fault = String::new();
    loop {
        ticks.tick().await;
        let looked_at = Arc::clone(&certificate);
        // Files may be slow; nobody who asks is to wait for them.
        let refreshed = tokio::task::spawn_blocking(move || looked_at.refresh(SystemTime::now())).await;
        match refreshed {
            Ok(Ok(Refreshed::Same)) => {}
            Ok(Ok(Refreshed::Replaced(about))) => {
                tell(&certificate.source(), &about, "new certificate of DNS over TLS and HTTPS");
                (warned, last_fault) = (None, String::new());
            }
            Ok(Err(error)) => {
                let fault = error.to_string();
                if fault != last_fault {
                    tracing::error!("the new certificate is not taken, the old one stays: {fault}");
                    last_fault = fault;
                }
            }
            // Only if the runtime ends.
            Err(_) => return,
        }
        let until = certificate.about().until;
        if until < SystemTime::now() + WARN_BEFORE && warned.is_none_or(|at| at.elapsed() > WARN_AGAIN) {
            warned = Some(Instant::now());
            tracing::warn!(until = %time(until), "the certificate of DNS over TLS and HTTPS ends soon; renew it");
        }
    }
}

fn tell(source: &CertificateSource, about: &About, what: &str) {
    let until = time(about.until);
    match source {
        CertificateSource::Files { certificate, .. } => {
            tracing::info!(file = %certificate.display(), pin = about.pin, %until, "{what}");
        }
        CertificateSource::SelfSigned { .. } => {
            let why = "self-signed, as `dns.tls.cert_file` is not set: clients know it by its pin only";
            tracing::info!(pin = about.pin, %until, "{what}: {why}");
        }
    }
}

fn time(at: SystemTime) -> Time {
    let ms = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    Time(Timestamp::from_ms(u64::try_from(ms).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source_of(text: &str) -> Option<CertificateSource> {
        source(&Config::parse(text).unwrap())
    }

    #[test]
    fn a_certificate_is_there_only_where_it_is_shown() {
        let key = "cert_file = \"c.pem\"\nkey_file = \"k.pem\"";
        assert_eq!(source_of(&format!("[dns.tls]\n{key}")), None);
        let proxied = "[dns.https]\nlisten = [\"127.0.0.1:8443\"]\nplain = true";
        assert_eq!(source_of(proxied), None);
        let files = CertificateSource::Files { certificate: "c.pem".into(), key: "k.pem".into() };
        let https = "[dns.https]\nlisten = [\"0.0.0.0:8443\"]";
        assert_eq!(source_of(&format!("[dns.tls]\n{key}\n{https}")), Some(files));
        // Made for the addresses that are listened on, and the names by which name servers are known.
        let zones = "[[zone]]\nname = \"vm.test\"\n[[zone]]\nname = \"a.test\"\nns = \"ns.b.test\"";
        let own = source_of(&format!("[dns.tls]\nlisten = [\"192.0.2.1:853\"]\n{https}\n{zones}"));
        let names = ["192.0.2.1", "ns.b.test", "ns1.vm.test"].map(str::to_owned).to_vec();
        let dir = Config::default().daemon.state_dir.join("tls");
        assert_eq!(own, Some(CertificateSource::SelfSigned { dir, names }));
    }

    #[test]
    fn files_that_cannot_be_used_are_faults_of_the_config() {
        let missing = "[dns.tls]\nlisten = [\"127.0.0.1:853\"]\ncert_file = \"/none/c.pem\"\nkey_file = \"/none/k.pem\"";
        let told = faults(&Config::parse(missing).unwrap());
        assert!(matches!(&told[..], [one] if one.starts_with("cannot read /none/c.pem")), "{told:?}");
        // A check makes no certificate.
        let own = "[daemon]\nstate_dir = \"/none\"\n[dns.tls]\nlisten = [\"127.0.0.1:853\"]";
        assert_eq!(faults(&Config::parse(own).unwrap()), Vec::<String>::new());
    }
}
