//! A new service whose first version is another one's last.

use reveille_api::types::ServiceDetail;
use reveille_api::{CloneRequest, ControlError};
use reveille_core::model::{DomainName, Instance, Phase, Remains, Rung};
use reveille_vm::driver::CloneError;

use super::run::Control;

impl Control {
    /// Clones a service that sleeps with its version on this host. The clone sleeps too; it is told who it is before its
    /// first client.
    pub(super) async fn clone_service(
        &mut self,
        name: &DomainName,
        asked: CloneRequest,
    ) -> Result<ServiceDetail, ControlError> {
        self.may_add_rows().map_err(|detail| ControlError::Unavailable { detail })?;
        let (service, source) = self.find(name)?;
        let (name, from) = (service.spec.name.clone(), source.id);
        if source.phase != Phase::Hibernated || source.version.is_none() {
            let remedy = match (source.phase, source.rung) {
                (Phase::Hibernated, Rung::Remote) => "its version is only in the object store; wake it once",
                _ => "put it to sleep first with `reveille hibernate`",
            };
            let detail = format!("{name} has no version on this host (phase {}); {remedy}", source.phase);
            return Err(ControlError::Refused { detail });
        }
        let mut spec = service.spec.clone();
        (spec.name, spec.address, spec.address6) = (asked.name, asked.address, None);
        if self.fleet.service(&spec.name).is_some() {
            let detail = format!("the service {} exists already; remove it first", spec.name);
            return Err(ControlError::Exists { detail });
        }
        let faults = self.spec_faults(&spec).await;
        if !faults.is_empty() {
            return Err(ControlError::Invalid { faults });
        }
        let taken = |error: super::startup::AddressError| ControlError::Exists { detail: error.to_string() };
        let address = self.services.give_address(&mut spec).map_err(taken)?;
        let to = self.store.reserve_instance_id();
        let driver = std::sync::Arc::clone(&self.executor.tools().driver);
        let added = match driver.clone_version(from, to, &name, asked.allow_identical).await {
            Ok(version) => {
                let now = self.clock.now();
                let instance = Instance {
                    phase: Phase::Hibernated,
                    rung: Rung::Local,
                    version_number_last: version.number,
                    hibernated_at: Some(now),
                    version: Some(version),
                    ..Instance::new(to, spec.name.clone(), now)
                };
                self.add_at(spec, address, instance).await
            }
            Err(error) => Err(refused(&error)),
        };
        if added.is_err() {
            self.services.take_back(address);
            if let Err(error) = driver.kill(to, Remains::Nothing).await {
                tracing::warn!(instance = %to, %error, "what was cloned is left on the disk");
            }
        }
        added
    }
}

fn refused(error: &CloneError) -> ControlError {
    let detail = error.to_string();
    match error {
        CloneError::NoVersion | CloneError::NoAgent | CloneError::HasDisk | CloneError::Unsupported(_) => {
            ControlError::Refused { detail }
        }
        CloneError::InUse(_) | CloneError::Io(_) => ControlError::Unavailable { detail },
    }
}
