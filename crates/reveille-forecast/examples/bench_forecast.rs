//! The benchmark of forecasts without the rest of the program, which takes longer to build:
//! `cargo run --release -p reveille-forecast --example bench_forecast -- DIR [--json] [--quick] [--m4]`.
//! `--quick` leaves out most models alone, `--m4` the seven other sets.

use std::path::PathBuf;
use std::process::ExitCode;

use reveille_forecast::bench::{Options, run};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let Some(dir) = arguments.iter().find(|argument| !argument.starts_with("--")).map(PathBuf::from) else {
        eprintln!("usage: bench_forecast DIR [--json] [--quick] [--m4]");
        return ExitCode::from(2);
    };
    let options = Options { singles: !has("--quick"), rolling: !has("--m4") };
    match run(&dir, options, &mut |part, at, of| eprint!("\r{part} {at}/{of}        ")) {
        Ok(report) => {
            eprintln!();
            if has("--json") {
                println!("{}", serde_json::to_string_pretty(&report).unwrap_or_default());
            } else {
                print!("{report}");
            }
            ExitCode::SUCCESS
        }
        Err(fault) => {
            eprintln!("\n{fault}");
            ExitCode::FAILURE
        }
    }
}
