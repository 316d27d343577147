//! Where commands write files: never over an input, over anything else only with --force.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use image::ImageFormat;
use indicatif::{ProgressBar, ProgressStyle};
use tch::{Device, Tensor};

use crate::data::image::photo::Photo;
use crate::util::atomic_file;
use crate::util::console::{print_err, print_out};
use crate::util::exit_code::{ExitCode, WithExitCode, fail};

/// An input and its output.
pub struct Job {
    pub input: PathBuf,
    pub output: PathBuf,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.input.display(), self.output.display())
    }
}

/// What goes where: `list` finds the files at an input, with a line on what it passes over. `out` is a file,
/// or a folder in which `rename` names the place of each input. Nothing is written if an output is an input,
/// is there already and `force` is not given, or is meant for two.
pub fn jobs(
    inputs: &[PathBuf],
    out: &Path,
    is_file: bool,
    force: bool,
    list: impl Fn(&Path) -> Result<(Vec<PathBuf>, Option<String>)>,
    rename: impl Fn(&Path) -> PathBuf,
) -> Result<Vec<Job>> {
    let mut jobs: Vec<Job> = Vec::new();
    for input in inputs {
        let root = if input.is_dir() { input.as_path() } else { input.parent().unwrap_or(Path::new("")) };
        let (files, note) = list(input)?;
        if let Some(note) = note {
            print_err!("{note}");
        }
        for file in files {
            let relative = file.strip_prefix(root).unwrap_or(&file);
            let output = if is_file { out.to_owned() } else { out.join(rename(relative)) };
            jobs.push(Job { input: file, output });
        }
    }
    if jobs.is_empty() {
        return Err(fail(ExitCode::Data, format!("there is no file to work on in {}", inputs[0].display())));
    }
    let mut outputs = HashMap::new();
    for job in &jobs {
        if let Some(other) = outputs.insert(&job.output, &job.input) {
            let (one, two, output) = (other.display(), job.input.display(), job.output.display());
            let message =
                format!("{one} and {two} would both become {output}; give a folder, or one at a time");
            return Err(fail(ExitCode::Usage, message));
        }
        may_write(&job.output, jobs.iter().map(|job| job.input.as_path()), force)?;
    }
    Ok(jobs)
}

/// Exit 2 where `output` is one of `inputs`, or is there already and `force` is not given.
pub fn may_write<'a>(output: &Path, mut inputs: impl Iterator<Item = &'a Path>, force: bool) -> Result<()> {
    let Ok(there) = output.canonicalize() else { return Ok(()) };
    let output = output.display();
    if inputs.any(|input| input.canonicalize().is_ok_and(|input| input == there)) {
        let message =
            format!("{output} is an input, and inputs are never overwritten; choose another output");
        return Err(fail(ExitCode::Usage, message));
    }
    if there.is_dir() {
        return Err(fail(ExitCode::Usage, format!("{output} is a folder; name a file in it")));
    }
    if !force {
        return Err(fail(ExitCode::Usage, format!("{output} is there already; --force replaces it")));
    }
    Ok(())
}

/// The format of a picture to be written, by its name.
pub fn format(output: &Path) -> Result<ImageFormat> {
    ImageFormat::from_path(output).with_exit_code(ExitCode::Usage, || {
        format!("{}: give it the name of a picture, such as a .png", output.display())
    })
}

/// Writes a picture in the format of its name.
pub fn write_photo(photo: &Photo, output: &Path) -> Result<()> {
    let bytes = photo.encode(format(output)?).with_exit_code(ExitCode::Usage, || output.display())?;
    atomic_file::write_with_folders(output, &bytes)
}

/// Writes a tensor for NumPy, float32 or float64 as it is.
pub fn write_npy(tensor: &Tensor, file: &Path) -> Result<()> {
    let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
    let write = |place: &Path| Ok(tensor.write_npy(place)?);
    atomic_file::write_by_path(file, write)
        .with_exit_code(ExitCode::Storage, || format!("writing {}", file.display()))
}

/// How large the tiles are in which a network works.
#[derive(Args, Debug)]
pub struct TileOptions {
    /// Side of the tiles in pixels, instead of what the memory allows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    pub tile: Option<u32>,
    /// GiB that the network may fill with one tile
    #[arg(long, value_name = "GIB", default_value_t = 0.5)]
    pub memory_gib: f64,
}

impl TileOptions {
    /// The side in pixels; `allowed` is the one for so many bytes.
    pub fn side(&self, allowed: impl FnOnce(f64) -> usize) -> usize {
        let bytes = self.memory_gib.max(0.0) * f64::from(1 << 30);
        self.tile.map_or_else(|| allowed(bytes), |tile| tile as usize)
    }
}

/// Of a bar, for one job: it moves within a job too.
const UNITS: u64 = 1000;

/// Moves `bar` within `job`, which is about to begin, with every tile that is done, of how many.
pub fn tile_progress<'a>(bar: &'a ProgressBar, job: &'a Job) -> impl Fn(usize, usize) + 'a {
    let begin = bar.position();
    move |done, of| {
        bar.set_position(begin + UNITS * done as u64 / of.max(1) as u64);
        bar.set_message(format!("{}: tile {done} of {of}", job.input.display()));
    }
}

/// A bar of `jobs` for [`each`], which ticks each second.
pub fn bar(jobs: usize) -> ProgressBar {
    let bar = ProgressBar::new(jobs as u64 * UNITS);
    let template = "{bar:20.cyan/blue} {prefix} · {eta} left · {wide_msg}";
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    if !bar.is_hidden() {
        bar.enable_steady_tick(Duration::from_secs(1));
    }
    bar
}

/// Does one job after the other and prints the line that `work` makes of each, while `bar` moves on. A job
/// that fails is reported by its error, which names the input, and skipped; in the end the error is `exit`,
/// with `failed` after the numbers. Of one job alone it is the job's own.
pub fn each(
    jobs: &[Job],
    bar: &ProgressBar,
    failed: &str,
    exit: ExitCode,
    mut work: impl FnMut(&Job) -> Result<String>,
) -> Result<()> {
    let (mut done, mut failures) = (0, 0);
    for job in jobs {
        bar.set_prefix(format!("{}/{}", done + 1, jobs.len() - failures));
        match work(job) {
            Ok(line) => {
                done += 1;
                bar.suspend(|| print_out!("{line}"));
            }
            Err(error) if jobs.len() == 1 => return Err(error),
            Err(error) => {
                // It took no time that others will take.
                failures += 1;
                bar.set_length((jobs.len() - failures) as u64 * UNITS);
                bar.suspend(|| print_err!("skipped {error:#}"));
            }
        }
        bar.set_position(done as u64 * UNITS);
    }
    bar.finish_and_clear();
    match failures {
        0 => Ok(()),
        _ => Err(fail(exit, format!("{failures} of {} {failed}", jobs.len()))),
    }
}
