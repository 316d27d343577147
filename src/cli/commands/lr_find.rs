//! `tikhonov lr-find`: the learning-rate range test of a config.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use super::{ConfigOptions, MachineOptions, open_to_measure, outputs};
use crate::config::Override;
use crate::plot::png::png;
use crate::plot::standalone;
use crate::train::lr_range::{csv, figure, lr_range, suggestion};
use crate::train::run_folder::LockedFolder;
use crate::train::trainer::Trainer;
use crate::util::atomic_file;
use crate::util::console::print_out;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};

/// Find a learning rate: train some steps of a config while the rate rises, and plot the loss.
///
/// The rate rises exponentially from --min-lr to --max-lr over --steps steps, as in Lightning's `lr_find`. What is
/// suggested is where the smoothed loss falls most. Nothing is kept but the plot and its numbers.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    config: ConfigOptions,
    #[command(flatten)]
    machine: MachineOptions,
    /// The plot, a PNG file; its numbers are beside it, as .csv
    #[arg(short, long, value_name = "FILE", default_value = "lr-find.png")]
    output: PathBuf,
    /// The first learning rate
    #[arg(long, value_name = "LR", default_value_t = 1e-8)]
    min_lr: f64,
    /// The last learning rate
    #[arg(long, value_name = "LR", default_value_t = 1.0)]
    max_lr: f64,
    /// Optimiser steps
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..))]
    steps: u32,
    /// End where the smoothed loss exceeds its least by this factor; 0 never ends
    #[arg(long, value_name = "FACTOR", default_value_t = 4.0)]
    threshold: f64,
    /// Replace files that are there already
    #[arg(long)]
    force: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let &Options { min_lr, max_lr, steps, threshold, .. } = options;
    if !(0.0 < min_lr && min_lr < max_lr && max_lr.is_finite()) {
        let message =
            format!("the rate rises from --min-lr {min_lr} to --max-lr {max_lr}: give 0 < MIN < MAX");
        return Err(fail(ExitCode::Usage, message));
    }
    let table = options.output.with_extension("csv");
    for file in [&options.output, &table] {
        outputs::may_write(file, std::iter::empty(), options.force)?;
    }
    let folder = tempfile::tempdir().with_exit_code(ExitCode::Storage, || "making a temporary folder")?;
    let spec = options.config.load([])?.spec;
    let mut optimizer = serde_json::to_value(&spec.optimizer)?;
    if let Some(own) = optimizer.as_object_mut().and_then(|choice| choice.values_mut().next()) {
        own["lr"] = json!(min_lr);
    }
    let gamma = (max_lr / min_lr).powf(1.0 / f64::from(steps - 1));
    let set = |key, value: Value| Override::new("lr-find", key, value);
    let overrides = [
        set("output", json!(folder.path().to_string_lossy())),
        set("optimizer", optimizer),
        set("schedule", json!({"exponential": {"gamma": gamma, "by": "step"}})),
        set("train.epochs", Value::Null),
        set("train.hours", Value::Null),
        set("train.steps", json!(steps)),
        set("train.log_every", json!(1)),
        set("train.pictures", json!(0)),
    ];
    let config = options.config.load(options.machine.overrides().chain(overrides))?;
    let (session, start) = open_to_measure(config)?;
    let mut run = Trainer::new(&session, LockedFolder::take(folder.path())?, start)?;
    let points = lr_range(&mut run, steps as usize, (threshold > 0.0).then_some(threshold))?;
    let found = suggestion(&points);
    let svg = figure(&points, found)
        .with_exit_code(ExitCode::Numeric, || "no step has a loss that is a number: nothing to plot")?;
    for (file, bytes) in [(&options.output, png(&standalone(&svg))?), (&table, csv(&points)?)] {
        atomic_file::write_with_folders(file, &bytes)
            .with_exit_code(ExitCode::Storage, || format!("writing {}", file.display()))?;
    }
    match found {
        Some(lr) => print_out!("the loss falls most at a learning rate of {lr:.2e}"),
        None => print_out!("too few steps for a suggestion: lower --min-lr, or raise --steps or --threshold"),
    }
    print_out!("{} steps in {} and {}", points.len(), options.output.display(), table.display());
    Ok(())
}
