//! `tikhonov init`: the shipped models and configs as files to start from.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::util::builtin;
use crate::util::exit_code::{ExitCode, WithExitCode};

/// Write the shipped models and configs into a folder.
///
/// Files that are there already stay as they are unless --force is given.
#[derive(Args, Debug)]
pub struct Options {
    /// The folder; it is made if need be
    dir: PathBuf,
    /// Replace files that are there already
    #[arg(long)]
    force: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let models = builtin::models().map(|name| ("models", name, builtin::model(name)));
    let configs = builtin::configs().map(|name| ("configs", name, builtin::config(name)));
    let mut out = std::io::stdout().lock();
    let mut kept = 0;
    for (folder, name, text) in models.chain(configs) {
        let path = options.dir.join(folder).join(format!("{name}.yaml"));
        let context = || format!("writing {}", path.display());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_exit_code(ExitCode::Storage, context)?;
        }
        let mut open = fs::OpenOptions::new();
        open.write(true);
        if options.force {
            open.create(true).truncate(true)
        } else {
            open.create_new(true)
        };
        match open.open(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                kept += 1;
                writeln!(out, "kept   {}", path.display())?;
            }
            file => {
                let mut file = file.with_exit_code(ExitCode::Storage, context)?;
                file.write_all(text.unwrap_or_default().as_bytes())
                    .with_exit_code(ExitCode::Storage, context)?;
                writeln!(out, "wrote  {}", path.display())?;
            }
        }
    }
    writeln!(
        out,
        "a config takes an edited model by `model: {{file: …/models/NAME.yaml}}`; `name` is the one within the program"
    )?;
    if kept > 0 {
        writeln!(out, "{kept} file(s) were there already; --force replaces them")?;
    }
    Ok(())
}
