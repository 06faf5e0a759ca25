//! Other zones in place of those of a view: what a reload brings. Secondaries follow by differences, as they do when
//! one record changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::acl::Acl;
use super::super::view::{View, Zones};
use super::super::zone::{Zone, is_newer_serial, serial_after};
use super::{Record, Touched};
use crate::model::DomainName;

impl Zone {
    /// The serial with which these records take the place of another zone of the same name, if they differ from its:
    /// its next one, or the one that they have themselves if that is newer.
    pub fn serial_in_place_of(&self, before: &Self) -> u32 {
        if is_newer_serial(self.serial(), before.serial()) {
            self.serial()
        } else {
            serial_after(before.serial())
        }
    }
}

impl View {
    /// This view with exactly these zones, and others who may ask for `_vmstate`. A zone that was served before goes
    /// on at its serial if its content is the same, and else has a newer one ([`Zone::serial_in_place_of`]) and the
    /// difference in its history; a newer serial of its own counts as a change. A zone that was not served has the
    /// serial that it comes with. Signers are those of the zones that come.
    ///
    /// Costs a walk over the static names of every zone, and over all names if zones come or go.
    #[must_use]
    pub fn rezoned(
        &self,
        generation: u64,
        zones: impl IntoIterator<Item = Arc<Zone>>,
        monitors: impl Into<Acl>,
    ) -> Self {
        let zones = Zones::new(zones);
        let wanted: Vec<(DomainName, u32)> =
            zones.iter().map(|zone| (zone.apex().clone(), zone.serial())).collect();
        let (mut next, mut touched) = if self.has_apexes_of(&zones) {
            self.with_zones_exchanged(generation, &zones, monitors.into())
        } else {
            self.with_zones_anew(generation, &zones, monitors.into())
        };
        for (apex, own_serial) in wanted {
            let places = next.zones().find(&apex).zip(self.zones().find(&apex));
            let Some((now, was)) = places else { continue };
            let (Some(zone), Some(before)) = (next.zones().at(now), self.zones().at(was)) else { continue };
            let names = touched.remove(&now).unwrap_or_default();
            let (removed, added) = self.differences(was, &next, now, &names);
            let newer = is_newer_serial(own_serial, before.serial());
            if removed.is_empty() && added.is_empty() && !newer && zone.has_soa_of(before) {
                continue;
            }
            let serial = if newer { own_serial } else { serial_after(before.serial()) };
            // What the SOA was before is what secondaries have.
            let zone = Arc::new(zone.advanced_from(before, serial, removed, added));
            next.replace_zone(now, zone);
        }
        next
    }

    fn has_apexes_of(&self, zones: &Zones) -> bool {
        let (mine, theirs) = (self.zones().iter(), zones.iter());
        mine.map(|zone| zone.apex()).eq(theirs.map(|zone| zone.apex()))
    }

    /// With other records in the same zones; and the names that may have another content.
    fn with_zones_exchanged(&self, generation: u64, zones: &Zones, monitors: Acl) -> (Self, Touched) {
        let mut next = self.with_monitors(generation, monitors);
        let mut touched = Touched::default();
        for zone in zones.iter() {
            let Some(index) = self.zones().find(zone.apex()) else { continue };
            let Some(before) = self.zones().at(index) else { continue };
            let mut names = zone.names_that_differ(before);
            if names.is_empty() && zone.is_in_place(before) {
                continue;
            }
            next = next.with_zone_at(index, Arc::new(zone.in_place_of(before)), &names);
            // A delegation hides the services below it.
            let moved: Vec<DomainName> =
                names.iter().filter(|name| zone.is_cut(name) != before.is_cut(name)).cloned().collect();
            let below = self.services().filter(|_| !moved.is_empty()).map(|service| &service.name);
            names.extend(below.filter(|name| moved.iter().any(|cut| name.is_at_or_below(cut))).cloned());
            touched.insert(index, names);
        }
        (next, touched)
    }

    /// With zones that come and go; and the names that may have another content.
    fn with_zones_anew(&self, generation: u64, zones: &Zones, monitors: Acl) -> (Self, Touched) {
        let (mut touched, mut moved_cuts) = (Touched::default(), BTreeSet::new());
        let continued = zones.iter().zip(0..).map(|(zone, index)| {
            let Some(before) = self.zones().with_apex(zone.apex()) else { return Arc::clone(zone) };
            let names = zone.names_that_differ(before);
            moved_cuts.extend(names.iter().filter(|name| zone.is_cut(name) != before.is_cut(name)).cloned());
            touched.insert(index, names);
            Arc::new(zone.in_place_of(before))
        });
        let continued: Zones = Zones::new(continued.collect::<Vec<_>>());
        // Where a zone of before is now; none: it is not served any more.
        let places: Vec<Option<u16>> = self.zones().iter().map(|zone| continued.find(zone.apex())).collect();
        for service in self.services() {
            let was = self.zones().find_of(&service.name);
            let was = was.and_then(|index| places.get(usize::from(index)).copied().flatten());
            let is = continued.find_of(&service.name);
            let is_hidden_otherwise = || moved_cuts.iter().any(|cut| service.name.is_at_or_below(cut));
            if was == is && !is_hidden_otherwise() {
                continue;
            }
            for index in [was, is].into_iter().flatten() {
                touched.entry(index).or_default().insert(service.name.clone());
            }
        }
        let services: Vec<_> = self.services().cloned().collect();
        let next = Self::seeded(self.names().seed(), generation, continued, services, monitors);
        (next, touched)
    }

    /// What the content of a zone has less and more in another view, where it may have another index.
    pub(super) fn differences(
        &self,
        was: u16,
        next: &Self,
        now: u16,
        names: &BTreeSet<DomainName>,
    ) -> (Vec<Record>, Vec<Record>) {
        let (mut removed, mut added) = (Vec::new(), Vec::new());
        for name in names {
            let (before, after) = (self.content_at(was, name), next.content_at(now, name));
            removed.extend(before.iter().filter(|record| !after.contains(record)).cloned());
            added.extend(after.into_iter().filter(|record| !before.contains(record)));
        }
        (removed, added)
    }
}
