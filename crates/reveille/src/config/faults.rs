//! What can be wrong with a config file.

use std::path::{Path, PathBuf};

use reveille_core::model::SpecFault;

/// Why a config file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is larger than any config file should be.
    #[error("{} is larger than {bytes_max} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        bytes_max: u64,
    },
    /// It is no TOML.
    #[error("{} is not valid TOML:\n{detail}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        detail: String,
    },
    /// It is TOML, but does not say what a config file may say.
    #[error("{} has {} {}:\n{}", path.display(), faults.len(), if faults.len() == 1 { "fault" } else { "faults" }, listed(faults))]
    Faults {
        /// The file.
        path: PathBuf,
        /// All of them.
        faults: Vec<SpecFault>,
    },
}

impl ConfigError {
    /// The same error, naming the file.
    pub fn in_file(self, file: &Path) -> Self {
        let path = file.to_owned();
        match self {
            Self::Unreadable { source, .. } => Self::Unreadable { path, source },
            Self::TooLarge { bytes_max, .. } => Self::TooLarge { path, bytes_max },
            Self::Syntax { detail, .. } => Self::Syntax { path, detail },
            Self::Faults { faults, .. } => Self::Faults { path, faults },
        }
    }
}

fn listed(faults: &[SpecFault]) -> String {
    let lines: Vec<String> = faults
        .iter()
        .map(|SpecFault { key, value, allowed }| format!("  {key} = {value}\n      allowed: {allowed}"))
        .collect();
    lines.join("\n")
}
