//! `reveille bench policy`: policies of keeping warm on recorded arrivals, with the defaults of `reveille replay`.

use std::path::PathBuf;

use clap::Args;
use reveille_replay::{PolicyBench, policies};

use crate::cli::{Output, Progress};

/// Options of `reveille bench policy`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  reveille bench policy ../data --json >policy.json\n\n\
    One trace with other prices, rungs or budgets, or its curves as a picture: reveille replay FILE.")]
pub struct Policy {
    /// Directory with CSV files of arrivals, or with a directory `arrivals` of them; files of other columns are left out
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Names in the tables of single policies, those that were asked for most
    #[arg(long, value_name = "N", default_value_t = 0)]
    names: usize,
}

impl Policy {
    /// Measures and prints.
    ///
    /// # Errors
    /// If there is no trace, or one cannot be read.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        let progress = Progress::new(output);
        let bench = policies(&self.dir, |path, step, done, all| {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            progress.at(&format!("{file}: {step}"), done, all);
        });
        progress.end();
        output.print(&bench?, |bench| text(bench, self.names))
    }
}

fn text(bench: &PolicyBench, names: usize) -> String {
    let mut text = String::new();
    for trace in &bench.traces {
        text += &format!("{}\n{}\n", trace.file.display(), trace.report.shown(names));
    }
    let ratio =
        |ratio: Option<f64>| ratio.map_or("none at some budget".to_owned(), |ratio| format!("{ratio:.3}"));
    text += &format!(
        "worst ratio of cold starts to the better of the others: {}\n",
        ratio(bench.cold_ratio_worst)
    );
    text += &format!("worst ratio of delays to fixed keep-alive: {}", ratio(bench.delay_ratio_worst));
    text + &format!(", with idle vCPUs priced {}", ratio(bench.priced_delay_ratio_worst))
}
