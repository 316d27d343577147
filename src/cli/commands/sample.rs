//! `tikhonov sample`: images that a trained variational autoencoder makes of codes drawn from its prior.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::TrainedOptions;
use super::outputs::{format, may_write, write_photo};
use crate::inference::sampler::Sampler;
use crate::util::console::{print_err, print_out};

/// Draw images from a trained generation run, as one picture.
///
/// The codes are those of `torch.manual_seed(SEED); torch.randn(COUNT, …)`. With --grid they lie on a plane
/// instead.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    pub trained: TrainedOptions,
    /// The picture to write
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,
    /// How many images
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub count: u32,
    /// Seed of the draw
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Images in a row; as many as make it square where absent
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub columns: Option<u32>,
    /// N × N images of codes whose first two values cover the prior evenly, the others being 0
    #[arg(long, value_name = "N", conflicts_with_all = ["count", "seed", "columns"],
        value_parser = clap::value_parser!(u32).range(1..=100))]
    pub grid: Option<u32>,
    /// Replace the file if it is there already
    #[arg(long)]
    pub force: bool,
}

pub fn run(options: &Options) -> Result<()> {
    format(&options.output)?;
    may_write(&options.output, std::iter::empty(), options.force)?;
    let trained = options.trained.open()?;
    let generator = Sampler::new(&trained, &options.trained.run)?;
    print_err!("{}", trained.weights.name());
    let (codes, columns, what) = match options.grid {
        Some(side) => {
            let rest = match generator.code() {
                [2] => "",
                _ => ", the others 0",
            };
            let what =
                format!("{side}x{side} images over the first two of {:?} values{rest}", generator.code());
            (generator.plane(side.into())?, side, what)
        }
        None => {
            let columns = options.columns.unwrap_or_else(|| f64::from(options.count).sqrt().ceil() as u32);
            let what =
                format!("{} images of codes {:?}, seed {}", options.count, generator.code(), options.seed);
            (generator.prior(options.count.into(), options.seed)?, columns.min(options.count), what)
        }
    };
    let photo = generator.grid(&codes, columns as usize)?;
    write_photo(&photo, &options.output)?;
    print_out!("{} ({}x{}): {what}", options.output.display(), photo.width, photo.height);
    Ok(())
}
