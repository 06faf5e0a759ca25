//! From the config file and the state database to a fleet that agrees with the host.
//!
//! Services of the config file and of the API are brought together, each keeps the address that it was given
//! first, and what the driver finds of each instance is reconciled with its row. What belongs to nobody any more
//! is ended.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reveille_core::model::{
    DomainName, Event, Fleet, HostLimits, Instance, InstanceId, Phase, Reconciled, Remains, Service,
    ServiceSpec, Timestamp, reconcile,
};
use reveille_store::{Change, Loaded, Origin, StateDatabase, StoredService};
use reveille_vm::driver::{Driver, Launch, Link};

use super::images::Images;
use super::wiring::Wiring;
use crate::config::Pools;

/// Which services there are beside their rows: addresses given out, and who declared what.
#[derive(Debug)]
pub struct Services {
    pools: Pools,
    taken: BTreeSet<Ipv4Addr>,
    taken6: BTreeMap<Ipv6Addr, Ipv4Addr>,
    next_offset: u32,
    owners: BTreeMap<InstanceId, (DomainName, Ipv4Addr)>,
}

/// Why a service cannot have an address.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Another service has it.
    #[error("the address {0} belongs to another service")]
    Taken(IpAddr),
    /// The pool is used up.
    #[error("no address is left in relay.pool; make it larger or remove services")]
    PoolEmpty,
}

impl Services {
    /// No services, with addresses from `pools`.
    pub fn new(pools: Pools) -> Self {
        let (taken, taken6, owners) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
        Self { pools, taken, taken6, next_offset: 1, owners }
    }

    /// Gives the service the address that its spec asks for, or the next free one of the pool; and its spec the IPv6
    /// address that comes with it, if it names none.
    ///
    /// # Errors
    /// If there is none for it.
    pub fn give_address(&mut self, spec: &mut ServiceSpec) -> Result<Ipv4Addr, AddressError> {
        let v4 = self.give_v4(spec)?;
        let Some(v6) = self.address6(spec, v4) else { return Ok(v4) };
        if *self.taken6.entry(v6).or_insert(v4) != v4 {
            self.taken.remove(&v4);
            return Err(AddressError::Taken(v6.into()));
        }
        spec.address6 = Some(v6);
        Ok(v4)
    }

    /// The IPv6 address of a service that has the IPv4 address `v4`.
    pub fn address6(&self, spec: &ServiceSpec, v4: Ipv4Addr) -> Option<Ipv6Addr> {
        self.pools.address6(spec, v4)
    }

    fn give_v4(&mut self, spec: &ServiceSpec) -> Result<Ipv4Addr, AddressError> {
        let pool = self.pools.v4;
        if let Some(address) = spec.address {
            let is_free = self.taken.insert(address);
            return if is_free { Ok(address) } else { Err(AddressError::Taken(address.into())) };
        }
        // The last address of an IPv4 network is its broadcast address; 127/8 is no exception for some tools.
        let usable = pool.size() - 1;
        for step in 0..usable {
            let offset = 1 + (self.next_offset - 1 + step) % (usable - 1).max(1);
            if let Some(address) = pool.at(offset)
                && self.taken.insert(address)
            {
                self.next_offset = offset + 1;
                return Ok(address);
            }
        }
        Err(AddressError::PoolEmpty)
    }

    /// Takes an address back that was not used after all.
    pub fn take_back(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address);
        self.taken6.retain(|_, owner| *owner != address);
    }

    /// Notes whose instance it is.
    pub fn own(&mut self, instance: InstanceId, service: DomainName, address: Ipv4Addr) {
        self.taken.insert(address);
        self.owners.insert(instance, (service, address));
    }

    /// The rows to drop with an instance that is gone.
    pub fn forgotten(&self, instance: InstanceId) -> Vec<Change> {
        let service = self.owners.get(&instance).map(|(service, _)| Change::DropService(service.clone()));
        std::iter::once(Change::DropInstance(instance)).chain(service).collect()
    }

    /// Instances that are noted here and no longer in the fleet.
    pub fn release_gone(&mut self, fleet: &Fleet) -> Vec<DomainName> {
        let gone = self.owners.extract_if(.., |id, _| fleet.instance(*id).is_none());
        let gone: Vec<_> = gone.map(|(_, owned)| owned).collect();
        for (_, address) in &gone {
            self.take_back(*address);
        }
        gone.into_iter().map(|(service, _)| service).collect()
    }
}

/// Why the state cannot be taken up.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    /// A service cannot have its address.
    #[error("service {service}: {reason}")]
    Address {
        /// The service.
        service: DomainName,
        /// Why.
        reason: AddressError,
    },
    /// The state database does not take the rows.
    #[error(transparent)]
    Store(#[from] reveille_store::WriteError),
}

/// A fleet as the rows have it, and the services' bookkeeping.
pub struct Rows {
    /// Services with their instances, not reconciled yet.
    pub entries: Vec<(Service, Instance)>,
    /// Who has which address.
    pub services: Services,
    /// Instances of services that are no more.
    pub dropped: Vec<InstanceId>,
}

/// Brings the config file's services and the stored ones together. New rows are durable when it returns.
///
/// # Errors
/// If a service cannot have an address or the rows cannot be written.
pub async fn merge(
    declared: &[ServiceSpec],
    loaded: Loaded,
    store: &dyn StateDatabase,
    pools: Pools,
    now: Timestamp,
) -> Result<Rows, StartupError> {
    let mut instances: BTreeMap<DomainName, Instance> =
        loaded.instances.into_iter().map(|row| (row.service.clone(), row)).collect();
    let mut stored: BTreeMap<DomainName, StoredService> =
        loaded.services.into_iter().map(|row| (row.spec.name.clone(), row)).collect();
    let mut wanted: Vec<(ServiceSpec, Origin)> =
        declared.iter().map(|spec| (spec.clone(), Origin::Config)).collect();
    let names: BTreeSet<DomainName> = declared.iter().map(|spec| spec.name.clone()).collect();
    let from_api = stored.values().filter(|row| row.origin == Origin::Api && !names.contains(&row.spec.name));
    wanted.extend(from_api.map(|row| (row.spec.clone(), Origin::Api)));

    let mut services = Services::new(pools);
    // Addresses that were given before come first: a new service never takes one of them.
    let kept = |spec: &ServiceSpec, stored: &BTreeMap<DomainName, StoredService>| {
        let row = stored.get(&spec.name)?;
        spec.address.is_none_or(|asked| asked == row.address).then_some(row.address)
    };
    wanted.sort_by_key(|(spec, _)| kept(spec, &stored).is_none() && spec.address.is_none());
    let (mut entries, mut changes) = (Vec::with_capacity(wanted.len()), Vec::new());
    for (mut spec, origin) in wanted {
        let fixed = kept(&spec, &stored);
        let mut asked = ServiceSpec { address: fixed.or(spec.address), ..spec.clone() };
        let address = services
            .give_address(&mut asked)
            .map_err(|reason| StartupError::Address { service: spec.name.clone(), reason })?;
        spec.address6 = asked.address6;
        let former = stored.remove(&spec.name);
        let created_at = former.as_ref().map_or(now, |row| row.created_at);
        let name = spec.name.clone();
        let mut instance = instances
            .remove(&name)
            .unwrap_or_else(|| Instance::new(store.reserve_instance_id(), name.clone(), now));
        if let Some(former) = former {
            instance.note_other_spec(&former.spec, &spec);
        }
        services.own(instance.id, name, address);
        let row = StoredService { spec: spec.clone(), address, created_at, origin };
        changes.push(Change::PutService(Box::new(row)));
        changes.push(Change::PutInstance(Box::new(instance.clone())));
        let service = Service::new(spec, address, created_at, instance.id);
        entries.push((service, instance));
    }
    let dropped = instances.values().map(|row| row.id).collect();
    changes.extend(instances.values().map(|row| Change::DropInstance(row.id)));
    changes.extend(stored.into_keys().map(Change::DropService));
    store.write(changes).await?;
    Ok(Rows { entries, services, dropped })
}

/// The fleet, and what is still to be done with some of its instances.
pub struct Found {
    /// Every service, in a phase that is not half done.
    pub fleet: Fleet,
    /// Processes to take over or to end.
    pub steps: Vec<(InstanceId, Reconciled)>,
}

/// Asks the driver what there is of every instance and makes the rows agree with it.
pub async fn find(
    entries: Vec<(Service, Instance)>,
    dropped: &[InstanceId],
    limits: HostLimits,
    driver: &dyn Driver,
    images: &dyn Images,
    wiring: &dyn Wiring,
    now: Timestamp,
) -> Found {
    let known: BTreeSet<InstanceId> = entries.iter().map(|(_, row)| row.id).collect();
    for orphan in driver.inventory().await.into_iter().filter(|id| !known.contains(id)) {
        tracing::info!(instance = %orphan, listed = dropped.contains(&orphan), "belongs to no service; ending it");
        if let Err(error) = driver.kill(orphan, Remains::Nothing).await {
            tracing::error!(instance = %orphan, %error, "cannot end an instance that belongs to no service");
        }
    }
    let (mut fleet, mut steps) = (Fleet::new(limits), Vec::new());
    for (service, row) in entries {
        let link = wiring.plug(row.id, &service.spec.name, service.address, service.spec.address6);
        let launch = launch_to_find(&service.spec, row.id, images, link).await;
        let found = driver.find(&launch, row.phase == Phase::Hibernated).await;
        tracing::debug!(service = %service.spec.name, was = %row.phase, ?found, "found");
        let id = row.id;
        let (instance, step) = reconcile(row, found, now);
        steps.push((id, step));
        let event = Event::Added { service: Box::new(service), instance: Box::new(instance) };
        if let Err(error) = fleet.apply(event, now) {
            tracing::error!(instance = %id, %error, "cannot be taken up");
        }
    }
    Found { fleet, steps }
}

/// As much of a launch as finding needs: an image that is gone does not hide a process that runs.
async fn launch_to_find(spec: &ServiceSpec, instance: InstanceId, images: &dyn Images, link: Link) -> Launch {
    let image = images.resolve(&spec.image).await.ok();
    Launch {
        instance,
        service: spec.name.clone(),
        image: image.as_ref().map_or_else(String::new, |image| image.digest.clone()),
        kernel: image.as_ref().map(|image| image.kernel.clone()).unwrap_or_default(),
        initrd: image.as_ref().map(|image| image.initrd.clone()).unwrap_or_default(),
        disk: image.and_then(|image| image.disk),
        resources: spec.resources,
        egress: spec.egress,
        link,
    }
}

#[cfg(test)]
mod tests {
    use reveille_store::Store;

    use super::*;
    use crate::config::{Network, Network6};

    fn spec(name: &str, address: Option<&str>) -> ServiceSpec {
        let address = address.map_or(String::new(), |address| format!(r#","address":"{address}""#));
        let text = format!(r#"{{"name":"{name}","image":"demo","ports":["tcp/80"]{address}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn addresses_are_given_out_once_and_the_pool_ends_in_a_sentence() {
        let mut services = Services::new(Pools::of(Network::parse_v4("127.64.0.0/30").unwrap()));
        let first = services.give_address(&mut spec("a.vm.test", None)).unwrap();
        assert_eq!(first, Ipv4Addr::new(127, 64, 0, 1));
        let taken = services.give_address(&mut spec("b.vm.test", Some("127.64.0.1")));
        assert!(matches!(taken, Err(AddressError::Taken(_))));
        assert_eq!(
            services.give_address(&mut spec("c.vm.test", None)).unwrap(),
            Ipv4Addr::new(127, 64, 0, 2)
        );
        assert!(matches!(services.give_address(&mut spec("d.vm.test", None)), Err(AddressError::PoolEmpty)));
        services.take_back(first);
        assert_eq!(services.give_address(&mut spec("d.vm.test", None)).unwrap(), first);
    }

    #[tokio::test]
    async fn a_service_keeps_its_address_and_instance_across_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let v6 = Network6::parse("fd64::/64");
        let pool = Pools { v4: Network::parse_v4("127.64.0.0/10").unwrap(), v6 };
        let now = Timestamp::from_ms(1);
        let taken_up = |declared: Vec<ServiceSpec>| {
            let dir = dir.path().to_owned();
            async move {
                let (store, loaded) = Store::open(&dir).unwrap();
                let rows = merge(&declared, loaded, &store, pool, now).await.unwrap();
                let six = |service: &Service| v6.map(|pool| pool.beside(service.address));
                assert!(rows.entries.iter().all(|(service, _)| service.spec.address6 == six(service)));
                let pairs: Vec<_> = rows
                    .entries
                    .iter()
                    .map(|(service, row)| (service.spec.name.to_string(), service.address, row.id))
                    .collect();
                (pairs, rows.dropped)
            }
        };
        let (first, _) = taken_up(vec![spec("b.vm.test", None)]).await;
        let (both, _) = taken_up(vec![spec("a.vm.test", None), spec("b.vm.test", None)]).await;
        assert!(both.contains(&first[0]), "{both:?}");
        let (left, dropped) = taken_up(vec![spec("a.vm.test", None)]).await;
        assert_eq!(left.len(), 1);
        assert_eq!(dropped, [first[0].2], "what the file no longer has is ended");
    }
}
