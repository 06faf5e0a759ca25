//! Any text as a zone file: it is read or refused; what was read is the same when it is written and read again, and
//! can be answered.

use std::fmt::Write;
use std::sync::Arc;

use reveille_core::answer::{View, Zone, Zones};
use reveille_core::model::DomainName;
use reveille_dns::{Origin, Transport, respond, zonefile};

use crate::message::Message;
use crate::world::{peer, setting};

/// Most RRsets that are asked for.
const QUESTIONS_MAX: usize = 8;

/// The text; what is no UTF-8 in it is replaced.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let apex: DomainName = "conform.test".parse().expect("a name");
    let zone = match zonefile::parse("f", &text, &apex) {
        Ok(zone) => zone,
        Err(faults) => {
            assert!(!faults.is_empty() && faults.len() <= zonefile::ZONE_FAULTS_MAX);
            let lines = text.bytes().filter(|&byte| byte == b'\n').count() + 1;
            assert!(faults.iter().all(|fault| fault.line.is_none_or(|line| line <= lines)), "{faults:?}");
            return;
        }
    };
    let written = written(&zone);
    let again =
        zonefile::parse("f", &written, &apex).unwrap_or_else(|faults| panic!("{faults:?}: {written}"));
    assert_eq!(again, zone, "{written}");
    can_be_answered(zone);
}

fn can_be_answered(zone: Zone) {
    let sets: Vec<(Vec<u8>, u16)> = zone
        .nodes()
        .flat_map(|node| node.sets().map(|(rtype, _)| (node.owner().as_wire().to_vec(), rtype)))
        .take(QUESTIONS_MAX)
        .collect();
    let view = View::new(1, Zones::new([Arc::new(zone)]), [], View::default_monitors());
    let mut out = Vec::new();
    for (name, rtype) in sets {
        let mut packet = vec![0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        packet.extend(name);
        packet.extend(rtype.to_be_bytes());
        packet.extend([0, 1]);
        for transport in [Transport::Udp, Transport::Tcp] {
            respond(&setting(&view), &packet, &Origin::new(peer(), transport), &mut out);
            let answer = Message::parse(&out).unwrap_or_else(|why| panic!("{why}: {packet:02x?} {out:02x?}"));
            assert!(answer.rcode == 0 && !answer.questions.is_empty(), "{answer:?}");
        }
    }
}

/// Every record in the form that holds for any type (RFC 3597 §5).
pub fn written(zone: &Zone) -> String {
    let mut text = String::new();
    for node in zone.nodes() {
        let mut owner = String::new();
        for label in node.owner().labels() {
            label.iter().for_each(|byte| write!(owner, "\\{byte:03}").expect("a string grows"));
            owner.push('.');
        }
        for (rtype, set) in node.sets() {
            for data in &set.data {
                let hex: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
                writeln!(text, "{owner} {} IN TYPE{rtype} \\# {} {hex}", set.ttl, data.len())
                    .expect("a string grows");
            }
        }
    }
    text
}
