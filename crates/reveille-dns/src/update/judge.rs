//! Whether an update is made, and what it changes: pure, and the only place that knows the order of the checks.

use std::borrow::Cow;
use std::net::IpAddr;

use reveille_core::answer::{
    Clash, Ede, Rcode, Record, Reply, View, ZoneDraft, ZoneFaultKind, rdata, static_clash,
};
use reveille_core::model::DomainName;

use super::aside::Aside;
use super::edits::{Sets, Workbench};
use super::grant::Grant;
use super::message::{Edit, UpdateMessage};
use super::prerequisites;

/// An update whose signature was verified.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// What it says.
    pub message: &'a UpdateMessage,
    /// The key that signed it.
    pub key: &'a DomainName,
    /// Where it came from.
    pub client: IpAddr,
}

/// Why an update is not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", rcode.word())]
pub struct Refusal {
    /// Response code (RFC 2136 §2.2).
    pub rcode: Rcode,
    /// One sentence; goes out as the text of an extended error.
    pub why: Cow<'static, str>,
}

impl Refusal {
    /// A refusal with its reason.
    pub fn new(rcode: Rcode, why: impl Into<Cow<'static, str>>) -> Self {
        Self { rcode, why: why.into() }
    }

    /// The reply that says so.
    pub fn reply(&self) -> Reply<'_> {
        let code = match self.rcode {
            Rcode::Refused => Ede::PROHIBITED,
            Rcode::NotAuth => Ede::NOT_AUTHORITATIVE,
            Rcode::ServFail => Ede::NOT_READY,
            Rcode::NoError
            | Rcode::FormErr
            | Rcode::NxDomain
            | Rcode::NotImp
            | Rcode::YxDomain
            | Rcode::YxRrset
            | Rcode::NxRrset
            | Rcode::NotZone
            | Rcode::BadVers
            | Rcode::BadCookie => Ede::OTHER,
        };
        Reply::error(self.rcode, code, &*self.why)
    }
}

/// Judges an update of the zone `zone` (RFC 2136 §3.2 to §3.4) against the newest state; gives the names that it
/// changes with their new RRsets. No name: everything is already so, which is a success.
///
/// The key's right to update the zone at all is looked at first: prerequisites tell what is there, and that is
/// nobody's business who may not change it.
///
/// What was set aside is updated with the zone, see [`Aside`]; after a refusal it is of no use.
///
/// # Errors
/// Why it is refused as a whole.
pub(super) fn judge(
    view: &View,
    zone: &ZoneDraft,
    grants: &[Grant],
    aside: &mut Aside<'_>,
    request: Request<'_>,
) -> Result<Vec<(DomainName, Sets)>, Refusal> {
    let Request { message, key, client } = request;
    let grants: Vec<&Grant> = grants.iter().filter(|grant| grant.is_for(key, client)).collect();
    if grants.is_empty() {
        let why = format!("the key {key} may not update the zone {} from {client}", zone.apex());
        return Err(Refusal::new(Rcode::Refused, why));
    }
    prerequisites::check(view, zone, &message.prerequisites)?;
    let outside = message.edits.iter().find(|edit| !edit.owner().is_at_or_below(zone.apex()));
    if let Some(edit) = outside {
        let why = format!("{} is not in the zone {}", edit.owner(), zone.apex());
        return Err(Refusal::new(Rcode::NotZone, why));
    }
    let mut work = Workbench::new(zone);
    for edit in &message.edits {
        let owner = edit.owner();
        for rtype in types_touched(view, zone.apex(), &work, edit) {
            owned(view, zone.apex(), owner, rtype)?;
            granted(&grants, key, owner, rtype)?;
        }
        if let Edit::Add(record) = edit {
            addable(zone.apex(), record)?;
        } else if !grants.iter().any(|grant| grant.covers_name(owner)) {
            return Err(not_granted(key, owner));
        }
        if let Edit::DropName(owner) = edit {
            // It goes too, so it needs the same permission.
            aside.types(owner).into_iter().try_for_each(|rtype| granted(&grants, key, owner, rtype))?;
        }
        if work.apply(edit) {
            aside.apply(zone.apex(), edit);
        }
    }
    let changed = work.finish();
    servable(zone, &changed)?;
    Ok(changed)
}

/// The types of a name that an edit means.
fn types_touched(view: &View, apex: &DomainName, work: &Workbench<'_>, edit: &Edit) -> Vec<u16> {
    match edit {
        Edit::Add(record) => vec![record.rtype],
        Edit::DropSet(_, rtype) | Edit::DropRecord { rtype, .. } => vec![*rtype],
        Edit::DropName(owner) => {
            let mut types = work.types(owner);
            // Everything at a service's name includes its addresses.
            types.extend(view.service(owner).map(|_| rdata::A));
            // What stays whoever asks for it (RFC 2136 §3.4.2.3) needs no permission.
            types.retain(|rtype| !(owner == apex && matches!(*rtype, rdata::SOA | rdata::NS)));
            types
        }
    }
}

/// Refuses what has another owner: services, and signing.
fn owned(view: &View, apex: &DomainName, owner: &DomainName, rtype: u16) -> Result<(), Refusal> {
    if is_of_signing(rtype) {
        let rtype = rdata::type_word(rtype);
        let why = format!("{rtype} records are made by signing and cannot be updated");
        return Err(Refusal::new(Rcode::Refused, why));
    }
    match static_clash(view, apex, owner, rtype) {
        None => Ok(()),
        Some(Clash::StaticRecord { .. }) => {
            let why = format!("{owner} is a service; its addresses and its state are its own");
            Err(Refusal::new(Rcode::Refused, why))
        }
        Some(clash) => Err(Refusal::new(Rcode::Refused, clash.to_string())),
    }
}

/// The number of a type that a [`Grant`] can be for, given its mnemonic or `TYPE65280`; `None` if nobody may ever
/// update it, or it is unknown.
pub fn grantable_type(word: &str) -> Option<u16> {
    let rtype = word.parse::<domain::base::iana::Rtype>().ok()?.to_int();
    let of_data = !matches!(rtype, 0 | rdata::OPT | 128..=255);
    (of_data && rtype != rdata::SOA && !is_of_signing(rtype)).then_some(rtype)
}

/// SIG, KEY, NXT; RRSIG, NSEC, DNSKEY, NSEC3, NSEC3PARAM; CDS, CDNSKEY; ZONEMD.
fn is_of_signing(rtype: u16) -> bool {
    matches!(rtype, 24 | 25 | 30 | 46 | 47 | 48 | 50 | 51 | 59 | 60 | 63)
}

/// The SOA can be removed by nobody, which is ignored, and changed by the daemon alone: it owns the serial
/// (RFC 2136 §3.6). DS records of the zone itself stand in its parent (RFC 4035 §2.4); some that the file has may
/// be removed.
fn addable(apex: &DomainName, record: &Record) -> Result<(), Refusal> {
    let why = match record.rtype {
        rdata::SOA => "the SOA is kept by the server and cannot be updated",
        rdata::DS if record.owner == *apex => "DS records of the zone itself belong into its parent",
        _ => return Ok(()),
    };
    Err(Refusal::new(Rcode::Refused, why))
}

fn granted(grants: &[&Grant], key: &DomainName, owner: &DomainName, rtype: u16) -> Result<(), Refusal> {
    if grants.iter().any(|grant| grant.covers(owner, rtype)) {
        return Ok(());
    }
    let rtype = rdata::type_word(rtype);
    let why = format!("the key {key} may not update {rtype} records of {owner}");
    Err(Refusal::new(Rcode::Refused, why))
}

fn not_granted(key: &DomainName, owner: &DomainName) -> Refusal {
    Refusal::new(Rcode::Refused, format!("the key {key} may not update {owner}"))
}

/// Whether the zone with these changes could be served.
fn servable(zone: &ZoneDraft, changed: &[(DomainName, Sets)]) -> Result<(), Refusal> {
    let faults = match zone.clone().change(changed.iter().cloned()) {
        Ok(()) => return Ok(()),
        Err(faults) => faults,
    };
    let malformed = faults.iter().any(|fault| matches!(fault, ZoneFaultKind::BadData { .. }));
    let rcode = if malformed { Rcode::FormErr } else { Rcode::Refused };
    let why = faults.first().map_or_else(String::new, ToString::to_string);
    Err(Refusal::new(rcode, why))
}
