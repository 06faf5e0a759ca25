//! Going back: an older version becomes the newest one, under a new number.
//!
//! Which version a service is restored from is said by the numbers alone: the newest one. So a roll-back writes a
//! manifest with the next number that names the chunks of the old one. It costs one object, whoever takes the service
//! over finds what was rolled back to, and what it replaces stays where it is, under its own number.

use reveille_failpoint::failpoint;

use crate::depot::{Depot, Watch};
use crate::format::manifest::{Description, Manifest};
use crate::names::VersionId;
use crate::objects::ObjectError;
use crate::put::{PutError, PutSummary};

/// The note of a version that was made from an older one: the number of that.
pub const NOTE_RESTORED_FROM: &str = "restored_from";

/// The older version that this one repeats, if it does.
pub fn restored_from(manifest: &Manifest) -> Option<u64> {
    manifest.about.notes.get(NOTE_RESTORED_FROM)?.parse().ok()
}

impl Depot {
    /// Publishes the content of version `from` once more under `number`, as taken in `epoch`. The same asked again
    /// finds what it did.
    ///
    /// # Errors
    /// [`PutError`]; the version is not in the depot then, unless the error is that the store did not answer.
    pub async fn republish(
        &self,
        from: &VersionId,
        number: u64,
        epoch: u64,
        watch: &Watch,
    ) -> Result<PutSummary, PutError> {
        let about = self.manifest(from).await?.about;
        let mut notes = about.notes.clone();
        notes.insert(NOTE_RESTORED_FROM.to_owned(), from.number.to_string());
        let id = VersionId { service: from.service.clone(), number };
        let about = Description { id, epoch, parent: Some(from.number), notes, ..about };
        let order = self.order(&about, watch).await?;
        failpoint!("depot.republish.begin");
        self.check_owner(&order).await?;
        let there = self.check_number(&order).await?;
        // Seen after the clocks were read, so that its chunks stay for as long as this may take.
        let source = self.manifest(from).await?;
        let shared_bytes = source.own_bytes + source.shared_bytes;
        let manifest = Manifest { about: about.clone(), own_bytes: 0, shared_bytes, ..source };
        match there {
            Some(there) if there == manifest => Ok(PutSummary {
                id: about.id.clone(),
                was_there: true,
                pages: manifest.parts.iter().map(|part| part.map.count()).sum(),
                pages_stored: 0,
                own_bytes: 0,
                shared_bytes,
            }),
            Some(_) => Err(PutError::Taken { id: about.id.clone(), taken: number }),
            None => self.publish(&order, manifest).await,
        }
    }

    /// Takes away what a roll-back that failed may have left, as far as the store answers.
    ///
    /// # Errors
    /// If the store cannot be asked.
    pub async fn take_back(&self, id: &VersionId) -> Result<(), ObjectError> {
        self.bury(id).await
    }
}
