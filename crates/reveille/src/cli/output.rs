//! What is printed, as text for people or JSON for scripts.

use std::io::{IsTerminal, Write};

use serde::Serialize;

/// The form of what is printed.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    /// JSON if asked for.
    pub const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether JSON is printed.
    pub const fn is_json(self) -> bool {
        self.json
    }

    /// Prints `value` as JSON, or what `text` makes of it.
    ///
    /// # Errors
    /// If it cannot be written; a closed pipe is none.
    pub fn print<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        let line = if self.json { serde_json::to_string_pretty(value)? } else { text(value) };
        match writeln!(std::io::stdout(), "{}", line.trim_end()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Prints an error on standard error.
    pub fn error(self, error: &anyhow::Error) {
        if self.json {
            let value = serde_json::json!({ "error": told(error) });
            let _ = writeln!(std::io::stderr(), "{value}");
        } else {
            let _ = writeln!(std::io::stderr(), "reveille: {}", told(error));
        }
    }

    /// Whether standard error is a terminal on which progress may be drawn.
    pub fn draws_progress(self) -> bool {
        !self.json && std::io::stderr().is_terminal()
    }
}

/// An error with its causes, each said once: many a message ends with its cause.
fn told(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |told, cause| {
        let cause = cause.to_string();
        match told.as_str() {
            "" => cause,
            before if before.contains(&cause) => told,
            before => format!("{before}: {cause}"),
        }
    })
}

/// Rows under a heading, each column as wide as its widest cell.
pub fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([heading[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let padded: Vec<String> =
            cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let body = rows.iter().map(|row| line(std::array::from_fn(|column| row[column].as_str())));
    std::iter::once(line(heading)).chain(body).collect()
}

/// `12 ms`, `3.4 s`, `5 min`, `2 h`, `3 d`.
pub fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{} min", ms / 60_000),
        3_600_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

/// `17 B`, `4.2 MiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1_024 {
        return format!("{bytes} B");
    }
    let (mut tenths, mut unit) = (bytes * 10 / 1_024, 0);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1_024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_the_message_ends_with_is_said_once() {
        let error =
            anyhow::anyhow!("no such file").context("cannot read x: no such file").context("not started");
        assert_eq!(told(&error), "not started: cannot read x: no such file");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".to_owned(), "1".to_owned()], ["longer".to_owned(), "22".to_owned()]];
        assert_eq!(table(["NAME", "N"], &rows), "NAME    N\na       1\nlonger  22\n");
    }

    #[test]
    fn sizes_and_times_are_said_as_people_do() {
        assert_eq!([bytes(17), bytes(1_536), bytes(4_404_019)], ["17 B", "1.5 KiB", "4.1 MiB"]);
        assert_eq!([duration(7), duration(3_456), duration(120_000)], ["7 ms", "3.4 s", "2 min"]);
    }
}
