//! `tikhonov encode`: images into small files, by a trained compressor.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use indicatif::ProgressBar;

use super::TrainedOptions;
use super::outputs::{each, jobs};
use crate::data::pictures_at;
use crate::util::atomic_file;
use crate::util::console::print_out;
use crate::util::exit_code::ExitCode;

/// What the files are called.
const EXTENSION: &str = "tikc";

/// Compress images with a trained compression run; `decode` brings them back.
///
/// Prints bits per pixel of the whole file and PSNR of what comes back: 8 bits, in the colours of the
/// network, alpha laid on white.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    pub trained: TrainedOptions,
    /// Images, and folders of images at any depth
    #[arg(required = true, value_name = "IMAGE")]
    pub inputs: Vec<PathBuf>,
    /// A folder, for files that end with .tikc; or a file with an extension, for one image
    #[arg(long, short, value_name = "OUT")]
    pub output: PathBuf,
    /// Replace files that are there already, the inputs excepted
    #[arg(long)]
    pub force: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let out = &options.output;
    let is_file = !out.is_dir() && out.extension().is_some();
    let jobs = jobs(&options.inputs, out, is_file, options.force, pictures_at, |path| {
        path.with_extension(EXTENSION)
    })?;
    let compressor = options.trained.compressor()?;
    let mut scores = Vec::new();
    let outcome = each(&jobs, &ProgressBar::hidden(), "files could not be encoded", ExitCode::Data, |job| {
        let compressed = compressor.encode(&job.input)?;
        atomic_file::write_with_folders(&job.output, &compressed.file)?;
        let (rate, psnr) = (compressed.bits_per_pixel(), compressed.psnr);
        scores.push((rate, psnr));
        let (width, height, bytes) = (compressed.width, compressed.height, compressed.file.len());
        Ok(format!("{job}: {width}x{height}, {bytes} bytes, {rate:.4} bits per pixel, {psnr:.3} dB"))
    });
    if scores.len() > 1 {
        let mean = |part: fn(&(f64, f64)) -> f64| scores.iter().map(part).sum::<f64>() / scores.len() as f64;
        print_out!("mean of {}: {:.4} bits per pixel, {:.3} dB", scores.len(), mean(|s| s.0), mean(|s| s.1));
    }
    outcome
}
