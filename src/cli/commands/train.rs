//! `tikhonov train`: one run, from its config to its result.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::{ConfigOptions, MachineOptions};
use crate::config::Override;
use crate::data::{DatasetCache, Split};
use crate::libtorch::machine::keep_memory;
use crate::train::run::{RunOptions, train_run};
use crate::train::session::ModelPlan;
use crate::train::training_loop::NeverPrune;
use crate::util::console::{self, print_err, print_out};
use crate::util::signals::Stop;

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
    /// Go on from the run folder's last checkpoint; start where there is none
    #[arg(long)]
    pub resume: bool,
    /// Replace the run that is in the run folder: its files, and no others
    #[arg(long, conflicts_with = "resume")]
    pub force: bool,
    /// Write event files for TensorBoard into the run folder
    #[arg(long)]
    pub tensorboard: bool,
    /// Check everything but the data, print the config with all defaults filled in, and stop
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
        let tensorboard = self.tensorboard.then(|| Override::new("--tensorboard", "train.tensorboard", true));
        self.machine.overrides().chain(seed).chain(output).chain(tensorboard)
    }
}

pub fn run(options: &Options) -> Result<()> {
    let mut config = options.config.load(options.overrides())?;
    config.validate_data(&Split::ALL)?;
    if options.dry_run {
        let initial = ModelPlan::of(&config)?.initial_with_optimizer(&mut config)?;
        if !options.quiet {
            initial.iter().flat_map(|initial| &initial.notes).for_each(|note| print_err!("{note}"));
        }
        console::out(format_args!("{}", config.resolved()?));
        return Ok(());
    }
    keep_memory();
    let stop = Stop::on_signals()?;
    let how = RunOptions { resume: options.resume, force: options.force, quiet: options.quiet, plots: true };
    let result = train_run(config, how, &mut DatasetCache::default(), &stop, &mut NeverPrune)?;
    if let Some(result) = result {
        print_out!("{result}");
    }
    Ok(())
}
