//! Replays a trace, or every one in a directory: `replay TRACE.csv|DIR [REPORT.json [CURVE.svg]]`.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

use reveille_replay::{Settings, Trace, policies, replay};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let path = arguments.next().ok_or("usage: replay TRACE.csv|DIR [REPORT.json [CURVE.svg]]")?;
    if Path::new(&path).is_dir() {
        let bench = policies(Path::new(&path), |_, _| ())?;
        for trace in &bench.traces {
            println!("{}\n{}", trace.file.display(), trace.report);
        }
        if let Some(path) = arguments.next() {
            fs::write(path, serde_json::to_string_pretty(&bench)?)?;
        }
        return Ok(());
    }
    let trace = Trace::parse(&fs::read_to_string(path)?)?;
    let report = replay(&trace, &Settings::default(), |_, _| ())?;
    println!("{report}");
    if let Some(path) = arguments.next() {
        fs::write(path, serde_json::to_string_pretty(&report)?)?;
    }
    if let Some(path) = arguments.next() {
        fs::write(path, report.svg())?;
    }
    Ok(())
}
