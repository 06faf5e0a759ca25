//! The program `reveille`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    reveille::cli::run()
}
