//! Ours beside its peers: runs every subject and the floor by turns, and prints one table.
//!
//! `benches/peers/run` installs and builds what is compared and starts this; how each subject is
//! run, and what is to be minded, is in `benches/peers/README.md`.
//!
//! ```text
//!   run 1:  shm:  praas  ucx  openmpi ...   unix: ...   tcp: ...
//!   run 2:  the same, begun with another subject
//!
//!   a subject with the floor inside:  | floor | subject | floor | subject | ...     (pair.c)
//!   a program as it is:               | floor |  program  | floor |  program  | floor |
//! ```
//!
//! | file | what |
//! |---|---|
//! | `plan.rs` | transports, measures, subjects |
//! | `subjects.rs` | how each subject is started |
//! | `processes.rs` | programs with a deadline; the floor that waits between them |
//! | `parse.rs` | what programs print, taken strictly |
//! | `figures.rs` | medians and spreads |
//! | `table.rs` | how they are shown |

mod figures;
mod parse;
mod plan;
mod processes;
mod subjects;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::figures::Results;
use crate::plan::{Subject, Transport};
use crate::subjects::Bench;

/// Measures praas and its peers by turns and prints one table.
#[derive(Debug, Parser)]
#[command(name = "benches/peers/run")]
pub struct Options {
    /// How often everything is run; figures are medians over these.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Subjects to run.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_values_t = Subject::ALL)]
    only: Vec<Subject>,
    /// Transports to run them over.
    #[arg(long, value_name = "KIND,...", value_delimiter = ',', default_values_t = Transport::ALL)]
    transport: Vec<Transport>,
    /// Pairs of floor and subject in each run of a subject with the floor inside.
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pairs: u32,
    /// How often in each run a program without a floor is started, floors between.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    starts: u32,
    /// Seconds after which a program is ended and said to have failed.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3600))]
    timeout_s: u32,
    /// The two CPUs that the two sides are pinned to.
    #[arg(long, value_name = "CPU,CPU", default_value = "0,1", value_parser = pin_parse)]
    pin: (usize, usize),
    /// Print one JSON object a line instead of the table.
    #[arg(long)]
    json: bool,
    /// Where benches/peers/run has put what is compared.
    #[arg(long, value_name = "FOLDER")]
    folder: PathBuf,
    /// The praas command, if not one that is built for this.
    #[arg(long, value_name = "FILE")]
    praas: PathBuf,
    /// The commit that it was built from.
    #[arg(long, value_name = "TEXT", default_value = "unknown")]
    commit: String,
}

fn pin_parse(text: &str) -> Result<(usize, usize), String> {
    let wrong = || format!("'{text}' is not two CPU numbers, as in 0,1");
    let (one, two) = text.split_once(',').ok_or_else(wrong)?;
    let cpu = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
    match (cpu(one)?, cpu(two)?) {
        (one, two) if one == two => Err(format!("both sides on CPU {one}: each needs its own")),
        cpus => Ok(cpus),
    }
}

fn run(options: &Options) -> Result<bool, String> {
    let bench = Bench::new(options)?;
    let mut results = Results::default();
    for round in 0..options.runs {
        for &transport in &options.transport {
            let mut floor = bench.floor(transport)?;
            let mut subjects: Vec<Subject> = options.only.clone();
            subjects.retain(|subject| subject.measures(transport).next().is_some());
            // Whoever comes first has the longest wait before it.
            let first = round as usize % subjects.len().max(1);
            subjects.rotate_left(first);
            for subject in subjects {
                eprintln!(
                    "run {} of {}: {transport} {subject}",
                    round + 1,
                    options.runs
                );
                bench.measure(subject, transport, round, &mut floor, &mut results);
            }
        }
    }
    let rows = results.rows();
    let shown = match options.json {
        true => table::json(&bench.heading(), &rows),
        false => table::text(&bench.heading(), &rows),
    };
    println!("{shown}");
    Ok(rows.iter().all(|row| row.failure.is_none()))
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("peers: not all could be measured; the table names what failed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}
