//! Whether an update's prerequisites hold (RFC 2136 §3.2). Services count as the records that they are to others:
//! a conditional update sees the zone that a query sees.

use std::collections::{BTreeMap, BTreeSet};

use reveille_core::answer::{Rcode, View, ZoneDraft, rdata};
use reveille_core::model::DomainName;

use super::judge::Refusal;
use super::message::{Prerequisite, canonical};

/// Checks all of them against the zone as it is by now.
///
/// # Errors
/// What the first one that does not hold says.
pub(super) fn check(view: &View, zone: &ZoneDraft, all: &[Prerequisite]) -> Result<(), Refusal> {
    let mut wanted: BTreeMap<(&DomainName, u16), BTreeSet<Vec<u8>>> = BTreeMap::new();
    for prerequisite in all {
        let owner = prerequisite.owner();
        if !owner.is_at_or_below(zone.apex()) {
            let why = format!("the prerequisite name {owner} is not in the zone {}", zone.apex());
            return Err(Refusal::new(Rcode::NotZone, why));
        }
        let (holds, rcode, what) = match prerequisite {
            Prerequisite::NameInUse(name) => (in_use(view, zone, name), Rcode::NxDomain, "is not in use"),
            Prerequisite::NameNotInUse(name) => (!in_use(view, zone, name), Rcode::YxDomain, "is in use"),
            Prerequisite::SetExists(name, rtype) => {
                (set(view, zone, name, *rtype).is_some(), Rcode::NxRrset, "has no such RRset")
            }
            Prerequisite::SetAbsent(name, rtype) => {
                (set(view, zone, name, *rtype).is_none(), Rcode::YxRrset, "has such an RRset")
            }
            Prerequisite::Record { owner, rtype, data } => {
                wanted.entry((owner, *rtype)).or_default().insert(canonical(*rtype, data));
                continue;
            }
        };
        if !holds {
            return Err(Refusal::new(rcode, format!("{owner} {what}")));
        }
    }
    for ((owner, rtype), wanted) in wanted {
        let found = set(view, zone, owner, rtype);
        let found = found.map(|set| set.iter().map(|data| canonical(rtype, data)).collect());
        if found != Some(wanted) {
            let rtype = rdata::type_word(rtype);
            let why = format!("the {rtype} records of {owner} are not those of the prerequisite");
            return Err(Refusal::new(Rcode::NxRrset, why));
        }
    }
    Ok(())
}

/// Whether the name has records; one that only has names below it has none (RFC 2136 §2.4.4).
fn in_use(view: &View, zone: &ZoneDraft, name: &DomainName) -> bool {
    view.service(name).is_some() || zone.node(name).is_some()
}

/// The data of an RRset.
fn set(view: &View, zone: &ZoneDraft, name: &DomainName, rtype: u16) -> Option<Vec<Vec<u8>>> {
    match (view.service(name), rtype) {
        (Some(service), rdata::A) => return Some(vec![service.address.octets().to_vec()]),
        (Some(service), rdata::AAAA) => return Some(vec![service.address6?.octets().to_vec()]),
        (Some(_) | None, _) => {}
    }
    let set = zone.node(name)?.set(rtype)?;
    Some(set.data.iter().map(|data| data.to_vec()).collect())
}
