//! The command line: what it accepts, and which command gets it.

pub mod commands;
pub mod errors;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::cli::commands::{
    bench, completions, convert, decode, doctor, encode, eval, export, init, inspect, interpolate, predict,
    report as page, restore, runs, sample, summary, sweep, sweep_worker, train,
};
use crate::sweep::worker::COMMAND;
use crate::util::console;
use crate::util::signals;

const EXAMPLES: &str = "\
Examples:
  tikhonov train configs/quickstart.yaml
  tikhonov train quickstart --set penalty.l2=0 --output runs/no-penalty
  tikhonov summary configs/quickstart.yaml
  tikhonov train quickstart --resume
  tikhonov doctor

Exit codes: 0 done, 2 usage or config, 3 data, 4 checkpoint or model file, 5 numeric (NaN), 6 out of memory,
7 storage, 75 interrupted but saved (--resume goes on), 130 stopped at once.";

/// Trains regularised convolutional networks that are declared in YAML.
#[derive(Debug, Parser)]
#[command(version, about, after_help = EXAMPLES, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print errors as the program sees them, with a backtrace where RUST_BACKTRACE=1.
    #[arg(long, global = true, hide = true)]
    pub debug: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(train::Options),
    Sweep(sweep::Options),
    #[command(name = COMMAND, hide = true)]
    SweepWorker,
    Report(page::Options),
    Runs(runs::Options),
    Eval(eval::Options),
    Predict(predict::Options),
    Restore(restore::Options),
    Sample(sample::Options),
    Interpolate(interpolate::Options),
    Encode(encode::Options),
    Decode(decode::Options),
    Summary(summary::Options),
    Inspect(inspect::Options),
    Convert(convert::Options),
    Export(export::Options),
    Init(init::Options),
    Doctor(doctor::Options),
    Bench(bench::Options),
    Completions(completions::Options),
}

impl Cli {
    pub fn run(&self) -> Result<()> {
        // These save on a signal.
        if !matches!(self.command, Command::Train(_) | Command::Sweep(_) | Command::SweepWorker) {
            signals::clean_up_on_signals();
        }
        let outcome = match &self.command {
            Command::Train(options) => train::run(options),
            Command::Sweep(options) => sweep::run(options),
            Command::SweepWorker => sweep_worker::run(),
            Command::Report(options) => page::run(options),
            Command::Runs(options) => runs::run(options),
            Command::Eval(options) => eval::run(options),
            Command::Predict(options) => predict::run(options),
            Command::Restore(options) => restore::run(options),
            Command::Sample(options) => sample::run(options),
            Command::Interpolate(options) => interpolate::run(options),
            Command::Encode(options) => encode::run(options),
            Command::Decode(options) => decode::run(options),
            Command::Summary(options) => summary::run(options),
            Command::Inspect(options) => inspect::run(options),
            Command::Convert(options) => convert::run(options),
            Command::Export(options) => export::run(options),
            Command::Init(options) => init::run(options),
            Command::Doctor(options) => doctor::run(options),
            Command::Bench(options) => bench::run(options),
            Command::Completions(options) => completions::run(options),
        };
        outcome.and_then(|()| console::complete())
    }
}
