//! `reveille-sim run --seeds A..B [--mutation NAME]`: runs seeds until one fails, and tells its story.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use reveille_sim::story;

const USAGE: &str = "reveille-sim run --seeds A..B [--mutation NAME]";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = args.iter().position(|arg| arg == name)?;
        args.get(at + 1).cloned()
    };
    let seeds = value("--seeds").and_then(|seeds| {
        let (first, end) = seeds.split_once("..")?;
        Some(first.parse::<u64>().ok()?..end.parse::<u64>().ok()?)
    });
    let Some(seeds) = seeds.filter(|_| args.first().is_some_and(|verb| verb == "run")) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let mutation = match value("--mutation") {
        None => None,
        Some(name) => match story::MUTATIONS.into_iter().find(|known| *known == name) {
            Some(known) => Some(known),
            None => {
                eprintln!("there is no mutation {name}; there are {}", story::MUTATIONS.join(", "));
                return ExitCode::from(2);
            }
        },
    };
    let go_on = args.iter().any(|arg| arg == "--all");
    let begun = std::time::Instant::now();
    let (mut count, mut failed) = (0_u32, 0_u32);
    for seed in seeds {
        count += 1;
        let Some(violation) = story::run(seed, mutation, false).violation else { continue };
        failed += 1;
        if go_on {
            println!("seed {seed}: {}", violation.lines().next().unwrap_or_default());
            continue;
        }
        let again = story::run(seed, mutation, true);
        for line in &again.trace {
            println!("{line}");
        }
        println!("seed {seed}: {violation}");
        if again.violation.as_ref() != Some(&violation) {
            println!("when it was run again: {:?}", again.violation);
        }
        return ExitCode::FAILURE;
    }
    println!("{count} seeds in {} ms, {failed} failed", begun.elapsed().as_millis());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
