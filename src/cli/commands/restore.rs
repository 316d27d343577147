//! `tikhonov restore`: a trained restoration network on image files.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use image::ImageFormat;
use indicatif::ProgressBar;
use tch::Tensor;

use super::TrainedOptions;
use super::outputs::{Job, TileOptions, bar, each, jobs, tile_progress, write_photo};
use crate::data::image::photo::Photo;
use crate::data::pictures_at;
use crate::inference::restorer::Restorer;
use crate::metrics::image::psnr;
use crate::tasks::TaskSpec;
use crate::util::console::{print_err, print_out};
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::rng::{CounterRng, RngStream};

/// Restore images with a trained reconstruction network.
///
/// Bit depth and alpha stay. Large images are computed in tiles that overlap, so that no seam shows. Files of
/// lossy formats become .png. What cannot be read is reported and skipped; the exit code is then 3.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    pub trained: TrainedOptions,
    /// Images, and folders of images at any depth
    #[arg(required = true, value_name = "IN")]
    pub inputs: Vec<PathBuf>,
    /// A folder; or a file, for one image
    #[arg(long, short, value_name = "OUT")]
    pub output: PathBuf,
    /// Add Gaussian noise of this σ (0 to 255) first, and print PSNR before and after
    #[arg(long, value_name = "SIGMA")]
    pub add_noise: Option<f64>,
    /// Seed of --add-noise
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Average over the eight flips and turns of the image: slower by eight, better by a little
    #[arg(long)]
    pub ensemble: bool,
    #[command(flatten)]
    pub tiles: TileOptions,
    /// Replace files that are there already, the inputs excepted
    #[arg(long)]
    pub force: bool,
}

pub fn run(options: &Options) -> Result<()> {
    if let Some(sigma) = options.add_noise.filter(|sigma| !(*sigma >= 0.0 && sigma.is_finite())) {
        return Err(fail(
            ExitCode::Usage,
            format!("--add-noise {sigma}: expected a number of levels, 0 or more"),
        ));
    }
    let trained = options.trained.open()?;
    let TaskSpec::Reconstruction(task) = &trained.config.spec.task else {
        let place = options.trained.run.display();
        let message = match &trained.config.spec.task {
            TaskSpec::Segmentation(_) => {
                format!("{place} is a segmentation: `tikhonov predict {place} IN -o DIR` writes its masks")
            }
            _ => format!("{place} is no reconstruction; `predict` answers for it"),
        };
        return Err(fail(ExitCode::Usage, message));
    };
    let out = &options.output;
    let is_file = !out.is_dir() && ImageFormat::from_path(out).is_ok();
    let jobs = jobs(&options.inputs, out, is_file, options.force, pictures_at, lossless)?;
    let network = trained.network()?;
    let mut restorer = Restorer::new(&trained.plan.model, &network, task)?;
    restorer.ensemble = options.ensemble;
    let tile = options.tiles.side(|bytes| restorer.tile(bytes));
    print_err!("{}", trained.weights.name());

    let bar = bar(jobs.len());
    let mut scores = Vec::new();
    let mut images = 0..;
    let outcome = each(&jobs, &bar, "images could not be restored", ExitCode::Data, |job| {
        let image = images.next().unwrap_or_default();
        let photo = Photo::read(&job.input).with_exit_code(ExitCode::Data, || job.input.display())?;
        // Each has noise of its own.
        let seed = CounterRng::new(options.seed, 0, image, RngStream::Generate).bits();
        let noise = options.add_noise.map(|sigma| (sigma, seed));
        let (line, score) = one(&restorer, job, &photo, noise, tile, &bar)
            .with_context(|| job.input.display().to_string())?;
        scores.extend(score);
        Ok(line)
    });
    if scores.len() > 1 {
        let mean = |part: fn(&(f64, f64)) -> f64| scores.iter().map(part).sum::<f64>() / scores.len() as f64;
        print_out!("mean of {}: {:.3} dB before, {:.3} dB after", scores.len(), mean(|s| s.0), mean(|s| s.1));
    }
    outcome
}

/// Restores one image; returns a line to print, and PSNR before and after where noise was added.
fn one(
    restorer: &Restorer,
    job: &Job,
    photo: &Photo,
    noise: Option<(f64, u64)>,
    tile: usize,
    bar: &ProgressBar,
) -> Result<(String, Option<(f64, f64)>)> {
    let started = Instant::now();
    let (restored, noisy) = restorer.restore(photo, noise, tile, tile_progress(bar, job))?;
    let seconds = started.elapsed().as_secs_f64();
    let megapixels = (photo.width * photo.height) as f64 / 1e6;
    let mut text =
        format!("{job} ({}x{}, {:.2} megapixels/s)", restored.width, restored.height, megapixels / seconds);
    let mut score = None;
    if let (Some(noisy), true) = (noisy, (restored.width, restored.height) == (photo.width, photo.height)) {
        let clean = photo.part(0, 0, photo.height, photo.width)?;
        let after = restored.part(0, 0, photo.height, photo.width)?;
        let db = |image: &Tensor| psnr(image, &clean).double_value(&[0]);
        let (before, after) = (db(&noisy), db(&after));
        text += &format!(": {before:.3} dB before, {after:.3} dB after");
        score = Some((before, after));
    }
    write_photo(&restored, &job.output)?;
    Ok((text, score))
}

/// The same name, in a format that keeps every level.
fn lossless(path: &Path) -> PathBuf {
    match ImageFormat::from_path(path) {
        Ok(ImageFormat::Png | ImageFormat::Tiff | ImageFormat::Bmp | ImageFormat::Pnm) => path.to_owned(),
        _ => path.with_extension("png"),
    }
}
