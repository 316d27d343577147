//! The command line: what it accepts, and which command gets it.

pub mod commands;
pub mod errors;

use anyhow::Result;
use clap::Parser;

use crate::cli::commands::Command;
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
7 storage, 8 another process of the job failed, 75 interrupted but saved (--resume goes on),
130 stopped at once.";

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

impl Cli {
    pub fn run(&self) -> Result<()> {
        if !self.command.saves_on_signal() {
            signals::clean_up_on_signals();
        }
        self.command.run().and_then(|()| console::complete())
    }
}
