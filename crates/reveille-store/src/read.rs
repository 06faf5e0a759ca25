//! Reading history and tokens while the daemon runs. A reader sees the last commit and does not wait for the
//! writer; it may read from the disk, so an async task that reads a lot lets a blocking thread do it.

use redb::{Database, ReadableDatabase, ReadableTable};
use reveille_core::model::{DomainName, WakeRecord};
use serde::de::DeserializeOwned;

use crate::Store;
use crate::change::{
    StoredDecision, StoredHealth, StoredService, StoredStaticSet, StoredToken, TokenHash, TokenRow,
};
use crate::load::{decode, decode_static_set};
use crate::schema::{DECISIONS, HEALTH, History, SERVICES, STATIC_SETS, TOKENS, WAKES};

/// An entry of a service's history with its sequence number, which rises by one from entry to entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequenced<T> {
    /// Its number; give it as `before` to read on towards older entries.
    pub seq: u64,
    /// The entry.
    pub entry: T,
}

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be opened again after an I/O error; the next write tries it again.
    #[error("the state database is closed after an I/O error")]
    Closed,
    /// A row is not what this Reveille writes.
    #[error("the state database has a row in `{table}` that cannot be read: {source}")]
    Row {
        /// The table.
        table: &'static str,
        /// What does not fit.
        source: serde_json::Error,
    },
    /// The file cannot be read.
    #[error("the state database cannot be read: {0}")]
    Storage(Box<redb::Error>),
}

impl<E: Into<redb::Error>> From<E> for ReadError {
    fn from(error: E) -> Self {
        Self::Storage(Box::new(error.into()))
    }
}

impl Store {
    /// The newest wakes of a service, newest first: at most `limit`, and only those with a number below `before`.
    ///
    /// # Errors
    /// If the file cannot be read. A service without history has none.
    pub fn wakes(
        &self,
        service: &DomainName,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Sequenced<WakeRecord>>, ReadError> {
        self.history(WAKES, service, before, limit)
    }

    /// The newest decisions about a service, newest first, as [`Store::wakes`].
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn decisions(
        &self,
        service: &DomainName,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Sequenced<StoredDecision>>, ReadError> {
        self.history(DECISIONS, service, before, limit)
    }

    /// The newest verdicts on the health of a service's instances, newest first, as [`Store::wakes`].
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn health(
        &self,
        service: &DomainName,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Sequenced<StoredHealth>>, ReadError> {
        self.history(HEALTH, service, before, limit)
    }

    /// All tokens.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn tokens(&self) -> Result<Vec<StoredToken>, ReadError> {
        self.read(|database| {
            let mut tokens = Vec::new();
            for row in database.begin_read()?.open_table(TOKENS)?.iter()? {
                let (hash, value) = row?;
                match decode_token(*hash.value(), value.value()) {
                    Ok(token) => tokens.push(token),
                    Err(error) => tracing::warn!(%error, "a token's row cannot be read; it opens nothing"),
                }
            }
            Ok(tokens)
        })
    }

    /// What dynamic updates have changed, by zone, owner and type.
    ///
    /// # Errors
    /// If the file cannot be read, or has a row that this Reveille does not write.
    pub fn static_sets(&self) -> Result<Vec<StoredStaticSet>, ReadError> {
        self.read(|database| {
            let mut sets = Vec::new();
            for row in database.begin_read()?.open_table(STATIC_SETS)?.iter()? {
                let (key, value) = row?;
                let (zone, owner, rtype) = key.value();
                let set = decode_static_set(zone, owner, rtype, value.value());
                sets.push(set.map_err(|source| ReadError::Row { table: "static_sets", source })?);
            }
            Ok(sets)
        })
    }

    /// The row of one service.
    ///
    /// # Errors
    /// If the file cannot be read, or the row is none that this Reveille writes.
    pub fn service(&self, name: &DomainName) -> Result<Option<StoredService>, ReadError> {
        self.read(|database| {
            let row = database.begin_read()?.open_table(SERVICES)?.get(name.to_string().as_str())?;
            let service = row.map(|row| decode(row.value())).transpose();
            service.map_err(|source| ReadError::Row { table: "services", source })
        })
    }

    fn history<T: DeserializeOwned>(
        &self,
        table: History,
        service: &DomainName,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Sequenced<T>>, ReadError> {
        let name = service.to_string();
        self.read(|database| {
            let rows = database.begin_read()?.open_table(table)?;
            let mut entries = Vec::new();
            let range = (name.as_str(), 0)..(name.as_str(), before.unwrap_or(u64::MAX));
            for row in rows.range(range)?.rev().take(limit) {
                let (key, value) = row?;
                let (_, seq) = key.value();
                match decode(value.value()) {
                    Ok(entry) => entries.push(Sequenced { seq, entry }),
                    // History explains; an entry that a newer Reveille wrote differently must not hide the rest.
                    Err(error) => {
                        tracing::warn!(service = %name, seq, %error, "an entry of the history cannot be read")
                    }
                }
            }
            Ok(entries)
        })
    }

    fn read<T>(&self, look: impl FnOnce(&Database) -> Result<T, ReadError>) -> Result<T, ReadError> {
        let slot = self.shared.database();
        look(slot.as_ref().ok_or(ReadError::Closed)?)
    }
}

pub(crate) fn decode_token(hash: [u8; 32], row: &[u8]) -> Result<StoredToken, serde_json::Error> {
    let TokenRow { name, scope, created_at, expires } = decode(row)?;
    Ok(StoredToken { hash: TokenHash(hash), name, scope, created_at, expires })
}
