//! Zones that cease to be signed while the server runs: all that were asked for, or none.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Release;

use reveille_core::model::DomainName;

use super::{KeyError, Signing};

impl Signing {
    /// Ends the signing of zones that are not served any more (`gone`), whose keys are left as they lie, and of those
    /// that are served unsigned from now on, as of [`Signing::leave_unsigned`]. To be called before the view shows it:
    /// whoever answers from the view before goes on signing with the keys that it has. Nothing of a zone that was not
    /// signed. Waits for the disk, and while it does no key of these zones takes a step: none becomes ready between
    /// the look at it and its end. One task alone may change which zones are signed.
    ///
    /// # Errors
    /// Why a zone cannot be served unsigned; then every zone is signed as before. Or, after that, what could not be
    /// put back: its ledger is written again with its next step.
    pub fn leave(
        &self,
        gone: &BTreeSet<DomainName>,
        unsigned: &BTreeSet<DomainName>,
    ) -> Result<(), Vec<KeyError>> {
        let zones = self.zones.load_full();
        let ends = |apex: &DomainName| gone.contains(apex) || unsigned.contains(apex);
        let ended: Vec<_> = zones.iter().filter(|(apex, _)| ends(apex)).map(|(_, zone)| zone).collect();
        // A step that is being written ends first.
        let held: Vec<_> = ended.iter().map(|zone| zone.lock()).collect();
        let mut forgotten = Vec::new();
        for apex in unsigned {
            match self.store.forget(apex) {
                Ok(ledger) => forgotten.extend(ledger.map(|ledger| (apex, ledger))),
                Err(error) => {
                    let back = forgotten.into_iter().map(|(apex, ledger)| self.store.put_back(apex, ledger));
                    return Err(std::iter::once(error).chain(back.filter_map(Result::err)).collect());
                }
            }
        }
        ended.iter().for_each(|zone| zone.left.store(true, Release));
        drop(held);
        let stay = zones.iter().filter(|(apex, _)| !ends(apex));
        self.zones.store(Arc::new(stay.map(|(apex, zone)| (apex.clone(), Arc::clone(zone))).collect()));
        Ok(())
    }
}
