//! How far the correction for caching is from the truth, on simulated resolvers, case by case (`reveille bench forecast` has
//! the mean of the first table):
//! `cargo run --release -p reveille-forecast --example bench_caching -- [--windows N] [--json]`.

use std::process::ExitCode;

use reveille_forecast::bench::caching::resolvers::{Habit, Name, Shares};
use reveille_forecast::bench::caching::{Cell, Row, cells, run};

const WINDOWS: u32 = 1_000;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut windows, mut json) = (WINDOWS, false);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => json = true,
            "--windows" => match arguments.next().and_then(|count| count.parse().ok()) {
                Some(count @ 1..) => windows = count,
                Some(0) | None => return usage(),
            },
            _ => return usage(),
        }
    }
    let mut all = Vec::new();
    let mut table = |title: &str, cells: Vec<Cell>| {
        if !json {
            println!("\n{title}\n{}", Row::HEAD);
        }
        for (cell, seed) in cells.into_iter().zip(1..) {
            let row = run(cell, windows, seed);
            if !json {
                println!("{row}");
            }
            all.push(row);
        }
    };
    for queries in [400.0, 2_000.0, 100.0, 25.0] {
        table(&format!("{queries} queries to be expected, or 4 TTLs"), cells(queries));
    }
    table("beyond: 50 arrivals in a TTL through each resolver", beyond());
    table("TTLs that change in the middle of the window", changing());
    table("resolvers and clients that are otherwise", otherwise());
    if json {
        println!("{}", serde_json::to_string_pretty(&all).unwrap_or_default());
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("usage: bench_caching [--windows N] [--json]");
    ExitCode::from(2)
}

/// λ·TTL ≤ 50 of each resolver instead of all.
fn beyond() -> Vec<Cell> {
    let cell = |resolvers: u32, shares| {
        let name = Name::honest(60_000, resolvers, shares, 50.0);
        let name = Name { demand_per_ttl: 50.0 / name.largest_share(), ..name };
        [400.0, 4_000.0].map(|expected_queries| Cell { name, expected_queries })
    };
    [10, 100, 1_000]
        .into_iter()
        .flat_map(|count| [cell(count, Shares::Equal), cell(count, Shares::Zipf)])
        .flatten()
        .collect()
}

fn changing() -> Vec<Cell> {
    let mut cells = Vec::new();
    for resolvers in [1, 100] {
        for (ttl_ms, ttl_after_ms) in [(5_000, 300_000), (300_000, 5_000), (30_000, 60_000)] {
            let name = Name::honest(ttl_ms, resolvers, Shares::Zipf, 50.0);
            cells.push(Cell { name: Name { ttl_after_ms, ..name }, expected_queries: 400.0 });
        }
    }
    cells
}

fn otherwise() -> Vec<Cell> {
    let mut cells = Vec::new();
    let habits = [
        (Habit::BeginOfSecond, 5_000),
        (Habit::BeginOfSecond, 60_000),
        (Habit::EndOfSecond, 5_000),
        (Habit::EndOfSecond, 60_000),
        (Habit::Capped(30_000.0), 60_000),
        (Habit::Capped(0.0), 60_000),
        (Habit::Minimal(300_000.0), 60_000),
        (Habit::Prefetch, 60_000),
        (Habit::Caches(4), 60_000),
        (Habit::Bursts(5.0), 60_000),
    ];
    for (habit, ttl_ms) in habits {
        for resolvers in [1, 20] {
            let name = Name { habit, ..Name::honest(ttl_ms, resolvers, Shares::Zipf, 10.0) };
            cells.push(Cell { name, expected_queries: 400.0 });
        }
    }
    cells
}
