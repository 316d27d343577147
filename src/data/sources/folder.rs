//! A folder of pictures with one folder per class, as torchvision's `ImageFolder`; and pictures without
//! classes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{FilePath, OpenOptions, Source, Split, is_yes, positive, positive_limit, try_with_capacity, yes};
use crate::data::format::pictures_of;
use crate::data::image::picture::{Fit, ImageFile, Mode, Resize};
use crate::data::{Dataset, Files, Framing, Samples, Skipped, Targets};
use crate::libtorch::device::cores;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::threads;
use crate::util::yaml::Invalid;
use crate::util::{console, interrupt};

/// `{folder: {root: DIR, size: 64}}`: pictures `[N, 3, H, W]` or, with `mode: grey`, `[N, 1, H, W]`.
///
/// The folders in `root` are the classes, in the order of their names; every file below them is a picture, at
/// any depth. Files beside the class folders, hidden files, Thumbs.db, desktop.ini and what is no picture by
/// its extension are passed over; what else cannot be decoded is skipped within the budget `max_skipped` and
/// listed.
#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping, such as `{root: im/train, size: 64}`")]
pub struct FolderSpec {
    /// The folder that holds one folder per class.
    pub root: FilePath,
    /// The size of the samples in pixels, at most 8192: N for N × N, or [height, width].
    pub size: Size,
    /// The channels that every picture is converted to.
    #[serde(default)]
    pub mode: Mode,
    /// How a picture of another size becomes one of `size`.
    #[serde(default)]
    pub resize: Resize,
    /// Turn pictures as their EXIF orientation says; `false` leaves their pixels as they are stored.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    #[schemars(extend("default" = true))]
    pub exif: bool,
    /// Use only the first so many files of each class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub limit_per_class: Option<usize>,
}

/// The size of the samples: N for N × N, or [H, W].
#[derive(Deserialize, Serialize, Clone, Copy, Debug, JsonSchema)]
#[serde(untagged, expecting = "expected a number of pixels per side, or [height, width]")]
pub enum Size {
    Square(usize),
    Sides([usize; 2]),
}

impl Size {
    fn sides(self) -> [usize; 2] {
        match self {
            Self::Square(side) => [side, side],
            Self::Sides(sides) => sides,
        }
    }
}

impl Source for FolderSpec {
    fn finds_classes(&self) -> bool {
        true
    }

    fn fits_pictures(&self) -> bool {
        true
    }

    fn validate(&self) -> Result<(), Invalid> {
        self.root.folder("root")?;
        for side in self.size.sides() {
            positive("size", side)?;
            if side > 8192 {
                return Err(Invalid::new("size", format!("must be at most 8192, not {side}")));
            }
        }
        positive_limit(self.limit_per_class).map_err(|error| Invalid::new("limit_per_class", error.message))
    }

    fn outline(&self) -> Option<(Vec<i64>, Option<usize>)> {
        let classes = entries(&self.root.resolve().ok()?).ok()?.iter().filter(|path| path.is_dir()).count();
        let [height, width] = self.size.sides();
        let shape = [self.mode.channels(), height, width].map(|side| side as i64);
        (classes > 0).then(|| (shape.to_vec(), Some(classes)))
    }

    fn resize(&self) -> Resize {
        self.resize
    }

    fn open(&self, options: &OpenOptions) -> Result<Dataset> {
        let root = self.root.resolve()?;
        let (mut files, mut labels, mut classes) = (Vec::new(), Vec::new(), Vec::new());
        let mut notes = Vec::new();
        let place = fs::canonicalize(&root)
            .with_exit_code(ExitCode::Data, || format!("{}: cannot be read", root.display()))?;
        for folder in entries(&root)?.into_iter().filter(|path| path.is_dir()) {
            let mut members = Vec::new();
            walk(&folder, &mut vec![place.clone()], &mut members)?;
            let (mut members, note) = pictures_of(members);
            if members.is_empty() {
                let what = note.map_or("no file".into(), |note| format!("no picture: {note}"));
                let message =
                    format!("{}: the class folder holds {what}; remove it or fill it", folder.display());
                return Err(fail(ExitCode::Data, message));
            }
            notes.extend(note.map(|note| format!("class `{}`: {note}", file_name(&folder))));
            members.truncate(self.limit_per_class.unwrap_or(usize::MAX));
            labels.resize(labels.len() + members.len(), classes.len() as i64);
            classes.push(file_name(&folder));
            let file = |path| ImageFile { exif: self.exif, ..ImageFile::new(path, self.mode) };
            files.extend(members.into_iter().map(file));
        }
        if classes.is_empty() {
            let message =
                format!("{}: holds no folder; each class is a folder of pictures in it", root.display());
            return Err(fail(ExitCode::Data, message));
        }
        let [height, width] = self.size.sides();
        let (smooth, eval) = (options.smooth, options.eval);
        let mut fit = Fit { height, width, resize: self.resize, smooth, eval };
        if options.part != Split::Train {
            fit = fit.judging();
        }
        let bytes = files.len() as u64 * (self.mode.channels() * height * width) as u64;
        let is_resident = bytes <= options.memory && !options.keep_files;
        // Resident pictures are smoothed with the resident pictures of every other source.
        let read = if is_resident {
            decode_all(&files, &Fit { smooth: None, ..fit.clone() })?
        } else {
            probe_all(&files)
        };
        let budget = budget(files.len(), options.max_skipped);
        let forgiven = match budget.checked_sub(read.failures().count()) {
            Some(forgiven) if read.failures().count() < files.len() => forgiven,
            _ => return Err(over_budget(&root, &files, &read, budget)),
        };
        let kept = |index: &usize| read.reasons[*index].is_none();
        let targets = Targets::Classes((0..files.len()).filter(kept).map(|index| labels[index]).collect());
        let name = |path: &Path| path.strip_prefix(&root).unwrap_or(path).to_string_lossy().into_owned();
        let mut set = assemble(&files, read, &fit, self.mode, forgiven, name)?;
        (set.classes, set.targets) = (classes, targets);
        for (class, count) in set.classes.iter().zip(set.class_counts()).filter(|(_, count)| *count == 0) {
            notes.push(format!("class `{class}` has {count} samples: none of its files can be decoded"));
        }
        notes.extend(depth_note(&files, name));
        set.notes = notes;
        Ok(set)
    }
}

/// A line on pictures of 16 bits among `files`, by a sample of their headers.
pub(super) fn depth_note(files: &[ImageFile], name: impl Fn(&Path) -> String) -> Option<String> {
    const SAMPLE: usize = 64;
    let sample = files.len().min(SAMPLE);
    let chosen = (0..sample).map(|place| &files[place * files.len() / sample]);
    let deep: Vec<_> = chosen
        .filter(|file| file.header().is_ok_and(|header| header.is_deep))
        .map(|file| &file.path)
        .collect();
    let first = name(deep.first()?);
    let looked_at = if sample < files.len() { " that were looked at" } else { "" };
    Some(format!(
        "{} of {sample} pictures{looked_at} have 16 bits per channel, which become 8 (such as {first}); a source `npy` \
         takes floating-point arrays as they are",
        deep.len()
    ))
}

/// Bytes of decoded pictures for prediction that are held at once.
const RESIDENT_PICTURES: u64 = 1 << 30;

/// Pictures for prediction: files, and folders of files at any depth, without classes. They are decoded at
/// once, but for more than 1 GiB of samples, which stay files. Undecodable ones are listed in `skipped`;
/// there is no budget, but it is exit 3 when none can be decoded.
pub fn pictures(paths: &[PathBuf], mode: Mode, fit: &Fit, exif: bool) -> Result<Dataset> {
    let (mut files, mut notes) = (Vec::new(), Vec::new());
    for path in paths {
        let (found, note) = pictures_at(path)?;
        files.extend(found.into_iter().map(|path| ImageFile { exif, ..ImageFile::new(path, mode) }));
        notes.extend(note);
    }
    notes.extend(depth_note(&files, |path| path.display().to_string()));
    let bytes = files.len() as u64 * (mode.channels() * fit.height * fit.width) as u64;
    let read = if bytes <= RESIDENT_PICTURES { decode_all(&files, fit)? } else { probe_all(&files) };
    if read.failures().count() == files.len() {
        let message = format!("no picture among {} files{}", files.len(), first_few(&files, &read));
        return Err(fail(ExitCode::Data, message));
    }
    let mut set = assemble(&files, read, fit, mode, files.len(), |path| path.to_string_lossy().into_owned())?;
    set.notes = notes;
    set.seal()?;
    Ok(set)
}

/// The file `path`, whatever it is, or all pictures below the folder, sorted by folder and name; and a line
/// on what else lies there.
pub fn pictures_at(path: &Path) -> Result<(Vec<PathBuf>, Option<String>)> {
    let files = files_at(path)?;
    Ok(if path.is_dir() { pictures_of(files) } else { (files, None) })
}

/// The file `path`, or all files below the folder, sorted by folder and name. A missing file is
/// noticed when it is read.
pub fn files_at(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    walk(path, &mut Vec::new(), &mut files)?;
    Ok(files)
}

/// What became of each file.
pub(super) struct Read {
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
pub(super) fn budget(count: usize, share: f64) -> usize {
    let budget = (count as f64 * share).floor() as usize;
    if share > 0.0 { budget.max(1) } else { 0 }
}

pub(super) fn over_budget(root: &Path, files: &[ImageFile], read: &Read, budget: usize) -> anyhow::Error {
    let message = format!(
        "{}: {} of {} files cannot be decoded, {budget} may be skipped{}\nmend or remove them, or raise data.max_skipped",
        root.display(),
        read.failures().count(),
        files.len(),
        first_few(files, read)
    );
    fail(ExitCode::Data, message)
}

fn first_few(files: &[ImageFile], read: &Read) -> String {
    const FEW: usize = 5;
    let mut lines = String::new();
    for (index, reason) in read.failures().take(FEW) {
        lines += &format!("\n  {}: {reason}", files[index].path.display());
    }
    if read.failures().count() > FEW {
        lines += "\n  …";
    }
    lines
}

/// The set of those files that could be read, resident where they were decoded, without targets.
fn assemble(
    files: &[ImageFile],
    read: Read,
    fit: &Fit,
    mode: Mode,
    forgiven: usize,
    name: impl Fn(&Path) -> String,
) -> Result<Dataset> {
    let skip = |(index, reason): (usize, &str)| Skipped {
        name: name(&files[index].path),
        reason: reason.to_owned(),
    };
    let skipped = read.failures().map(skip).collect();
    let kept: Vec<usize> = (0..files.len()).filter(|&index| read.reasons[index].is_none()).collect();
    let shape = [mode.channels(), fit.height, fit.width].map(|side| side as i64).to_vec();
    let samples = match read.pixels {
        Some(mut pixels) => {
            let sample = mode.channels() * fit.height * fit.width;
            for (to, &from) in kept.iter().enumerate() {
                pixels.copy_within(from * sample..(from + 1) * sample, to * sample);
            }
            pixels.truncate(kept.len() * sample);
            let size = [&[kept.len() as i64], shape.as_slice()].concat();
            Samples::Resident(Tensor::f_from_data_size(&pixels, &size, Kind::Uint8)?)
        }
        None => {
            let files = kept.iter().map(|&index| files[index].clone()).collect();
            Samples::Files(Arc::new(Files::new(files, Vec::new(), Framing::Fit(fit.clone()), forgiven, 0)))
        }
    };
    let names = kept.iter().map(|&index| name(&files[index].path)).collect();
    Ok(Dataset {
        samples,
        targets: Targets::Unknown,
        shape,
        classes: Vec::new(),
        features: Vec::new(),
        names,
        fingerprint: String::new(),
        skipped,
        notes: Vec::new(),
    })
}

/// Decodes all files on all cores.
fn decode_all(files: &[ImageFile], fit: &Fit) -> Result<Read> {
    let channels = files.first().map_or(1, |file| file.mode.channels());
    let sample = channels * fit.height * fit.width;
    let bytes = files.len().checked_mul(sample);
    let mut pixels = try_with_capacity(bytes, "take a smaller `data.memory_gib`, or a smaller size")?;
    pixels.resize(files.len() * sample, 0);
    let reasons = on_all_cores(files.iter().zip(pixels.chunks_mut(sample)), files.len(), |(file, pixels)| {
        file.decode().map(|picture| fit.whole(&picture).write_planes(pixels))
    });
    Ok(Read { pixels: Some(pixels), reasons })
}

/// Reads the header of every file on all cores.
pub(super) fn probe_all(files: &[ImageFile]) -> Read {
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
pub(super) fn on_all_cores<T: Send>(
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

/// All files below `folder`, sorted by folder, then by name. `above` holds the folders that lead here, so
/// that a link back to one of them ends.
pub(super) fn walk(folder: &Path, above: &mut Vec<PathBuf>, files: &mut Vec<PathBuf>) -> Result<()> {
    let place = fs::canonicalize(folder)
        .with_exit_code(ExitCode::Data, || format!("{}: cannot be read", folder.display()))?;
    if above.contains(&place) {
        return Ok(());
    }
    above.push(place);
    let (folders, plain): (Vec<_>, Vec<_>) = entries(folder)?.into_iter().partition(|path| path.is_dir());
    files.extend(plain);
    for folder in folders {
        walk(&folder, above, files)?;
    }
    above.pop();
    Ok(())
}

/// What is in a folder, sorted by name, but for hidden files and those that file managers leave behind.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = || format!("{}: cannot be read", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_exit_code(ExitCode::Data, unreadable)? {
        let path = entry.with_exit_code(ExitCode::Data, unreadable)?.path();
        let name = file_name(&path);
        let is_litter = name.eq_ignore_ascii_case("thumbs.db") || name.eq_ignore_ascii_case("desktop.ini");
        if !name.starts_with('.') && !is_litter {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
