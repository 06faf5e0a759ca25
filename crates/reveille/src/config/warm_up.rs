//! `[warm_up]`: what guests are warmed up by before their clients are let in.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use reveille_core::model::SpecFault;
use serde::{Deserialize, Serialize};

use super::{Config, ConfigError, below, prefixed};
use crate::profiles::Profiles;

/// `[warm_up]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct WarmUp {
    /// A directory of the user's own profiles, `NAME.toml` each; empty: there are those alone that are built in.
    pub profiles_dir: PathBuf,
}

impl Config {
    /// Reads the profiles of the directory, seen from `base`, and looks whether services name some that there are.
    ///
    /// # Errors
    /// Every fault of the profiles and of the services' names for them.
    pub(super) fn read_profiles(&mut self, base: &Path) -> Result<(), ConfigError> {
        let faulty = |faults: Vec<SpecFault>| Err(ConfigError::Faults { path: PathBuf::new(), faults });
        if !self.warm_up.profiles_dir.as_os_str().is_empty() {
            self.warm_up.profiles_dir = below(base, &self.warm_up.profiles_dir);
            match Profiles::load(&self.warm_up.profiles_dir) {
                Ok(profiles) => self.profiles = Arc::new(profiles),
                Err(faults) => return faulty(faults),
            }
        }
        let of_services = self.service.iter().flat_map(|service| {
            let fault = self.profiles.fault_of(service);
            let place = format!("service \"{}\"", service.name);
            prefixed(&place, fault.into_iter().collect()).collect::<Vec<SpecFault>>()
        });
        let faults: Vec<SpecFault> = of_services.collect();
        if faults.is_empty() { Ok(()) } else { faulty(faults) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_read_from_beside_the_file_and_services_name_one_of_them() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("mine")).unwrap();
        std::fs::write(dir.path().join("mine/big.toml"), "about = \"mine\"\n").unwrap();
        let file = dir.path().join("reveille.toml");
        let config = |profile: &str| {
            let text = format!(
                "[warm_up]\nprofiles_dir = \"mine\"\n[[zone]]\nname = \"vm.test\"\n[[service]]\n\
                 name = \"a.vm.test\"\nimage = \"a\"\nports = [\"tcp/80\"]\nprofile = \"{profile}\"\n"
            );
            std::fs::write(&file, text).unwrap();
            Config::load(&file)
        };
        for known in ["big", "auto", "database-heavy"] {
            assert_eq!(config(known).unwrap().service[0].profile.as_deref(), Some(known));
        }
        let told = config("small").unwrap_err().to_string();
        let expected = "service \"a.vm.test\".profile = small\n      allowed: auto, big, cache-heavy";
        assert!(told.contains(expected), "{told}");
        std::fs::write(dir.path().join("mine/big.toml"), "boot = 1\n").unwrap();
        let told = config("big").unwrap_err().to_string();
        assert!(told.contains("mine/big.toml: boot = 1"), "{told}");
    }
}
