//! `tikhonov train`: one run, from its config to its result.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::config::Override;

use super::{ConfigOptions, MachineOptions};

/// Train the network of a config.
///
/// Metrics, log and checkpoints go into the run folder. Ctrl-C saves and exits with 75; --resume goes on.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    pub config: ConfigOptions,
    #[command(flatten)]
    pub machine: MachineOptions,
    /// Seed of weights, batch order and augmentation
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// The run folder
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Go on from the run folder's last checkpoint
    #[arg(long)]
    pub resume: bool,
    /// Check everything, print the config with all defaults filled in, and stop
    #[arg(long)]
    pub dry_run: bool,
    /// No progress on the terminal; the run folder keeps the log
    #[arg(long, short)]
    pub quiet: bool,
}

impl Options {
    fn overrides(&self) -> impl Iterator<Item = Override> {
        let seed = self.seed.map(|seed| Override::new("--seed", "seed", seed));
        let output = self.output.as_ref();
        let output =
            output.map(|path| Override::new("--output", "output", path.to_string_lossy().into_owned()));
        self.machine.overrides().chain(seed).chain(output)
    }
}

pub fn run(options: &Options) -> Result<()> {
    let config = options.config.load(options.overrides())?;
    if options.dry_run {
        print!("{}", config.resolved()?);
        return Ok(());
    }
    anyhow::bail!("training is not built yet")
}
