//! `tikhonov decode`: the images of files that `tikhonov encode` wrote.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use image::ImageFormat;
use indicatif::ProgressBar;

use super::TrainedOptions;
use super::outputs::{each, jobs, write_photo};
use crate::data::sources::folder::files_at;
use crate::util::exit_code::{ExitCode, WithExitCode};
use crate::util::regular_file;

/// Bytes that one file may have.
const MAX_FILE: u64 = 1 << 30;

/// Bring back images that `encode` compressed, with the run that compressed them.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    pub trained: TrainedOptions,
    /// Files that `encode` wrote, and folders of them at any depth
    #[arg(required = true, value_name = "FILE")]
    pub inputs: Vec<PathBuf>,
    /// A folder, for .png files; or a picture, for one file
    #[arg(long, short, value_name = "OUT")]
    pub output: PathBuf,
    /// Replace files that are there already, the inputs excepted
    #[arg(long)]
    pub force: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let out = &options.output;
    let is_file = !out.is_dir() && ImageFormat::from_path(out).is_ok();
    let jobs = jobs(&options.inputs, out, is_file, options.force, files, |path| path.with_extension("png"))?;
    let compressor = options.trained.compressor()?;
    each(&jobs, &ProgressBar::hidden(), "files could not be decoded", ExitCode::Checkpoint, |job| {
        let file = read(&job.input)?;
        let photo = compressor.decode(&file).with_exit_code(ExitCode::Checkpoint, || job.input.display())?;
        write_photo(&photo, &job.output)?;
        Ok(format!("{job}: {}x{}", photo.width, photo.height))
    })
}

fn files(path: &Path) -> Result<(Vec<PathBuf>, Option<String>)> {
    Ok((files_at(path)?, None))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    regular_file::read(path, MAX_FILE).with_exit_code(ExitCode::Checkpoint, || path.display())
}
