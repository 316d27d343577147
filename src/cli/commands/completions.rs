//! `tikhonov completions`: tab completion for a shell.

use std::io::Write;

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
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut Cli::command(), "tikhonov", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}
