//! `reveille check`: every fault of a config file, and of the zones, keys and certificates that it names.

use std::path::Path;

use serde::Serialize;

use super::Output;
use crate::config::{self, Config, ConfigError};
use crate::zones;

#[derive(Serialize)]
struct Report {
    file: String,
    ok: bool,
    zones: usize,
    services: usize,
    faults: Vec<String>,
    /// What hardly is meant; no reason to fail.
    warnings: Vec<String>,
}

/// Checks the file at `path`.
///
/// # Errors
/// If it has any fault.
pub fn check(path: &Path, output: Output) -> anyhow::Result<()> {
    let mut warnings = Vec::new();
    let (config, mut faults) = match Config::load(path) {
        Ok(config) => {
            warnings.extend(config::warnings(&config).iter().map(ToString::to_string));
            (config, Vec::new())
        }
        Err(ConfigError::Faults { faults, .. }) if output.is_json() => {
            (Config::default(), faults.iter().map(ToString::to_string).collect())
        }
        Err(error) => return Err(error.into()),
    };
    if faults.is_empty() {
        faults = zones::read_files(&config).err().unwrap_or_default();
    }
    let report = Report {
        file: path.display().to_string(),
        ok: faults.is_empty(),
        zones: config.zone.len(),
        services: config.service.len(),
        warnings,
        faults,
    };
    if report.ok || output.is_json() {
        output.print(&report, |report| {
            let Report { file, zones, services, .. } = report;
            let warnings = report.warnings.iter().map(|warning| format!("\n  warning: {warning}"));
            format!("{file} is good: {zones} zones, {services} services{}", warnings.collect::<String>())
        })?;
    }
    anyhow::ensure!(report.ok, "{} has faults:\n  {}", report.file, report.faults.join("\n  "));
    Ok(())
}
