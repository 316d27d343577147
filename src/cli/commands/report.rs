//! `tikhonov report`: runs and sweeps side by side, as one HTML page.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use super::outputs::may_write;
use crate::report::{GENERATOR, Report};
use crate::util::atomic_file;
use crate::util::console::print_out;
use crate::util::exit_code::{ExitCode, WithExitCode};

/// Show runs and sweeps side by side, as one HTML page.
///
/// Loss, penalty, metrics, learning rate and λ over time, each layer's norm and zeros, confusion matrices,
/// pictures, what differs between the configs; for a sweep what was chosen and why. The page needs no network
/// and no other file.
#[derive(Args, Debug)]
pub struct Options {
    /// Run folders and sweep folders
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// The page
    #[arg(long, short, value_name = "FILE", default_value = "report.html")]
    pub output: PathBuf,
    /// Replace a file that is no report
    #[arg(long)]
    pub force: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let page = Report::of(&options.runs)?.page()?;
    // An earlier report may always be made anew.
    may_write(&options.output, std::iter::empty(), options.force || is_report(&options.output))?;
    let at = || format!("writing {}", options.output.display());
    atomic_file::write_bytes(&options.output, page.as_bytes()).with_exit_code(ExitCode::Storage, at)?;
    print_out!("{}", options.output.display());
    Ok(())
}

fn is_report(path: &Path) -> bool {
    let start = |path| -> std::io::Result<Vec<u8>> {
        let mut start = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(std::fs::File::open(path)?, 1024), &mut start)?;
        Ok(start)
    };
    path.is_file() && start(path).is_ok_and(|start| String::from_utf8_lossy(&start).contains(GENERATOR))
}
