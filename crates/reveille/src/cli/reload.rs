//! `reveille reload`: a running daemon reads its config again.

use clap::Args;
use reveille_api::types::ReloadReport;

use super::output::table;
use super::remote::runtime;
use super::{Daemon, Output};

/// Options of `reveille reload`.
#[derive(Debug, Args)]
pub struct Reload {
    #[command(flatten)]
    daemon: Daemon,
}

impl Reload {
    /// Reloads and prints what has changed.
    ///
    /// # Errors
    /// If the daemon does not answer, or the config or its files have faults; nothing has changed then.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        let report = runtime()?.block_on(async {
            let client = self.daemon.client().await?;
            anyhow::Ok(client.reload().await?)
        })?;
        output.print(&report, told)
    }
}

fn told(report: &ReloadReport) -> String {
    let mut text = match report.changes.as_slice() {
        [] => format!("{} is in force; nothing has changed\n", report.file),
        changes => {
            let rows: Vec<[String; 2]> =
                changes.iter().map(|change| [change.key.clone(), change.change.clone()]).collect();
            format!("{} is in force\n{}", report.file, table(["KEY", "CHANGE"], &rows))
        }
    };
    if !report.needs_restart.is_empty() {
        text += &format!("At the next start: {}\n", report.needs_restart.join(", "));
    }
    for warning in &report.warnings {
        text += &format!("Warning: {warning}\n");
    }
    text
}
