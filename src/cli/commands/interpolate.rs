//! `tikhonov interpolate`: the images between two, by the codes that a trained variational autoencoder gives
//! them.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use super::TrainedOptions;
use super::outputs::{format, may_write, write_photo};
use crate::inference::sampler::{Route, Sampler, between};
use crate::util::console::{print_err, print_out};

/// Go from one image to another through the codes of a trained generation run, as one picture.
///
/// The codes are the means that the encoder gives; the first and the last image are the reconstructions of
/// the two.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    pub trained: TrainedOptions,
    /// Where to start; brought to the network's size
    #[arg(value_name = "IMAGE_A")]
    pub from: PathBuf,
    /// Where to end
    #[arg(value_name = "IMAGE_B")]
    pub to: PathBuf,
    /// The picture to write
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,
    /// How many images, the two ends included
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub steps: u32,
    /// Along an arc about the origin, or straight
    #[arg(long, value_enum, default_value = "spherical")]
    pub route: Route,
    /// Replace the file if it is there already, the inputs excepted
    #[arg(long)]
    pub force: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let Options { from, to, output, steps, route, .. } = options;
    format(output)?;
    may_write(output, [from, to].map(Path::new).into_iter(), options.force)?;
    let trained = options.trained.open()?;
    let generator = Sampler::new(&trained, &options.trained.run)?;
    print_err!("{}", trained.weights.name());
    let codes = between(&generator.mean(from)?, &generator.mean(to)?, (*steps).into(), *route);
    let photo = generator.grid(&codes, *steps as usize)?;
    write_photo(&photo, output)?;
    print_out!("{} ({}x{}): {steps} images", output.display(), photo.width, photo.height);
    Ok(())
}
