//! What questions are answered from: every zone and service at one generation.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZero;
use std::sync::Arc;

use super::acl::{Acl, Asker};
use super::key::{NameKey, QuestionName};
use super::network::Network;
use super::rdata;
use super::table::{Edit, Kinds, NameTable, Slot, ZoneShape, capped_ttl_s, seconds};
use super::zone::{Node, Zone};
use crate::model::{AnswerPolicy, DomainName, InstanceId, Phase, Resources, Rung, Timestamp, VmState};

/// Why a service cannot be woken for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// From this time on a question wakes it again; `None`: not until the view says otherwise.
    pub until: Option<Timestamp>,
    /// One sentence for the asker: the cause, in a form fit for strangers.
    pub text: String,
}

impl Refused {
    /// Whether it still holds.
    #[must_use]
    pub fn holds(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| until > now)
    }
}

/// How long a service has taken to wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WakeTime {
    /// Median, in milliseconds.
    pub ms_p50: u32,
    /// 95th percentile, in milliseconds.
    pub ms_p95: u32,
}

/// What answering needs to know of a service. There is one for each service, so its size counts: see
/// `tests/resident.rs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceView {
    /// Its name.
    pub name: DomainName,
    /// Stable IPv4 address.
    pub address: Ipv4Addr,
    /// Stable IPv6 address, if it has one.
    pub address6: Option<Ipv6Addr>,
    /// Phase of its primary.
    pub phase: Phase,
    /// Rung of its primary.
    pub rung: Rung,
    /// What phase and rung amount to.
    pub state: VmState,
    /// What a question is answered with while it sleeps.
    pub answer: AnswerPolicy,
    /// Longest time that a question is held, in milliseconds.
    pub hold_ms_max: u32,
    /// TTL of its addresses, in seconds, unless the state may change sooner.
    pub ttl_s: u32,
    /// TTL of its addresses as secondaries have them, in seconds. Constant: it does not follow the state.
    pub ttl_published_s: u32,
    /// Before this time its state is not going to change by itself (Q5); `None` if no time is known.
    pub holds_until: Option<Timestamp>,
    /// Number of the counter of its questions; 0 is shared by all names that have none of their own.
    pub counter: u32,
    /// Set while it cannot be woken.
    pub refused: Option<Box<Refused>>,
    /// Number of the version that can be restored.
    pub version: Option<NonZero<u64>>,
    /// When it last hibernated.
    pub hibernated_at: Option<Timestamp>,
    /// Measured time to wake, if any was.
    pub wake: Option<WakeTime>,
    /// What an instance is given.
    pub resources: Resources,
    /// Its primary, by which its versions are kept.
    pub instance: InstanceId,
}

impl ServiceView {
    /// A service that sleeps and of which nothing else is known.
    pub fn asleep(name: DomainName, address: Ipv4Addr) -> Self {
        Self {
            name,
            address,
            address6: None,
            phase: Phase::Hibernated,
            rung: Rung::Local,
            state: VmState::Inactive,
            answer: AnswerPolicy::Immediate,
            hold_ms_max: 0,
            ttl_s: 5,
            ttl_published_s: 5,
            holds_until: None,
            counter: 0,
            refused: None,
            version: None,
            hibernated_at: None,
            wake: None,
            resources: Resources::default(),
            instance: InstanceId(0),
        }
    }

    /// TTL of its addresses at `now`, in seconds.
    pub fn ttl_s_at(&self, now: Timestamp) -> u32 {
        capped_ttl_s(self.ttl_s, self.holds_until.map_or(u32::MAX, seconds), seconds(now))
    }
}

/// The zones that are served. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Zones {
    list: Arc<[Arc<Zone>]>,
    by_apex: Arc<BTreeMap<NameKey, u16>>,
    /// Most labels of an apex.
    depth: usize,
    /// Which apexes they have, in their order.
    numbering: u64,
}

/// Stands for the zone of names that belong to none.
const NO_ZONE: u16 = u16::MAX;

impl Zones {
    /// Most zones that can be served.
    pub const COUNT_MAX: usize = NO_ZONE as usize;

    /// These zones, up to [`Zones::COUNT_MAX`] of them; of two with the same apex the later one.
    pub fn new(zones: impl IntoIterator<Item = Arc<Zone>>) -> Self {
        let sorted: BTreeMap<NameKey, Arc<Zone>> =
            zones.into_iter().map(|zone| (NameKey::from(zone.apex()), zone)).collect();
        let depth = sorted.values().map(|zone| zone.apex_labels()).max().unwrap_or(0);
        let numbering = Self::numbering_of(sorted.keys().cloned());
        let by_apex = sorted.keys().cloned().zip(0..NO_ZONE).collect();
        let list = sorted.into_values().take(Self::COUNT_MAX).collect();
        Self { list, by_apex: Arc::new(by_apex), depth, numbering }
    }

    /// A mark of the numbers that the zones have. With the same mark the same number is the same apex, whatever else
    /// of the zones has changed; so what names zones by number can tell whether it is about these.
    pub fn numbering(&self) -> u64 {
        self.numbering
    }

    /// [`Zones::numbering`] of zones with these apexes, numbered from 0.
    pub fn numbering_of(apexes: impl IntoIterator<Item = NameKey>) -> u64 {
        // No secret and no checksum: apexes are the operator's, and two sets of them are only to differ.
        let mix = |sum: u64, value: u64| (sum.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        apexes.into_iter().fold(0, |sum, apex| {
            let sum = apex.as_ref().iter().fold(sum, |sum, &byte| mix(sum, u64::from(byte)));
            mix(sum, 0x100)
        })
    }

    /// Every zone.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Zone>> {
        self.list.iter()
    }

    /// The zone with exactly that apex.
    pub fn with_apex(&self, apex: &DomainName) -> Option<&Arc<Zone>> {
        self.at(*self.by_apex.get(NameKey::from(apex).as_ref())?)
    }

    /// The zone with the longest apex at or above the name.
    pub fn of(&self, name: &QuestionName) -> Option<&Zone> {
        self.above(name, name.label_count())
    }

    /// The zone that a question is answered from. DS stands at the parent side of a cut (RFC 4035 §3.1.4.1), so
    /// at an apex the zone above is taken if it is served here too.
    pub fn for_question(&self, name: &QuestionName, qtype: u16) -> Option<&Zone> {
        let zone = self.of(name)?;
        let labels = name.label_count();
        if qtype == rdata::DS && labels > 0 && zone.apex_labels() == labels {
            return self.above(name, labels - 1).or(Some(zone));
        }
        Some(zone)
    }

    /// The number of [`Zones::for_question`]'s zone, as slots name it.
    pub fn number_for_question(&self, name: &QuestionName, qtype: u16) -> Option<u16> {
        let zone = self.for_question(name, qtype)?;
        self.by_apex.get(name.ancestor_key(zone.apex_labels())).copied()
    }

    /// The zone with that index, as slots name it.
    pub fn at(&self, index: u16) -> Option<&Arc<Zone>> {
        self.list.get(usize::from(index))
    }

    /// The index of the zone that a name belongs to.
    pub fn find_of(&self, name: &DomainName) -> Option<u16> {
        let name = QuestionName::from(name);
        self.of_any(&name, name.label_count()).map(|(index, _)| index)
    }

    /// The index of the zone with exactly that apex.
    pub fn find(&self, apex: &DomainName) -> Option<u16> {
        self.by_apex.get(&NameKey::from(apex)).copied()
    }

    /// Whether these are the very same zones, none of them changed.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.list, &other.list)
    }

    fn index_of(&self, name: &QuestionName) -> u16 {
        let index = self.of_any(name, name.label_count()).map(|(index, _)| index);
        index.unwrap_or(NO_ZONE)
    }

    /// With one zone in place of another of the same name.
    fn replace(&mut self, index: u16, zone: Arc<Zone>) {
        let mut list = self.list.to_vec();
        if let Some(place) = list.get_mut(usize::from(index)) {
            *place = zone;
        }
        self.list = list.into();
    }

    fn shapes(&self) -> Vec<ZoneShape> {
        let shape = |zone: &Arc<Zone>| {
            let apex = QuestionName::from(zone.apex());
            let above = apex.label_count().checked_sub(1);
            let outer = above.and_then(|labels| Some(self.of_any(&apex, labels)?.0));
            ZoneShape { apex_labels: zone.apex_labels(), outer }
        };
        self.list.iter().map(shape).collect()
    }

    /// Marks the names of static records. Those in a zone of their own that is served too are never looked at.
    fn add_static<'a>(
        &self,
        edit: &mut Edit,
        zone: &Zone,
        index: u16,
        owners: impl Iterator<Item = &'a DomainName>,
    ) {
        for owner in owners {
            let name = QuestionName::from(owner);
            if self.index_of(&name) != index {
                continue;
            }
            let below_cut = zone.cut(&name).is_some();
            let kinds = if below_cut { Kinds::STATIC.with(Kinds::BELOW_CUT) } else { Kinds::STATIC };
            edit.set_kinds(owner.as_wire(), index, kinds, Kinds::default());
        }
    }

    fn above(&self, name: &QuestionName, labels_max: usize) -> Option<&Zone> {
        self.of_any(name, labels_max).map(|(_, zone)| &**zone)
    }

    fn of_any(&self, name: &QuestionName, labels_max: usize) -> Option<(u16, &Arc<Zone>)> {
        let index = (0..=labels_max.min(self.depth))
            .rev()
            .find_map(|labels| self.by_apex.get(name.ancestor_key(labels)).copied())?;
        Some((index, self.at(index)?))
    }
}

/// Everything that questions are answered from, at one generation. Never changed once it is published.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Rises with each published view.
    pub generation: u64,
    zones: Zones,
    names: NameTable,
    monitors: Acl,
}

impl View {
    /// A view of these zones and services. `monitors` may ask for `_vmstate`.
    pub fn new(
        generation: u64,
        zones: Zones,
        services: impl IntoIterator<Item = Arc<ServiceView>>,
        monitors: impl Into<Acl>,
    ) -> Self {
        Self::seeded(0, generation, zones, services, monitors)
    }

    /// As [`View::new`], with a secret seed of the name table, so that nobody who may add names can choose them to
    /// fall into one page. Views that are made from this one keep it.
    pub fn seeded(
        seed: u64,
        generation: u64,
        zones: Zones,
        services: impl IntoIterator<Item = Arc<ServiceView>>,
        monitors: impl Into<Acl>,
    ) -> Self {
        let services: Vec<Arc<ServiceView>> = services.into_iter().collect();
        let mut edit = NameTable::new(seed).edit(zones.shapes());
        edit.reserve(services.len() + zones.iter().map(|zone| zone.nodes().count()).sum::<usize>());
        // Apexes first, so that each is known by its own zone and not by a name in the zone around it.
        for (zone, index) in zones.iter().zip(0..NO_ZONE) {
            edit.set_kinds(zone.apex().as_wire(), index, Kinds::APEX, Kinds::default());
        }
        for (zone, index) in zones.iter().zip(0..NO_ZONE) {
            zones.add_static(&mut edit, zone, index, zone.nodes().map(Node::owner));
        }
        let mut view = Self { generation, zones, names: NameTable::default(), monitors: monitors.into() };
        for service in services {
            view.put_service(&mut edit, service);
        }
        view.names = edit.finish();
        view
    }

    /// Who may ask for `_vmstate` unless something else is configured: this host.
    pub fn default_monitors() -> Vec<Network> {
        vec![Network::LOOPBACK4, Network::LOOPBACK6]
    }

    /// This view with some services changed or, where there is `None`, gone. Shares everything else.
    #[must_use]
    pub fn with(
        &self,
        generation: u64,
        changes: impl IntoIterator<Item = (DomainName, Option<Arc<ServiceView>>)>,
    ) -> Self {
        let mut next = Self { generation, ..self.clone() };
        let mut edit = self.names.edit(self.zones.shapes());
        for (name, service) in changes {
            match service {
                Some(service) => next.put_service(&mut edit, service),
                None => {
                    let zone = self.zones.index_of(&QuestionName::from(&name));
                    edit.set_service(name.as_wire(), zone, None);
                }
            }
        }
        next.names = edit.finish();
        next
    }

    /// This view with others who may ask for `_vmstate`.
    #[must_use]
    pub(super) fn with_monitors(&self, generation: u64, monitors: Acl) -> Self {
        Self { generation, monitors, ..self.clone() }
    }

    /// This view with another zone of the same name at that index; no names but these have come, gone, or been
    /// delegated or not. Costs what these names cost, and a walk over all names if a delegation came or went.
    #[must_use]
    pub(super) fn with_zone_at(&self, index: u16, zone: Arc<Zone>, names: &BTreeSet<DomainName>) -> Self {
        let Some(old) = self.zones.at(index) else { return self.clone() };
        let mut next = self.clone();
        next.zones.replace(index, Arc::clone(&zone));
        let mut edit = self.names.edit(self.zones.shapes());
        let new = names.iter().filter(|name| old.node(name).is_none() && zone.node(name).is_some());
        next.zones.add_static(&mut edit, &zone, index, new);
        let own = |owner: &&DomainName| self.zones.index_of(&QuestionName::from(*owner)) == index;
        let gone = names.iter().filter(|name| old.node(name).is_some() && zone.node(name).is_none());
        for gone in gone.filter(own) {
            let marks = Kinds::STATIC.with(Kinds::BELOW_CUT);
            edit.set_kinds(gone.as_wire(), index, Kinds::default(), marks);
        }
        let moved: Vec<_> = names.iter().filter(|name| old.is_cut(name) != zone.is_cut(name)).collect();
        let marked = Kinds::STATIC.with(Kinds::SERVICE);
        let slots = self.names.iter().filter(|slot| !moved.is_empty() && slot.zone() == index);
        for slot in slots.filter(|slot| slot.kinds().any_of(marked)) {
            let below = |cut: &&DomainName| slot.name().ends_with(cut.as_wire());
            let (true, Ok(name)) = (moved.iter().any(below), QuestionName::from_wire(slot.name())) else {
                continue;
            };
            // One that has gone in between is not made again.
            if edit.get(slot.name()).is_some_and(|now| now.kinds().any_of(marked)) {
                let mark = Kinds::BELOW_CUT;
                let (add, remove) = if zone.cut(&name).is_some() {
                    (mark, Kinds::default())
                } else {
                    (Kinds::default(), mark)
                };
                edit.set_kinds(slot.name(), index, add, remove);
            }
        }
        next.names = edit.finish();
        next
    }

    /// Puts a zone in place of another that has the same name and the same static names.
    pub(super) fn replace_zone(&mut self, index: u16, zone: Arc<Zone>) {
        self.zones.replace(index, zone);
    }

    fn put_service(&self, edit: &mut Edit, service: Arc<ServiceView>) {
        let name = service.name.clone();
        let question = QuestionName::from(&name);
        let index = self.zones.index_of(&question);
        let below_cut = self.zones.at(index).is_some_and(|zone| zone.cut(&question).is_some());
        edit.set_service(name.as_wire(), index, Some(service));
        if below_cut {
            edit.set_kinds(name.as_wire(), index, Kinds::BELOW_CUT, Kinds::default());
        }
    }

    /// The zones.
    pub fn zones(&self) -> &Zones {
        &self.zones
    }

    /// Every name that exists.
    pub fn names(&self) -> &NameTable {
        &self.names
    }

    /// Every service, in no useful order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceView>> {
        self.names.iter().filter_map(Slot::service)
    }

    /// The service of that name.
    pub fn service(&self, name: &DomainName) -> Option<&Arc<ServiceView>> {
        self.names.find(name.as_wire())?.service()
    }

    /// The service with that name in wire format.
    pub(crate) fn service_at(&self, wire: &[u8]) -> Option<&ServiceView> {
        self.names.find(wire)?.service().map(|service| &**service)
    }

    /// Whether the name exists: something stands there or below.
    pub(crate) fn has_name(&self, wire: &[u8]) -> bool {
        self.names.find(wire).is_some()
    }

    /// Whether that asker may ask for `_vmstate`.
    pub fn is_monitor(&self, asker: Asker<'_>) -> bool {
        self.monitors.allows(asker)
    }
}
