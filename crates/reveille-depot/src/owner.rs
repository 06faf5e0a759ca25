//! Who may run a service and write versions of it.
//!
//! `services/<name>/owner` holds a host, an epoch and a random number of the claim. Taking a service over is a
//! conditional put with the next epoch: of two hosts that try, one finds that the object is not what it read. A host
//! that finds another epoch than its own has lost the service: it ends what it runs of it. Renewing writes the same
//! epoch again, so that the object's time, which is by the store's clock, tells for how long the owner has been silent.

use serde::{Deserialize, Serialize};

use crate::depot::{Depot, json, parse, salt};
use crate::format::{Kind, record};
use crate::names::{ServiceName, owner_path};
use crate::objects::{ObjectError, Put, Seen};
use reveille_failpoint::failpoint;

/// Largest object of an owner.
const OWNER_BYTES_MAX: u64 = 4096;
/// Longest name of a host.
pub const HOST_BYTES_MAX: usize = 253;

/// The owner of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The host.
    pub host: String,
    /// Rises by one with each claim.
    pub epoch: u64,
    /// When it was last heard of, by the store's clock, in ms since 1970; compare with [`Depot::store_now_ms`].
    pub heard_ms: u64,
}

impl Owner {
    /// For how long nothing has been heard of it, at `store_now_ms`.
    pub fn silent_ms(&self, store_now_ms: u64) -> u64 {
        store_now_ms.saturating_sub(self.heard_ms)
    }
}

/// Why a service was not claimed, or the claim not renewed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The store. Whether the claim came through is not known; [`Depot::owner`] tells.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// Somebody else was first, or still is.
    #[error("`{service}` belongs to `{}` in epoch {}, expected was {expected:?}", owner.host, owner.epoch)]
    Owned {
        /// Which service.
        service: ServiceName,
        /// The epoch that was expected; none: no owner.
        expected: Option<u64>,
        /// Who has it.
        owner: Owner,
    },
    /// There is none, where one was expected.
    #[error("`{service}` has no owner, expected was epoch {expected}")]
    Unowned {
        /// Which service.
        service: ServiceName,
        /// The epoch that was expected.
        expected: u64,
    },
    /// A host's name is not one.
    #[error("a host's name has 1 to {HOST_BYTES_MAX} bytes, `{0}` has not")]
    Host(String),
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct Content {
    host: String,
    epoch: u64,
    /// By which a claim whose answer was lost is known again.
    claim: [u8; 16],
}

struct Read {
    content: Content,
    seen: Seen,
}

impl Depot {
    /// Who owns the service, if anybody does.
    ///
    /// # Errors
    /// If the store cannot be asked or what it has is damaged.
    pub async fn owner(&self, service: &ServiceName) -> Result<Option<Owner>, ObjectError> {
        let Some(read) = self.read_owner(service).await? else { return Ok(None) };
        self.heard(service, read.content).await.map(Some)
    }

    async fn heard(&self, service: &ServiceName, content: Content) -> Result<Owner, ObjectError> {
        let heard_ms = self.objects.head(&owner_path(service)).await?.written_ms;
        Ok(Owner { host: content.host, epoch: content.epoch, heard_ms })
    }

    async fn read_owner(&self, service: &ServiceName) -> Result<Option<Read>, ObjectError> {
        let path = owner_path(service);
        let (bytes, seen) = match self.objects.get(&path, record::object_bytes_max(OWNER_BYTES_MAX)).await {
            Err(ObjectError::Missing { .. }) => return Ok(None),
            read => read?,
        };
        let content = record::decode(&bytes, Kind::Owner, &path, OWNER_BYTES_MAX, &self.keys)
            .map_err(ObjectError::damaged(&path))?;
        Ok(Some(Read { content: parse(&path, &content)?, seen }))
    }

    /// Makes `host` the owner, if the epoch is still `expected` (none: if there is no owner). The new epoch.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub async fn claim(
        &self,
        service: &ServiceName,
        host: &str,
        expected: Option<u64>,
    ) -> Result<u64, ClaimError> {
        self.claim_unheard(service, host, expected, None).await
    }

    /// As [`Depot::claim`], if nothing has been heard of that owner since it was read: a claim that rests on an owner's
    /// silence must not take the service from one that has just come back, in the same epoch.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub async fn take_over(
        &self,
        service: &ServiceName,
        host: &str,
        from: &Owner,
    ) -> Result<u64, ClaimError> {
        self.claim_unheard(service, host, Some(from.epoch), Some(from.heard_ms)).await
    }

    async fn claim_unheard(
        &self,
        service: &ServiceName,
        host: &str,
        expected: Option<u64>,
        since_ms: Option<u64>,
    ) -> Result<u64, ClaimError> {
        if !(1..=HOST_BYTES_MAX).contains(&host.len()) {
            return Err(ClaimError::Host(host.chars().take(HOST_BYTES_MAX).collect()));
        }
        let now = self.read_owner(service).await?;
        let how = match (now, expected) {
            (None, None) => Put::Create,
            (None, Some(expected)) => {
                return Err(ClaimError::Unowned { service: service.clone(), expected });
            }
            (Some(read), Some(expected)) if read.content.epoch == expected => {
                if let Some(since_ms) = since_ms {
                    // Looked at after it was read: what is written from here on makes the put fail.
                    let owner = self.heard(service, read.content).await?;
                    if owner.heard_ms != since_ms {
                        let expected = Some(expected);
                        return Err(ClaimError::Owned { service: service.clone(), expected, owner });
                    }
                }
                Put::Replace(read.seen)
            }
            (Some(read), expected) => {
                let owner = self.heard(service, read.content).await?;
                return Err(ClaimError::Owned { service: service.clone(), expected, owner });
            }
        };
        let claim = salt(&owner_path(service))?;
        let epoch = expected.unwrap_or(0) + 1;
        self.write_owner(service, expected, Content { host: host.to_owned(), epoch, claim }, how).await?;
        Ok(epoch)
    }

    /// Says that the owner is still there.
    ///
    /// # Errors
    /// [`ClaimError`]; `Owned` and `Unowned` mean that the service is lost.
    pub async fn renew(&self, service: &ServiceName, host: &str, epoch: u64) -> Result<(), ClaimError> {
        let read = self.read_owner(service).await?;
        let Some(Read { content, seen }) = read else {
            return Err(ClaimError::Unowned { service: service.clone(), expected: epoch });
        };
        if content.host != host || content.epoch != epoch {
            let owner = self.heard(service, content).await?;
            return Err(ClaimError::Owned { service: service.clone(), expected: Some(epoch), owner });
        }
        self.write_owner(service, Some(epoch), content, Put::Replace(seen)).await
    }

    async fn write_owner(
        &self,
        service: &ServiceName,
        expected: Option<u64>,
        content: Content,
        how: Put,
    ) -> Result<(), ClaimError> {
        let path = owner_path(service);
        failpoint!("depot.claim.write");
        let written = self.write_record(Kind::Owner, &path, &json(&path, &content)?, how).await;
        failpoint!("depot.claim.written");
        let Err(error) = written else { return Ok(()) };
        // The answer may have been lost, and a second try found what the first one did.
        match self.read_owner(service).await? {
            Some(read) if read.content == content => Ok(()),
            Some(read) if matches!(error, ObjectError::Exists { .. } | ObjectError::Changed { .. }) => {
                let owner = self.heard(service, read.content).await?;
                Err(ClaimError::Owned { service: service.clone(), expected, owner })
            }
            Some(_) | None => Err(error.into()),
        }
    }
}
