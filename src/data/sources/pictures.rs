//! Pictures that become samples, whatever names them: decoded at the start where the memory holds them, else when
//! their turn comes; what cannot be decoded is left out within the budget, and named.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{OpenOptions, Split, positive, try_with_capacity};
use crate::data::image::floats;
use crate::data::image::picture::{Fit, ImageFile, Mode, Resize};
use crate::data::{Dataset, Files, Framing, Samples, Skipped, Targets};
use crate::libtorch::device::cores;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::threads;
use crate::util::yaml::Invalid;
use crate::util::{console, interrupt};

/// The size of the samples: N for N × N, or [H, W].
#[derive(Deserialize, Serialize, Clone, Copy, Debug, JsonSchema)]
#[serde(untagged, expecting = "expected a number of pixels per side, or [height, width]")]
pub enum Size {
    Square(usize),
    Sides([usize; 2]),
}

impl Size {
    /// Height and width.
    pub fn sides(self) -> [usize; 2] {
        match self {
            Self::Square(side) => [side, side],
            Self::Sides(sides) => sides,
        }
    }

    /// Refuses what no sample can have.
    pub fn validate(self) -> Result<(), Invalid> {
        for side in self.sides() {
            positive("size", side)?;
            if side > 8192 {
                return Err(Invalid::new("size", format!("must be at most 8192, not {side}")));
            }
        }
        Ok(())
    }

    /// The shape of the samples.
    pub fn shape(self, mode: Mode) -> Vec<i64> {
        let [height, width] = self.sides();
        [mode.channels(), height, width].map(|side| side as i64).to_vec()
    }
}

/// Pictures that are brought to one size.
pub struct PictureFiles<'a> {
    /// What messages call all of them.
    pub place: &'a Path,
    pub files: Vec<ImageFile>,
    /// A name for each.
    pub names: Vec<String>,
    pub mode: Mode,
    pub size: Size,
    pub resize: Resize,
}

impl PictureFiles<'_> {
    /// The set, without targets, and which of the files are in it. Exit 3 where more cannot be decoded than
    /// `data.max_skipped` allows.
    pub fn read(self, options: &OpenOptions) -> Result<(Dataset, Vec<usize>)> {
        let Self { place, files, names, mode, size, resize } = self;
        let [height, width] = size.sides();
        let (smooth, eval) = (options.smooth, options.eval);
        let mut fit = Fit { height, width, resize, smooth, eval };
        if options.part != Split::Train {
            fit = fit.judging();
        }
        let bytes = files.len() as u64 * (mode.bytes() * height * width) as u64;
        let is_resident = bytes <= options.memory && !options.keep_files;
        if mode.is_float() && (!is_resident || options.eval.is_some()) {
            let message = format!(
                "data: pictures of float32 are kept in memory, as they are: raise `memory_gib` to {:.1}, and leave out \
                 random_resized_crop and eval_transform; `images` with `patch` reads them from their files",
                bytes as f64 / f64::from(1 << 30)
            );
            return Err(fail(ExitCode::Usage, message));
        }
        // Resident pictures are smoothed with the resident pictures of every other source.
        let read = if is_resident {
            decode_all(&files, &Fit { smooth: None, ..fit.clone() })?
        } else {
            probe_all(&files)
        };
        let budget = budget(files.len(), options.max_skipped);
        let forgiven = match budget.checked_sub(read.failures().count()) {
            Some(forgiven) if read.failures().count() < files.len() => forgiven,
            _ => return Err(over_budget(place, &files, &read, budget)),
        };
        let kept = (0..files.len()).filter(|&index| read.is_fine(index)).collect();
        let deep = depth_note(&files, |index| names[index].clone());
        let mut set = assemble(&files, names, read, &fit, mode, forgiven)?;
        set.notes.extend(deep);
        Ok((set, kept))
    }
}

/// A line on pictures of 16 bits among `files`, by a sample of their headers.
pub fn depth_note(files: &[ImageFile], name: impl Fn(usize) -> String) -> Option<String> {
    const SAMPLE: usize = 64;
    let sample = files.len().min(SAMPLE);
    let chosen = (0..sample).map(|place| place * files.len() / sample);
    let deep: Vec<_> =
        chosen.filter(|&index| files[index].header().is_ok_and(|header| header.is_deep)).collect();
    let first = name(*deep.first()?);
    let looked_at = if sample < files.len() { " that were looked at" } else { "" };
    Some(format!(
        "{} of {sample} pictures{looked_at} have 16 bits per channel, which become 8 (such as {first}); a source `npy` \
         takes floating-point arrays as they are",
        deep.len()
    ))
}

/// What became of each file.
pub struct Read {
    /// One sample per file, where the files were decoded; zeros for those that failed.
    pixels: Option<Vec<u8>>,
    /// Why a file is left out.
    reasons: Vec<Option<String>>,
}

impl Read {
    pub fn is_fine(&self, index: usize) -> bool {
        self.reasons[index].is_none()
    }

    pub fn failures(&self) -> impl Iterator<Item = (usize, &str)> {
        self.reasons.iter().enumerate().filter_map(|(index, reason)| Some((index, reason.as_deref()?)))
    }
}

/// How many of `count` files may fail.
pub fn budget(count: usize, share: f64) -> usize {
    let budget = (count as f64 * share).floor() as usize;
    if share > 0.0 { budget.max(1) } else { 0 }
}

pub fn over_budget(root: &Path, files: &[ImageFile], read: &Read, budget: usize) -> anyhow::Error {
    let message = format!(
        "{}: {} of {} files cannot be decoded, {budget} may be skipped{}\nmend or remove them, or raise data.max_skipped",
        root.display(),
        read.failures().count(),
        files.len(),
        first_few(files, read)
    );
    fail(ExitCode::Data, message)
}

pub fn first_few(files: &[ImageFile], read: &Read) -> String {
    const FEW: usize = 5;
    let mut lines = String::new();
    for (index, reason) in read.failures().take(FEW) {
        lines += &format!("\n  {}: {reason}", files[index].place());
    }
    if read.failures().count() > FEW {
        lines += "\n  …";
    }
    lines
}

/// The set of those files that could be read, resident where they were decoded, without targets.
pub fn assemble(
    files: &[ImageFile],
    mut names: Vec<String>,
    read: Read,
    fit: &Fit,
    mode: Mode,
    forgiven: usize,
) -> Result<Dataset> {
    let skip =
        |(index, reason): (usize, &str)| Skipped { name: names[index].clone(), reason: reason.to_owned() };
    let skipped = read.failures().map(skip).collect();
    let kept: Vec<usize> = (0..files.len()).filter(|&index| read.reasons[index].is_none()).collect();
    let shape = [mode.channels(), fit.height, fit.width].map(|side| side as i64).to_vec();
    let samples = match read.pixels {
        Some(mut pixels) => {
            let sample = mode.bytes() * fit.height * fit.width;
            for (to, &from) in kept.iter().enumerate() {
                pixels.copy_within(from * sample..(from + 1) * sample, to * sample);
            }
            pixels.truncate(kept.len() * sample);
            let mut size = [&[kept.len() as i64], shape.as_slice()].concat();
            size[1] = mode.bytes() as i64;
            let pixels = Tensor::f_from_data_size(&pixels, &size, Kind::Uint8)?;
            Samples::Resident(if mode.is_float() { floats::tensor(&pixels)? } else { pixels })
        }
        None => {
            let files = kept.iter().map(|&index| files[index].clone()).collect();
            Samples::Files(Arc::new(Files::new(files, Vec::new(), Framing::Fit(fit.clone()), forgiven, 0)))
        }
    };
    let mut fine = read.reasons.iter().map(Option::is_none);
    names.retain(|_| fine.next().unwrap_or(false));
    Ok(Dataset {
        samples,
        targets: Targets::Unknown,
        shape,
        classes: Vec::new(),
        features: Vec::new(),
        names,
        columns: BTreeMap::new(),
        fingerprint: String::new(),
        skipped,
        notes: Vec::new(),
    })
}

/// Decodes all files on all cores.
pub fn decode_all(files: &[ImageFile], fit: &Fit) -> Result<Read> {
    let sample = files.first().map_or(1, |file| file.mode.bytes()) * fit.height * fit.width;
    let bytes = files.len().checked_mul(sample);
    let mut pixels = try_with_capacity(bytes, "take a smaller `data.memory_gib`, or a smaller size")?;
    pixels.resize(files.len() * sample, 0);
    let reasons = on_all_cores(files.iter().zip(pixels.chunks_mut(sample)), files.len(), |(file, pixels)| {
        let picture = file.decode()?;
        let (width, height) = (picture.width, picture.height);
        ensure!(
            !file.mode.is_float() || (width, height) == (fit.width, fit.height),
            "is {width}x{height}, and pictures of float32 are not resized: `size` is theirs"
        );
        fit.whole(&picture).write_planes(pixels);
        Ok(())
    });
    Ok(Read { pixels: Some(pixels), reasons })
}

/// Reads the header of every file on all cores; those of pictures in shards are left to their turn.
pub fn probe_all(files: &[ImageFile]) -> Read {
    if files.iter().all(|file| file.entry.is_some()) {
        return Read { pixels: None, reasons: vec![None; files.len()] };
    }
    let reasons = on_all_cores(files.iter(), files.len(), |file| file.probe().map(|_| ()));
    Read { pixels: None, reasons }
}

/// Prints every few seconds how many files have been read.
struct Progress {
    done: AtomicUsize,
    last_print: Mutex<Instant>,
}

impl Progress {
    const EVERY: Duration = Duration::from_secs(5);

    fn new() -> Self {
        Self { done: AtomicUsize::new(0), last_print: Mutex::new(Instant::now()) }
    }

    fn tick(&self, count: usize) {
        let done = self.done.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut last) = self.last_print.try_lock()
            && last.elapsed() > Self::EVERY
        {
            console::progress(format_args!("reading files: {} of {count}\n", done.min(count)));
            *last = Instant::now();
        }
    }
}

/// Does the work for each item, on the next free core; the reasons of those that failed, in their
/// places. A signal ends it early: the code that opens the set checks for it.
pub fn on_all_cores<T: Send>(
    items: impl Iterator<Item = T> + Send,
    count: usize,
    work: impl Fn(T) -> Result<()> + Sync,
) -> Vec<Option<String>> {
    let (mut reasons, progress) = (vec![None; count], Progress::new());
    let queue = Mutex::new(items.zip(&mut reasons));
    // The lock is held by `next` alone, which does not panic.
    let next = || {
        progress.tick(count);
        match interrupt::is_requested() {
            true => None,
            false => threads::unpoisoned(&queue).next(),
        }
    };
    threads::share(cores().min(count), || {
        while let Some((item, reason)) = next() {
            *reason = work(item).err().map(|error| format!("{error:#}"));
        }
    });
    drop(queue);
    reasons
}
