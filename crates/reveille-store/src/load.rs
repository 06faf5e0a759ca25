//! Reading all current state at start.

use std::collections::BTreeMap;
use std::path::PathBuf;

use redb::{ReadTransaction, ReadableDatabase, ReadableTable};
use reveille_core::model::{DomainName, Instance};
use serde::de::{DeserializeOwned, Error as _};

use crate::change::{StaticSetRow, StoredPublished, StoredService, StoredStaticSet, StoredToken, from_hex};
use crate::open::Shared;
use crate::read::decode_token;
use crate::schema::{
    INSTANCES, META, NEXT_INSTANCE_KEY, PUBLISHED, PUBLISHED_SERIALS, SERIAL_CEILINGS, SERVICES, STATIC_SETS,
    TOKENS,
};

/// The current state, as the last commit has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// All services, by name.
    pub services: Vec<StoredService>,
    /// All instances, by identity.
    pub instances: Vec<Instance>,
    /// All tokens.
    pub tokens: Vec<StoredToken>,
    /// The highest serial that each zone may have been published with.
    pub serial_ceilings: BTreeMap<DomainName, u32>,
    /// What dynamic updates have changed, by zone, owner and type.
    pub static_sets: Vec<StoredStaticSet>,
    /// What external primaries have, each with the names in their order.
    pub published: BTreeMap<String, Vec<(DomainName, StoredPublished)>>,
    /// The serials of external primaries' zones that were seen last.
    pub published_serials: BTreeMap<String, u32>,
}

/// Why the state could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A row is not what this Reveille writes.
    #[error(
        "the state database {} has a row in `{table}` that cannot be read ({key}: {source}); it was left as it \
         is: run the Reveille that wrote it, or put a copy back", path.display()
    )]
    Row {
        /// The file.
        path: PathBuf,
        /// The table.
        table: &'static str,
        /// The row's key.
        key: String,
        /// What does not fit.
        source: serde_json::Error,
    },
    /// The file cannot be read.
    #[error("the state database {} cannot be read: {source}", path.display())]
    Storage {
        /// The file.
        path: PathBuf,
        /// What redb said.
        source: Box<redb::Error>,
    },
}

/// The state, and the next free instance identity.
pub(crate) fn load(shared: &Shared) -> Result<(Loaded, u64), LoadError> {
    let slot = shared.database();
    let path = || shared.path().to_owned();
    let storage = |source: redb::Error| LoadError::Storage { path: path(), source: Box::new(source) };
    let Some(database) = slot.as_ref() else { return Err(storage(redb::Error::DatabaseClosed)) };
    let row_fault = |table, key: String| move |source| LoadError::Row { path: path(), table, key, source };
    let mut loaded = Loaded::default();

    let transaction = database.begin_read().map_err(|error| storage(error.into()))?;
    let services = transaction.open_table(SERVICES).map_err(|error| storage(error.into()))?;
    for row in services.iter().map_err(|error| storage(error.into()))? {
        let (name, value) = row.map_err(|error| storage(error.into()))?;
        loaded.services.push(decode(value.value()).map_err(row_fault("services", name.value().to_owned()))?);
    }
    let instances = transaction.open_table(INSTANCES).map_err(|error| storage(error.into()))?;
    for row in instances.iter().map_err(|error| storage(error.into()))? {
        let (id, value) = row.map_err(|error| storage(error.into()))?;
        loaded.instances.push(decode(value.value()).map_err(row_fault("instances", id.value().to_string()))?);
    }
    let tokens = transaction.open_table(TOKENS).map_err(|error| storage(error.into()))?;
    for row in tokens.iter().map_err(|error| storage(error.into()))? {
        let (hash, value) = row.map_err(|error| storage(error.into()))?;
        let token = decode_token(*hash.value(), value.value());
        loaded.tokens.push(token.map_err(row_fault("tokens", "a token".to_owned()))?);
    }
    let ceilings = transaction.open_table(SERIAL_CEILINGS).map_err(|error| storage(error.into()))?;
    for row in ceilings.iter().map_err(|error| storage(error.into()))? {
        let (apex, ceiling) = row.map_err(|error| storage(error.into()))?;
        // Only names are written there. One that is none belongs to no zone.
        if let Ok(apex) = apex.value().parse() {
            loaded.serial_ceilings.insert(apex, ceiling.value());
        }
    }
    load_static_sets(&transaction, &mut loaded, path)?;
    load_published(&transaction, &mut loaded, path)?;
    let meta = transaction.open_table(META).map_err(|error| storage(error.into()))?;
    let next =
        meta.get(NEXT_INSTANCE_KEY).map_err(|error| storage(error.into()))?.map_or(1, |next| next.value());
    Ok((loaded, next))
}

fn load_static_sets(
    transaction: &ReadTransaction,
    loaded: &mut Loaded,
    path: impl Fn() -> PathBuf,
) -> Result<(), LoadError> {
    let storage = |source: redb::Error| LoadError::Storage { path: path(), source: Box::new(source) };
    let table = transaction.open_table(STATIC_SETS).map_err(|error| storage(error.into()))?;
    for row in table.iter().map_err(|error| storage(error.into()))? {
        let (key, value) = row.map_err(|error| storage(error.into()))?;
        let (zone, owner, rtype) = key.value();
        let set = decode_static_set(zone, owner, rtype, value.value()).map_err(|source| LoadError::Row {
            path: path(),
            table: "static_sets",
            key: format!("{zone} {} {rtype}", owner.escape_ascii()),
            source,
        })?;
        loaded.static_sets.push(set);
    }
    Ok(())
}

fn load_published(
    transaction: &ReadTransaction,
    loaded: &mut Loaded,
    path: impl Fn() -> PathBuf,
) -> Result<(), LoadError> {
    let storage = |source: redb::Error| LoadError::Storage { path: path(), source: Box::new(source) };
    let table = transaction.open_table(PUBLISHED).map_err(|error| storage(error.into()))?;
    for row in table.iter().map_err(|error| storage(error.into()))? {
        let (key, value) = row.map_err(|error| storage(error.into()))?;
        let (target, name) = key.value();
        let row = name
            .parse()
            .map_err(serde_json::Error::custom)
            .and_then(|name| Ok((name, decode(value.value())?)));
        let key = || format!("{target} {name}");
        let row =
            row.map_err(|source| LoadError::Row { path: path(), table: "published", key: key(), source })?;
        loaded.published.entry(target.to_owned()).or_default().push(row);
    }
    let serials = transaction.open_table(PUBLISHED_SERIALS).map_err(|error| storage(error.into()))?;
    for row in serials.iter().map_err(|error| storage(error.into()))? {
        let (target, serial) = row.map_err(|error| storage(error.into()))?;
        loaded.published_serials.insert(target.value().to_owned(), serial.value());
    }
    Ok(())
}

pub(crate) fn decode_static_set(
    zone: &str,
    owner: &[u8],
    rtype: u16,
    row: &[u8],
) -> Result<StoredStaticSet, serde_json::Error> {
    let StaticSetRow { ttl, added, removed } = decode(row)?;
    let bytes = |all: Vec<String>| {
        let bytes = all.iter().map(|text| from_hex(text)).collect::<Option<Vec<_>>>();
        bytes.ok_or_else(|| serde_json::Error::custom("data is not in hexadecimal digits"))
    };
    Ok(StoredStaticSet {
        zone: zone.parse().map_err(serde_json::Error::custom)?,
        owner: DomainName::from_wire(owner).map_err(serde_json::Error::custom)?,
        rtype,
        ttl,
        added: bytes(added)?,
        removed: bytes(removed)?,
    })
}

pub(crate) fn decode<T: DeserializeOwned>(row: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(row)
}
