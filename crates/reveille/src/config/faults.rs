//! What can be wrong with a config file.

use std::path::{Path, PathBuf};

use reveille_core::model::SpecFault;
use reveille_dns::named_file::FileError;

/// Why a config file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(FileError),
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
            Self::Unreadable(error) => Self::Unreadable(FileError { path, ..error }),
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
