//! Serials that may be published: only those up to a ceiling that is durable, so that no serial ever stands for two
//! contents, whenever the daemon is killed.
//!
//! ```text
//!   start    serial = the newer of (zone file's serial, ceiling + 1);  ceiling = serial + STEP, durable
//!   publish  serial + 1 ≤ ceiling;  in the second half of the step the next ceiling is written beside
//! ```
//!
//! "Newer" is RFC 1982's: a serial in a zone file that is not newer than what was published counts for nothing, and
//! each start takes a step of serials, of which there are four thousand million. The history of differences is lost
//! with the process, so secondaries transfer in full once after a start.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};

use reveille_core::answer::{Zone, Zones, is_newer_serial, serial_after};
use reveille_core::model::DomainName;
use reveille_store::{Change, StateDatabase, WriteError};

/// Serials that one write makes usable.
const STEP: u32 = 1_000;

/// The ceilings of all zones.
pub struct Serials {
    store: Arc<dyn StateDatabase>,
    zones: BTreeMap<DomainName, Arc<Ceiling>>,
    /// Of zones that are not served now.
    left: BTreeMap<DomainName, u32>,
}

/// Zones that are to take the place of others, and what has to be durable before they may.
pub struct PlannedSerials {
    /// The zones; those that were not served have their first serial.
    pub zones: Vec<Zone>,
    /// To be written before [`Serials::take`].
    pub changes: Vec<Change>,
    ceilings: BTreeMap<DomainName, Arc<Ceiling>>,
}

/// One zone's.
struct Ceiling {
    /// Durable.
    serial: AtomicU32,
    /// A higher one is being written.
    rising: AtomicBool,
}

impl Serials {
    /// Gives each zone its first serial, given the ceilings of the last run. When it returns, the serials up to the
    /// new ceilings may be published.
    ///
    /// # Errors
    /// If they could not be made durable.
    pub async fn begin(
        store: Arc<impl StateDatabase + 'static>,
        last: &BTreeMap<DomainName, u32>,
        zones: Vec<Zone>,
    ) -> Result<(Self, Vec<Zone>), WriteError> {
        let first = |zone: Zone| {
            let serial = first_serial(zone.serial(), last.get(zone.apex()).copied());
            zone.with_serial(serial)
        };
        let zones: Vec<Zone> = zones.into_iter().map(first).collect();
        let rise = |zone: &Zone| (zone.apex().clone(), zone.serial().wrapping_add(STEP));
        let risen: BTreeMap<DomainName, u32> = zones.iter().map(rise).collect();
        let put =
            |(apex, &ceiling): (&DomainName, &u32)| Change::PutSerialCeiling { apex: apex.clone(), ceiling };
        store.write(risen.iter().map(put).collect()).await?;
        let left = last.iter().filter(|(apex, _)| !risen.contains_key(*apex));
        let left = left.map(|(apex, &ceiling)| (apex.clone(), ceiling)).collect();
        let ceilings = risen.into_iter().map(|(apex, serial)| (apex, Ceiling::at(serial)));
        Ok((Self { store, zones: ceilings.collect(), left }, zones))
    }

    /// What is needed for these zones to take the place of those that are served.
    pub fn plan(&self, served: &Zones, zones: Vec<Zone>) -> PlannedSerials {
        let mut planned = PlannedSerials {
            zones: Vec::with_capacity(zones.len()),
            changes: Vec::new(),
            ceilings: BTreeMap::new(),
        };
        for zone in zones {
            let apex = zone.apex().clone();
            let known = served.with_apex(&apex).zip(self.zones.get(&apex));
            let (zone, serial) = match known {
                Some((before, _)) => {
                    let serial = zone.serial_in_place_of(before);
                    (zone, serial)
                }
                None => {
                    let serial = first_serial(zone.serial(), self.left.get(&apex).copied());
                    (zone.with_serial(serial), serial)
                }
            };
            planned.zones.push(zone);
            let enough = known.filter(|(_, ceiling)| {
                is_newer_serial(ceiling.serial.load(Acquire), serial.wrapping_add(STEP / 2))
            });
            if let Some((_, ceiling)) = enough {
                planned.ceilings.insert(apex, Arc::clone(ceiling));
                continue;
            }
            let ceiling = serial.wrapping_add(STEP);
            planned.changes.push(Change::PutSerialCeiling { apex: apex.clone(), ceiling });
            planned.ceilings.insert(apex, Ceiling::at(ceiling));
        }
        planned
    }

    /// Goes by what was planned, now that it is durable. Gives the zones that are to be published.
    pub fn take(&mut self, planned: PlannedSerials) -> Vec<Zone> {
        let before = std::mem::replace(&mut self.zones, planned.ceilings);
        self.left.retain(|apex, _| !self.zones.contains_key(apex));
        let gone = before.into_iter().filter(|(apex, _)| !self.zones.contains_key(apex));
        self.left.extend(gone.map(|(apex, ceiling)| (apex, ceiling.serial.load(Acquire))));
        planned.zones
    }

    /// The ceilings of these zones, to be written once more; and the zones whose next one is being written, after which
    /// that of now must not be. A zone that was never served has none: one that is found for it only makes its first
    /// serial a later one.
    pub fn durable_ceilings(&self, apexes: &[DomainName]) -> (Vec<Change>, Vec<DomainName>) {
        let (mut ceilings, mut rising) = (Vec::new(), Vec::new());
        for apex in apexes {
            let served = self.zones.get(apex);
            if served.is_some_and(|ceiling| ceiling.rising.load(Acquire)) {
                rising.push(apex.clone());
                continue;
            }
            let ceiling = served.map(|ceiling| ceiling.serial.load(Acquire)).or(self.left.get(apex).copied());
            ceilings.extend(ceiling.map(|ceiling| Change::PutSerialCeiling { apex: apex.clone(), ceiling }));
        }
        (ceilings, rising)
    }

    /// Whether the zone may be published with the serial after its own. If not, it may soon: a higher ceiling is
    /// being written. Must be called inside a tokio runtime.
    pub fn may_advance(&self, zone: &Zone) -> bool {
        let Some(ceiling) = self.zones.get(zone.apex()) else { return false };
        let durable = ceiling.serial.load(Acquire);
        let enough = is_newer_serial(durable, zone.serial().wrapping_add(STEP / 2));
        if !enough && !ceiling.rising.swap(true, AcqRel) {
            self.raise(zone.apex(), ceiling, zone.serial().wrapping_add(STEP));
        }
        let next = serial_after(zone.serial());
        next == durable || is_newer_serial(durable, next)
    }

    fn raise(&self, apex: &DomainName, ceiling: &Arc<Ceiling>, to: u32) {
        let ack = self.store.write(vec![Change::PutSerialCeiling { apex: apex.clone(), ceiling: to }]);
        let ceiling = Arc::clone(ceiling);
        tokio::spawn(async move {
            match ack.await {
                Ok(()) => ceiling.serial.store(to, Release),
                // The next publication tries again.
                Err(error) => tracing::error!(%error, "no new serials for a zone"),
            }
            ceiling.rising.store(false, Release);
        });
    }
}

impl Ceiling {
    fn at(serial: u32) -> Arc<Self> {
        Arc::new(Self { serial: AtomicU32::new(serial), rising: AtomicBool::new(false) })
    }
}

/// The serial with which a zone begins, given that of its file and the ceiling of the last run.
fn first_serial(of_file: u32, ceiling: Option<u32>) -> u32 {
    match ceiling.map(serial_after) {
        Some(unused) if !is_newer_serial(of_file, unused) => unused,
        Some(_) | None => of_file,
    }
}

#[cfg(test)]
mod tests {
    use reveille_store::Store;
    use std::net::IpAddr;

    use reveille_core::answer::ZoneDefaults;

    use super::*;

    #[test]
    fn a_start_takes_a_serial_that_nobody_has_seen() {
        for (of_file, ceiling, first) in [
            (7, None, 7),
            (7, Some(1_007), 1_008),
            (2_000, Some(1_007), 2_000),
            (1_007, Some(1_007), 1_008),
            (1_008, Some(1_007), 1_008),
            // Around the circle.
            (1, Some(u32::MAX), 1),
            (5, Some(u32::MAX - 5), 5),
            (u32::MAX, Some(3), 4),
            // Half of it apart: nobody can tell which is newer, so it is what was not used.
            (1 << 31, Some(u32::MAX), 1 << 31),
            ((1 << 31) + 8, Some(7), 8),
        ] {
            assert_eq!(first_serial(of_file, ceiling), first, "{of_file} {ceiling:?}");
        }
    }

    fn zone(serial: u32) -> Zone {
        let apex: DomainName = "vm.test".parse().unwrap();
        let ns = (apex.prepend("ns1").unwrap(), Vec::<IpAddr>::new());
        let hostmaster = apex.clone();
        ZoneDefaults { apex, name_servers: vec![ns], hostmaster, serial, ttl: 60, negative_ttl: 60 }
            .zone()
            .unwrap()
    }

    #[tokio::test]
    async fn serials_only_rise_and_never_above_what_is_durable() {
        let dir = tempfile::tempdir().unwrap();
        let mut published = Vec::new();
        for _ in 0..4 {
            let (store, loaded) = Store::open(dir.path()).unwrap();
            let store = Arc::new(store);
            let (serials, zones) =
                Serials::begin(Arc::clone(&store), &loaded.serial_ceilings, vec![zone(1)]).await.unwrap();
            let mut now = zones.into_iter().next().unwrap();
            published.push(now.serial());
            for _ in 0..3 * STEP {
                while !serials.may_advance(&now) {
                    tokio::task::yield_now().await;
                }
                let serial = serial_after(now.serial());
                now = now.with_serial(serial);
                published.push(serial);
            }
            // Killed: the ceiling that is found again is above everything that was published.
            drop(serials);
            drop(Arc::into_inner(store));
            let (_, loaded) = loop {
                // A write that was under way holds the store for a moment.
                match Store::open(dir.path()) {
                    Ok(opened) => break opened,
                    Err(_) => tokio::task::yield_now().await,
                }
            };
            let ceiling = loaded.serial_ceilings[now.apex()];
            assert!(now.serial() == ceiling || is_newer_serial(ceiling, now.serial()));
        }
        assert!(published.is_sorted() && published.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[tokio::test]
    async fn a_zone_that_comes_back_begins_above_what_it_had() {
        let dir = tempfile::tempdir().unwrap();
        let (store, loaded) = Store::open(dir.path()).unwrap();
        let store = Arc::new(store);
        let (mut serials, zones) =
            Serials::begin(Arc::clone(&store), &loaded.serial_ceilings, vec![zone(1)]).await.unwrap();
        let served = Zones::new(zones.into_iter().map(Arc::new));
        // Goes on without a write while there is room, and with one where the file has a serial far ahead.
        let same = serials.plan(&served, vec![zone(1)]);
        assert_eq!((same.zones[0].serial(), same.changes.len()), (1, 0));
        let ahead = serials.plan(&served, vec![zone(50_000)]);
        assert!(matches!(&ahead.changes[..], [Change::PutSerialCeiling { ceiling: 51_000, .. }]));
        serials.take(ahead);
        serials.take(serials.plan(&served, vec![]));
        let back = serials.plan(&Zones::default(), vec![zone(1)]);
        assert_eq!(back.zones[0].serial(), 51_001);
        // After a kill too, whether the zone was served then or not.
        drop(serials);
        let last = BTreeMap::from([(zone(1).apex().clone(), 51_000)]);
        let (serials, _) = Serials::begin(store, &last, vec![]).await.unwrap();
        assert_eq!(serials.plan(&Zones::default(), vec![zone(1)]).zones[0].serial(), 51_001);
    }

    #[tokio::test]
    async fn without_a_disk_the_serials_end() {
        let dir = tempfile::tempdir().unwrap();
        let (store, loaded) = Store::open(dir.path()).unwrap();
        let store = Arc::new(store);
        let (mut serials, zones) =
            Serials::begin(store, &loaded.serial_ceilings, vec![zone(1)]).await.unwrap();
        // Nothing is ever written again.
        for ceiling in serials.zones.values_mut() {
            ceiling.rising.store(true, Release);
        }
        let mut now = zones.into_iter().next().unwrap();
        let mut published = 0;
        while serials.may_advance(&now) {
            let serial = serial_after(now.serial());
            now = now.with_serial(serial);
            published += 1;
        }
        assert_eq!((published, now.serial()), (STEP, 1 + STEP));
    }
}
