//! The state of a service, for those who may ask (Q4): as TXT below its name, and as a private type at its name.

use super::reply::{Data, Owner, Records};
use super::view::ServiceView;
use crate::model::Timestamp;

/// The label in front of a service's name under which its state is asked for.
pub const VMSTATE_LABEL: &[u8] = b"_vmstate";

/// The state may change at any moment and is asked for by those who want to know it now: it is not cached.
const TTL_S: u32 = 0;
/// Longest character string (RFC 1035 §3.3).
const STRING_BYTES_MAX: usize = 255;

/// One record with a `key=value` string for each thing that is known.
pub(super) fn records<'v>(
    service: &ServiceView,
    rtype: u16,
    owner: Owner<'v>,
    now: Timestamp,
) -> Records<'v> {
    let mut data = Vec::with_capacity(256);
    let mut say = |key: &str, value: &dyn std::fmt::Display| {
        let text = format!("{key}={value}");
        let text = text.get(..text.floor_char_boundary(STRING_BYTES_MAX)).unwrap_or_default();
        data.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        data.extend_from_slice(text.as_bytes());
    };
    say("state", &service.state.word());
    say("phase", &service.phase);
    say("rung", &service.rung);
    if let Some(version) = service.version {
        say("version", &version);
    }
    if let Some(at) = service.hibernated_at {
        say("hibernated-at", &at.utc());
    }
    if let Some(wake) = service.wake {
        say("wake-ms-p50", &wake.ms_p50);
        say("wake-ms-p95", &wake.ms_p95);
    }
    say("cpus", &service.resources.cpus);
    say("memory-mib", &service.resources.memory_mib);
    if let Some(mbit) = service.resources.bandwidth_mbit {
        say("bandwidth-mbit", &mbit);
    }
    if let Some(version) = service.version {
        say("storage", &format_args!("local:{}.{version}", service.instance));
    }
    if let Some(refused) = service.refused.as_ref().filter(|refused| refused.holds(now)) {
        if let Some(until) = refused.until {
            say("refused-until", &until.utc());
        }
        say("refused", &refused.text);
    }
    Records { owner, rtype, ttl: TTL_S, data: Data::Made(data) }
}
