//! Where commands write files: never over an input, over anything else only when told to.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use image::ImageFormat;

use crate::checkpoint::atomic;
use crate::data::photo::Photo;
use crate::data::sources::folder::files_at;
use crate::exit::{Exit, OrExit, fail};

/// An input and its output.
pub struct Job {
    pub input: PathBuf,
    pub output: PathBuf,
}

/// What goes where. `out` is a file, or a folder in which `rename` names the place of each input. Nothing is written if an
/// output is an input, is there already and `force` is not given, or is meant for two.
pub fn jobs(
    inputs: &[PathBuf],
    out: &Path,
    is_file: bool,
    force: bool,
    rename: impl Fn(&Path) -> PathBuf,
) -> Result<Vec<Job>> {
    let mut jobs: Vec<Job> = Vec::new();
    for input in inputs {
        let root = if input.is_dir() { input.as_path() } else { input.parent().unwrap_or(Path::new("")) };
        for file in files_at(input)? {
            let relative = file.strip_prefix(root).unwrap_or(&file);
            let output = if is_file { out.to_owned() } else { out.join(rename(relative)) };
            jobs.push(Job { input: file, output });
        }
    }
    if jobs.is_empty() {
        return Err(fail(Exit::Data, format!("there is no file in {}", inputs[0].display())));
    }
    let mut outputs = HashMap::new();
    for job in &jobs {
        if let Some(other) = outputs.insert(&job.output, &job.input) {
            let (one, two, output) = (other.display(), job.input.display(), job.output.display());
            let message =
                format!("{one} and {two} would both become {output}; give a folder, or one at a time");
            return Err(fail(Exit::Usage, message));
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
        return Err(fail(Exit::Usage, message));
    }
    if there.is_dir() {
        return Err(fail(Exit::Usage, format!("{output} is a folder; name a file in it")));
    }
    if !force {
        return Err(fail(Exit::Usage, format!("{output} is there already; --force replaces it")));
    }
    Ok(())
}

/// The format that the name of a picture to be written stands for.
pub fn format(output: &Path) -> Result<ImageFormat> {
    ImageFormat::from_path(output).or_exit(Exit::Usage, || {
        format!("{}: give it the name of a picture, such as a .png", output.display())
    })
}

/// Writes a picture in the format that its name stands for.
pub fn write_photo(photo: &Photo, output: &Path) -> Result<()> {
    write(output, &photo.encode(format(output)?).or_exit(Exit::Usage, || output.display())?)
}

/// Writes a file, and the folders that lead to it.
pub fn write(output: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = output.parent() {
        fs::create_dir_all(folder).or_exit(Exit::Storage, || folder.display())?;
    }
    atomic::write(output, |file| Ok(file.write_all(bytes)?))
}

/// Does one job after the other and prints what `work` says of each. What fails is told and passed over, and ends it all
/// with `exit`; of one job alone, the error is its own.
pub fn each(
    jobs: &[Job],
    done: &str,
    exit: Exit,
    mut work: impl FnMut(&Job) -> Result<String>,
) -> Result<()> {
    let mut failures = 0;
    for job in jobs {
        match work(job) {
            Ok(text) => println!("{} -> {}: {text}", job.input.display(), job.output.display()),
            Err(error) if jobs.len() == 1 => return Err(error),
            Err(error) => {
                failures += 1;
                eprintln!("skipped {error:#}");
            }
        }
    }
    match failures {
        0 => Ok(()),
        _ => Err(fail(exit, format!("{failures} of {} files could not be {done}", jobs.len()))),
    }
}
