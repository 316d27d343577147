//! `tikhonov train`: one run, from its config to its result.

use std::path::PathBuf;
use std::rc::Rc;

use anyhow::Result;
use clap::Args;

use super::{ConfigOptions, MachineOptions};
use crate::config::Override;
use crate::data::{DatasetCache, Split};
use crate::libtorch::device::DeviceSpec;
use crate::libtorch::exit_fast;
use crate::libtorch::machine::keep_memory;
use crate::train::distributed::{ProcessGroup, launch};
use crate::train::run::{RunOptions, train_as_rank, train_run};
use crate::train::session::ModelPlan;
use crate::train::training_loop::NeverPrune;
use crate::util::console::{self, print_err, print_out};
use crate::util::exit_code::{self, ExitCode, fail};
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
    /// Share the run between processes on this machine, one for each device: cpu,cpu or cuda:0,cuda:1
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with = "device")]
    pub devices: Vec<DeviceSpec>,
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

/// All CPU, or GPUs that are not the same.
fn checked(devices: &[DeviceSpec]) -> Result<Vec<DeviceSpec>> {
    let is_cpu = devices.iter().filter(|device| **device == DeviceSpec::Cpu).count();
    let is_twice = (1..devices.len()).any(|at| devices[..at].contains(&devices[at]));
    let wrong = match is_cpu {
        _ if devices.contains(&DeviceSpec::Auto) => "`auto` is no device of its own",
        0 if is_twice => "a GPU serves one process",
        more if more > 0 && more < devices.len() => "the CPU and GPUs do not go together",
        _ => return Ok(devices.to_vec()),
    };
    Err(fail(ExitCode::Usage, format!("--devices: {wrong}; say cpu,cpu or cuda:0,cuda:1")))
}

/// The arguments of one of the processes.
fn without_devices(args: impl Iterator<Item = String>) -> Vec<String> {
    let mut kept = Vec::new();
    let mut args = args;
    while let Some(arg) = args.next() {
        if arg == "--devices" {
            args.next();
        } else if !arg.starts_with("--devices=") {
            kept.push(arg);
        }
    }
    kept
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
    if !options.devices.is_empty() {
        let code = launch(&checked(&options.devices)?, &without_devices(std::env::args().skip(1)))?;
        exit_fast(code);
    }
    keep_memory();
    let stop = Stop::on_signals()?;
    let how = RunOptions { resume: options.resume, force: options.force, quiet: options.quiet, plots: true };
    let cache = &mut DatasetCache::default();
    let result = match ProcessGroup::from_env()? {
        Some(ranks) => {
            ranks.settle_threads(&mut config.spec.threads);
            let is_first = ranks.is_first();
            let result = train_as_rank(config, how, cache, &stop, Rc::new(ranks));
            if let Err(error) = &result
                && exit_code::code(error) == ExitCode::Interrupted as u8
                && !is_first
            {
                // Rank 0 says it.
                exit_fast(ExitCode::Interrupted as u8);
            }
            result?
        }
        None => train_run(config, how, cache, &stop, &mut NeverPrune)?,
    };
    if let Some(result) = result {
        print_out!("{result}");
    }
    Ok(())
}
