//! `tikhonov completions`: tab completion for a shell.

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;

/// Print the completion script of a shell.
///
/// bash: tikhonov completions bash > ~/.local/share/bash-completion/completions/tikhonov
#[derive(Args, Debug)]
pub struct Options {
    shell: Shell,
}

pub fn run(options: &Options) -> Result<()> {
    clap_complete::generate(options.shell, &mut Cli::command(), "tikhonov", &mut std::io::stdout());
    Ok(())
}
