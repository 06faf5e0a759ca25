//! What a config file may say, but hardly means.

use reveille_core::model::SpecFault;

use super::{Config, Dnssec, prefixed};

/// Each with key, value and what would be better. Looks for files; nothing here keeps the daemon from starting.
pub fn warnings(config: &Config) -> Vec<SpecFault> {
    let mut warnings = Vec::new();
    for zone in config.zone.iter().filter(|zone| zone.dnssec == Dnssec::On) {
        if !(zone.transfer.is_empty() && zone.notify.is_empty()) {
            let allowed = "on without `transfer` and `notify`, or off: secondaries get the zone unsigned, and with a \
                           DS at the parent nobody who validates takes their answers";
            warnings.push(SpecFault::new(&format!("zone \"{}\".dnssec", zone.name), "on", allowed));
        }
    }
    let binary = &config.qemu.binary;
    if reveille_vm::qemu::locate(binary).is_none() {
        let allowed = "a program in PATH, or a path with a slash; without it nothing can be woken";
        warnings.push(SpecFault::new("qemu.binary", binary.display(), allowed));
    }
    warnings.extend(sets_cut(config));
    warnings
}

/// Sets of profiles that are longer than the policy of a service that has them leaves.
pub fn sets_cut(config: &Config) -> Vec<SpecFault> {
    let of_services = config.service.iter().flat_map(|spec| {
        let place = format!("service \"{}\"", spec.name);
        prefixed(&place, config.profiles.too_long(spec)).collect::<Vec<_>>()
    });
    of_services.collect()
}
