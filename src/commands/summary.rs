//! `tikhonov summary`: the network layer by layer, and the penalty that each parameter gets.

use anyhow::Result;
use clap::Args;

use super::ConfigOptions;

/// Show the layers, parameters and penalties of a config.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    pub config: ConfigOptions,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let _config = options.config.load([])?;
    anyhow::bail!("the summary is not built yet")
}
