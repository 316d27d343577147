//! `tikhonov preview`: a sheet of what the network will see, before anything is trained.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use image::ImageFormat;

use super::{ConfigOptions, outputs};
use crate::data::Split;
use crate::libtorch::device::DeviceSpec;
use crate::train::preview::preview;
use crate::train::session::{ModelPlan, Session};
use crate::util::atomic_file;
use crate::util::console::{print_err, print_out};
use crate::util::exit_code::{ExitCode, WithExitCode};

/// Draw training samples as the network will see them.
///
/// A row for each of the first samples of epoch 1: as it is loaded, then with the augmentation of each epoch,
/// the normalisation undone. Masks tint their pictures in the colours of Pascal VOC, targets that are pictures
/// stand beside their inputs; of mixtures, the partners are among the samples shown.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    config: ConfigOptions,
    /// The sheet, a PNG file
    #[arg(short, long, value_name = "FILE", default_value = "preview.png")]
    output: PathBuf,
    /// Samples, a row each
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    samples: u32,
    /// Epochs, a column each
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=64))]
    epochs: u32,
    /// Replace a file that is there already
    #[arg(long)]
    force: bool,
}

pub fn run(options: &Options) -> Result<()> {
    outputs::may_write(&options.output, std::iter::empty(), options.force)?;
    let config = options.config.load([])?;
    config.validate_data(&[Split::Train])?;
    let device = DeviceSpec::Cpu.resolve()?;
    let plan = ModelPlan::of(&config)?;
    let session = Session::open_only(config, plan, device, Split::Train, None)?;
    let set = session.train()?;
    for note in set.notes.iter().cloned().chain(session.mask_notes("train", set)) {
        print_err!("{note}");
    }
    let sheet = preview(&session, options.samples as usize, options.epochs.into())?;
    let bytes = sheet.encode(ImageFormat::Png)?;
    let shown = options.output.display();
    atomic_file::write_with_folders(&options.output, &bytes)
        .with_exit_code(ExitCode::Storage, || format!("writing {shown}"))?;
    print_out!("{shown}: the first samples of epoch 1, as loaded and in epochs 1 to {}", options.epochs);
    Ok(())
}
