//! Replays a trace: `replay TRACE.csv [REPORT.json [CURVE.svg]]`.

use std::error::Error;
use std::{env, fs};

use reveille_replay::{Settings, Trace, replay};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let path = arguments.next().ok_or("usage: replay TRACE.csv [REPORT.json [CURVE.svg]]")?;
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
