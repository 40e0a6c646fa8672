//! Plays simulations: `simulate --seeds N [--from SEED] [--steps N] [--trace] [--bug NAME]`.

use blocks::PlantedBug;
use server::simulation::{Counts, Failure, Options, play};
use std::process::ExitCode;
use std::time::Instant;

const USAGE: &str = "usage: simulate [--seeds N] [--from SEED] [--steps N] [--trace] [--bug NAME]";

struct Wish {
    seeds: u64,
    from: u64,
    options: Options,
}

fn wish() -> Result<Wish, String> {
    let mut wish = Wish { seeds: 1000, from: 0, options: Options::default() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let value = arguments.next().ok_or(format!("{argument} wants a number"))?;
            value.parse::<u64>().map_err(|_| format!("{argument}: {value} is no number"))
        };
        match argument.as_str() {
            "--seeds" => wish.seeds = number()?,
            "--from" => wish.from = number()?,
            "--steps" => wish.options.steps = number()?,
            "--trace" => wish.options.trace = true,
            "--bug" => {
                let name = arguments.next().unwrap_or_default();
                let bug = PlantedBug::ALL.into_iter().find(|bug| bug.name() == name);
                let known = || PlantedBug::ALL.map(PlantedBug::name).join(", ");
                wish.options.planted = Some(bug.ok_or_else(|| format!("--bug takes one of {}", known()))?);
            }
            "--help" => return Err(USAGE.to_owned()),
            other => return Err(format!("{other} is not understood; {USAGE}")),
        }
    }
    Ok(wish)
}

fn main() -> ExitCode {
    let wish = match wish() {
        Ok(wish) => wish,
        Err(what) => {
            eprintln!("{what}");
            return ExitCode::from(2);
        }
    };
    let begun = Instant::now();
    let mut counts = Counts::default();
    for seed in wish.from..wish.from.saturating_add(wish.seeds) {
        let (counted, result) = play_one(seed, &wish.options);
        counts.sum(&counted);
        if let Err(failure) = result {
            eprintln!("\nseed {seed} FAILED: {failure}");
            eprintln!("to see how: scripts/simulate --seeds 1 --from {seed} --trace");
            return ExitCode::FAILURE;
        }
    }
    report(&counts, wish.seeds, begun.elapsed().as_secs_f64());
    ExitCode::SUCCESS
}

/// A panic of the product fails its seed like any other broken promise.
fn play_one(seed: u64, options: &Options) -> (Counts, Result<(), String>) {
    match std::panic::catch_unwind(|| play(seed, options)) {
        Ok((counts, _, result)) => (counts, result.map_err(|failure: Failure| failure.to_string())),
        Err(_) => (Counts::default(), Err("the product has panicked".to_owned())),
    }
}

fn report(counts: &Counts, seeds: u64, seconds: f64) {
    print!("{counts}");
    let faults = counts.faults();
    println!(
        "{seeds} seeds passed in {seconds:.1} s: {:.1} seeds/s, {faults} faults ({:.0} faults/s, {:.1} a seed)",
        seeds as f64 / seconds,
        faults as f64 / seconds,
        faults as f64 / seeds as f64,
    );
}
