//! `tikhonov doctor`: what this machine offers, and whether the arithmetic is right.

use anyhow::Result;
use clap::Args;

/// Check libtorch, the CPU and the GPUs.
///
/// Exits non-zero when something is broken; a machine without a GPU is not broken.
#[derive(Args, Debug)]
pub struct Options {
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub fn run(_options: &Options) -> Result<()> {
    anyhow::bail!("the doctor is not built yet")
}
