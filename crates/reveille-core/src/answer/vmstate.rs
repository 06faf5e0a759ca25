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
        say("hibernated-at", &utc(at));
    }
    if let Some(ms) = service.wake_ms_p50 {
        say("wake-ms-p50", &ms);
    }
    if let Some(ms) = service.wake_ms_p95 {
        say("wake-ms-p95", &ms);
    }
    say("cpus", &service.resources.cpus);
    say("memory-mib", &service.resources.memory_mib);
    if let Some(mbit) = service.resources.bandwidth_mbit {
        say("bandwidth-mbit", &mbit);
    }
    if let Some(version) = service.version {
        say("storage", &format_args!("local:{}.{version}", service.instance));
    }
    if let Some(refused) = service.refused.as_ref().filter(|refused| refused.until > now) {
        say("refused-until", &utc(refused.until));
        say("refused", &refused.text);
    }
    Records { owner, rtype, ttl: TTL_S, data: Data::Made(data) }
}

/// `2026-11-22T01:02:03Z`, by the civil calendar (days since 1970 in eras of 400 years that begin in March).
fn utc(at: Timestamp) -> String {
    let seconds = at.as_ms() / 1_000;
    let days = seconds / 86_400 + 719_468;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + days / 146_097 * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, text) in cases {
            assert_eq!(utc(Timestamp::from_ms(seconds * 1_000 + 999)), text);
        }
    }
}
