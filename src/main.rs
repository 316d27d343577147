//! The process: parse, run, report, exit code.

use std::process::ExitCode;

use clap::Parser;
use tikhonov::cli::{Cli, report};

fn main() -> ExitCode {
    report::install_panic_hook();
    let cli = Cli::parse();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report::failure(&error, cli.debug),
    }
}
