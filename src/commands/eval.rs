//! `tikhonov eval`: the metrics of trained runs.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::MachineOptions;

/// Evaluate trained runs on their test set.
#[derive(Args, Debug)]
pub struct Options {
    /// Run folders
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    #[command(flatten)]
    pub machine: MachineOptions,
}

pub fn run(_options: &Options) -> Result<()> {
    anyhow::bail!("evaluation is not built yet")
}
