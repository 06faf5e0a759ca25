//! `reveille-sim run --seeds A..B [--mutation NAME] [--threads N] [--all]`: runs seeds until one fails, and tells its
//! story; with `--all` it goes on and names all that fail.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use reveille_sim::story;

const USAGE: &str = "reveille-sim run --seeds A..B [--mutation NAME] [--threads N] [--all]";

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
    let threads = value("--threads").and_then(|threads| threads.parse().ok()).unwrap_or(1);
    let begun = std::time::Instant::now();
    let failures = story::failures(seeds.clone(), mutation, threads, go_on);
    for (seed, violation) in &failures {
        println!("seed {seed}: {}", violation.lines().next().unwrap_or_default());
    }
    println!("{} seeds in {} ms, {} failed", seeds.count(), begun.elapsed().as_millis(), failures.len());
    let Some((seed, violation)) = failures.first_key_value() else { return ExitCode::SUCCESS };
    if !go_on {
        let again = story::run(*seed, mutation, true);
        for line in &again.trace {
            println!("{line}");
        }
        println!("seed {seed}: {violation}");
        if again.violation.as_ref() != Some(violation) {
            println!("when it was run again: {:?}", again.violation);
        }
    }
    ExitCode::FAILURE
}
