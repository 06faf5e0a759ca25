//! How far long work has come, on a terminal.

use indicatif::{ProgressBar, ProgressStyle};

use super::Output;

/// A bar on standard error; nothing where that is no terminal, or JSON is printed.
#[derive(Debug)]
pub struct Progress(Option<ProgressBar>);

impl Progress {
    /// An empty bar.
    pub fn new(output: Output) -> Self {
        Self(output.draws_progress().then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} {elapsed}");
            style.into_iter().for_each(|style| bar.set_style(style.progress_chars("=> ")));
            bar
        }))
    }

    /// What is being done, and how many of how many parts of it are.
    pub fn at(&self, what: &str, done: usize, all: usize) {
        let Some(bar) = &self.0 else { return };
        if bar.message() != what {
            bar.set_message(what.to_owned());
        }
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    }

    /// Clears the bar.
    pub fn end(self) {
        if let Some(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}
