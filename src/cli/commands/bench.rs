//! `tikhonov bench`: how fast a config trains on this machine, and where the time goes.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::{ConfigOptions, MachineOptions, open_to_measure};
use crate::config::Override;
use crate::train::bench::{Extent, Report, bench};
use crate::train::run_folder::LockedFolder;
use crate::train::trainer::Trainer;
use crate::util::console::{self, print_out};
use crate::util::exit_code::{ExitCode, WithExitCode};

/// Measure how fast a config trains: steps, phases, memory, evaluation.
///
/// Trains as `train` does, and keeps nothing. Phases wait for a GPU; the speed without these waits is printed
/// as well.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    pub config: ConfigOptions,
    #[command(flatten)]
    pub machine: MachineOptions,
    /// Optimiser steps to measure
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub steps: u32,
    /// Steps before them, which do not count
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub warmup: u32,
    /// Only load the batches: how fast the data comes by itself
    #[arg(long, conflicts_with = "checkpoint")]
    pub data_only: bool,
    /// Leave out the evaluation
    #[arg(long)]
    pub no_eval: bool,
    /// Save and load a checkpoint as well, in the folder for temporary files
    #[arg(long)]
    pub checkpoint: bool,
    /// A Chrome trace of the measured steps, for chrome://tracing or ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(options: &Options) -> Result<()> {
    // Training has a folder to write to; this one goes when the command ends.
    let folder = tempfile::tempdir().with_exit_code(ExitCode::Storage, || "making a temporary folder")?;
    let output = Override::new("bench", "output", folder.path().to_string_lossy().into_owned());
    let no_pictures = Override::new("bench", "train.pictures", 0);
    let config = options.config.load(options.machine.overrides().chain([output, no_pictures]))?;
    let (session, start) = open_to_measure(config)?;
    let mut run = Trainer::new(&session, LockedFolder::take(folder.path())?, start)?;
    let extent = Extent {
        steps: options.steps as usize,
        warmup: options.warmup as usize,
        data_only: options.data_only,
        evaluation: !(options.no_eval || options.data_only),
        checkpoint: options.checkpoint,
    };
    let report = bench(&session, &mut run, extent)?;
    if let Some(path) = &options.profile {
        report
            .write_trace(path)
            .with_exit_code(ExitCode::Storage, || format!("writing {}", path.display()))?;
    }
    match options.json {
        true => print_out!("{}", serde_json::to_string_pretty(&report)?),
        false => console::out(format_args!("{}", text(&report)?)),
    }
    Ok(())
}

fn text(report: &Report) -> Result<String> {
    let mut text = String::new();
    let Report { device, threads, steps, step_ms, .. } = report;
    writeln!(text, "{device}, {threads} threads, {steps} steps of {} samples in all", report.samples)?;
    writeln!(
        text,
        "  step         {:.2} ms median ({:.2} to {:.2}: 10 % to 90 %), {:.0} samples/s",
        step_ms.median, step_ms.p10, step_ms.p90, report.images_per_s
    )?;
    for (name, phase) in &report.phases.0 {
        writeln!(text, "  {name:<12} {:.2} ms ({:.1} %)", phase.ms, phase.share * 100.0)?;
    }
    if let Some(free) = &report.free_running {
        writeln!(text, "  unwatched    {:.2} ms a step, {:.0} samples/s", free.step_ms, free.images_per_s)?;
    }
    if let Some(bytes) = report.peak_memory_bytes {
        writeln!(text, "  peak memory  {:.0} MiB", bytes as f64 / (1u64 << 20) as f64)?;
    }
    if let Some(own) = &report.evaluation {
        writeln!(
            text,
            "  evaluation   {:.0} samples/s ({} of {} in {:.2} s)",
            own.images_per_s, own.samples, own.split, own.seconds
        )?;
    }
    if let Some(own) = &report.checkpoint {
        writeln!(
            text,
            "  checkpoint   saved in {:.1} ms, loaded in {:.1} ms",
            own.save_s * 1e3,
            own.load_s * 1e3
        )?;
    }
    Ok(text)
}
