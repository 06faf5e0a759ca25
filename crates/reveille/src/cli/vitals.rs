//! How a service fares, as words: its health, its probes, what it uses.

use reveille_api::types::{MetricsReport, ProbeReport, ServiceDetail};

use super::output::{bytes, duration};

/// The verdict and why.
pub fn health(detail: &ServiceDetail) -> String {
    let flapping = if detail.flapping { "; it flaps" } else { "" };
    format!("{}, as {}{flapping}", detail.summary.health, detail.summary.health_reason)
}

/// What its probes found, and what the host sees of it.
pub fn rows(detail: &ServiceDetail) -> impl Iterator<Item = (&'static str, String)> {
    let probes = detail.probes.iter().map(|of| ("probe", probe(of)));
    probes.chain(detail.metrics.as_ref().map(|of| ("uses", uses(of))))
}

fn probe(of: &ProbeReport) -> String {
    let latency = of.latency_us.map(|us| format!("answers in {}", fine(us.into())));
    let fault = of.fault.as_ref().map(|fault| format!("failed last by {fault}"));
    let findings = (!of.findings.is_empty()).then(|| of.findings.clone());
    [Some(of.probe.clone()), findings, latency, fault].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn uses(of: &MetricsReport) -> String {
    let cpu = of.cpu_permille.map(|part| format!("{}.{} % of a CPU", part / 10, part % 10));
    let memory = of.held_kib.map(|kib| bytes(kib << 10));
    let disk = of.read_bytes.zip(of.written_bytes);
    let disk = disk.map(|(read, written)| format!("disk {} read, {} written", bytes(read), bytes(written)));
    let reply = of.reply_us.map(|us| format!("answers clients in {}", fine(us)));
    [cpu, memory, disk, reply].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// A duration in microseconds, as people say it.
fn fine(us: u64) -> String {
    match us {
        0..10_000 => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        _ => duration(us / 1_000),
    }
}

#[cfg(test)]
mod tests {
    use reveille_api::Time;
    use reveille_core::model::Timestamp;

    use super::*;

    #[test]
    fn what_is_not_known_is_left_out() {
        let seen = ProbeReport {
            probe: "tcp/80".to_owned(),
            findings: "++-".to_owned(),
            fault: Some("no answer within 1000 ms".to_owned()),
            latency_us: Some(1_250),
        };
        assert_eq!(probe(&seen), "tcp/80; ++-; answers in 1.2 ms; failed last by no answer within 1000 ms");
        let fresh = ProbeReport { findings: String::new(), fault: None, latency_us: None, ..seen };
        assert_eq!(probe(&fresh), "tcp/80");
        let metrics = MetricsReport {
            at: Time(Timestamp::from_ms(1)),
            cpu_permille: Some(17),
            cpu_ms: Some(340),
            held_kib: Some(44 << 10),
            read_bytes: Some(512),
            written_bytes: None,
            replies: Some(2),
            reply_us_total: Some(30_000),
            reply_us: Some(15_000),
        };
        assert_eq!(uses(&metrics), "1.7 % of a CPU; 44.0 MiB; answers clients in 15 ms");
    }
}
