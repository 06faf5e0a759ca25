//! What a configuration says twice: services and static records that want the same name.

use std::collections::{BTreeMap, BTreeSet};

use super::key::{NameKey, QuestionName};
use super::rdata::{self, A, AAAA, CNAME, NS};
use super::view::{View, Zones};
use super::vmstate::VMSTATE_LABEL;
use super::zone::Zone;
use crate::model::DomainName;

/// A name about which zones and services disagree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Clash {
    /// No zone has the service's name: nobody could ask for it.
    #[error("the service {0} is in none of the zones that are served; add its zone or rename it")]
    OutsideZones(DomainName),
    /// A static record of a type that the service answers itself. The service's answer is given.
    #[error(
        "{service} is a service and has a static {rtype} record in the zone {zone}; \
         the record is never answered: remove it, or rename the service"
    )]
    StaticRecord {
        /// The service.
        service: DomainName,
        /// The record's type.
        rtype: String,
        /// The zone.
        zone: DomainName,
    },
    /// The service's name is delegated away.
    #[error(
        "the service {service} is at or below {cut}, which is delegated to other name servers; it is never answered"
    )]
    Delegated {
        /// The service.
        service: DomainName,
        /// The delegated name.
        cut: DomainName,
    },
    /// A delegation that would take services away.
    #[error("services are at or below {0}; a delegation there would take them away")]
    DelegatesServices(DomainName),
    /// Something stands at the name under which a service's state is asked for. The state is answered.
    #[error("{name} is where the state of the service {service} is asked for; rename what stands there")]
    Vmstate {
        /// The name.
        name: DomainName,
        /// The service.
        service: DomainName,
    },
}

/// Every clash between the zones and the services of these names, by service.
pub fn clashes<'a>(zones: &Zones, services: impl IntoIterator<Item = &'a DomainName>) -> Vec<Clash> {
    let services: BTreeSet<&DomainName> = services.into_iter().collect();
    let keys: BTreeMap<NameKey, &DomainName> =
        services.iter().map(|service| (NameKey::from(*service), *service)).collect();
    let mut found = Vec::new();
    for service in services {
        let name = QuestionName::from(service);
        let Some(zone) = zones.of(&name) else {
            found.push(Clash::OutsideZones(service.clone()));
            continue;
        };
        if let Some(cut) = zone.cut(&name) {
            found.push(Clash::Delegated { service: service.clone(), cut: cut.owner().clone() });
            continue;
        }
        found.extend(static_records(zone, service));
        // The label and a dot, unless the name would be too long, in which case nothing can stand there.
        let Ok(state_name) = service.prepend(&String::from_utf8_lossy(VMSTATE_LABEL)) else { continue };
        let state_key = NameKey::from(&state_name);
        if zone.node(&state_name).is_some() || keys.contains_key(&state_key) {
            found.push(Clash::Vmstate { name: state_name, service: service.clone() });
        }
    }
    found
}

/// What a static record of this name and type in the zone `apex` would take from a service; `None` if nothing.
pub fn static_clash(view: &View, apex: &DomainName, owner: &DomainName, rtype: u16) -> Option<Clash> {
    if matches!(rtype, A | AAAA | CNAME | rdata::VMSTATE) && view.service(owner).is_some() {
        let (service, rtype) = (owner.clone(), rdata::type_word(rtype));
        return Some(Clash::StaticRecord { service, rtype, zone: apex.clone() });
    }
    if rtype == NS && owner != apex && has_service_at_or_below(view, owner) {
        return Some(Clash::DelegatesServices(owner.clone()));
    }
    let service = owner.parent().filter(|_| owner.labels().next() == Some(VMSTATE_LABEL))?;
    view.service(&service).is_some().then(|| Clash::Vmstate { name: owner.clone(), service })
}

/// Looks at every service if there is any name below; delegations are made seldom.
fn has_service_at_or_below(view: &View, top: &DomainName) -> bool {
    let slot = view.names().find(top.as_wire());
    slot.is_some_and(|slot| {
        slot.service().is_some()
            || (slot.below() > 0 && view.services().any(|service| service.name.is_at_or_below(top)))
    })
}

fn static_records<'a>(zone: &'a Zone, service: &'a DomainName) -> impl Iterator<Item = Clash> + 'a {
    let node = zone.node(service);
    let clashing = [A, AAAA, CNAME, rdata::VMSTATE]
        .into_iter()
        .filter(move |&rtype| node.is_some_and(|node| node.set(rtype).is_some()));
    clashing.map(move |rtype| Clash::StaticRecord {
        service: service.clone(),
        rtype: rdata::type_word(rtype),
        zone: zone.apex().clone(),
    })
}
