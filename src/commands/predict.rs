//! `tikhonov predict`: what a trained network says of files.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::MachineOptions;

/// Predict with a trained run.
#[derive(Args, Debug)]
pub struct Options {
    /// A run folder
    pub run: PathBuf,
    /// Images, folders of images, or tables
    #[arg(required = true, value_name = "IN")]
    pub inputs: Vec<PathBuf>,
    #[command(flatten)]
    pub machine: MachineOptions,
}

pub fn run(_options: &Options) -> Result<()> {
    anyhow::bail!("prediction is not built yet")
}
