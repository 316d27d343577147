//! A run as TensorBoard reads it: scalars, histograms of the weights, pictures, in one event file that a
//! resume cuts back.

mod event;

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::checkpoint::State;
use crate::nn::layers::ParamKind;
use crate::nn::model::Network;
use crate::train::records::{EpochRecord, StepRecord};
use crate::util::exit_code::{ExitCode, WithExitCode};

use event::{Event, Histogram, cut};

/// What TensorBoard looks for in a file's name.
const PREFIX: &str = "events.out.tfevents.";
/// Prefix of the numbers of single steps; all others belong to the end of an epoch.
const STEP: &str = "step/";
const BINS: i64 = 30;

/// The event file of a run in progress.
pub struct Board {
    file: File,
    pictures: PathBuf,
    /// Pictures that are in the event file, each with the time at which it was written.
    written: HashSet<(PathBuf, SystemTime)>,
}

impl Board {
    /// A file of its own in the run's folder, or the one that is there, cut back to `state`.
    pub fn open(folder: &Path, state: Option<&State>) -> Result<Self> {
        let events = folder.join("tensorboard");
        let mut board = open(&events, state).with_exit_code(ExitCode::Storage, || events.display())?;
        board.pictures = folder.join("pictures");
        // Those of the steps that are cut off are drawn again.
        board.written = board.drawn().collect();
        Ok(board)
    }

    pub fn step(&mut self, record: &StepRecord) -> Result<()> {
        let mut event = Event::at(record.step)?;
        scalars(&mut event, STEP, &serde_json::to_value(record)?);
        self.write(&event)
    }

    /// The numbers of an epoch, how the weights of each layer are spread, and the pictures that are new.
    pub fn epoch(&mut self, record: &EpochRecord, network: &Network) -> Result<()> {
        let mut event = Event::at(record.step)?;
        scalars(&mut event, "", &serde_json::to_value(record)?);
        for parameter in network.parameters().iter().filter(|p| p.kind == ParamKind::Weight) {
            event.histogram(&format!("weights/{}", parameter.name), &histogram(&parameter.tensor)?);
        }
        let new: Vec<_> = self.drawn().filter(|picture| !self.written.contains(picture)).collect();
        for (path, time) in new {
            // One that is being written just now is read the next time.
            if let (Ok(bytes), Some(name)) = (fs::read(&path), path.file_stem())
                && let Some([width, height]) = size(&bytes)
            {
                event.image(&format!("pictures/{}", series(&name.to_string_lossy())), width, height, &bytes);
                self.written.insert((path, time));
            }
        }
        self.write(&event)
    }

    fn write(&mut self, event: &Event) -> Result<()> {
        self.file
            .write_all(&event.record())
            .with_exit_code(ExitCode::Storage, || "writing TensorBoard's events")
    }

    fn drawn(&self) -> impl Iterator<Item = (PathBuf, SystemTime)> + use<> {
        let entries = fs::read_dir(&self.pictures).into_iter().flatten().flatten();
        let files =
            entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "png"));
        files.filter_map(|path| Some((path.clone(), fs::metadata(path).ok()?.modified().ok()?)))
    }
}

fn open(folder: &Path, state: Option<&State>) -> Result<Board> {
    fs::create_dir_all(folder)?;
    let known: Vec<PathBuf> = (fs::read_dir(folder)?.flatten())
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX)))
        .collect();
    let board = |file| Board { file, pictures: PathBuf::new(), written: HashSet::new() };
    if let (Some(state), [file]) = (state, known.as_slice()) {
        let keep = |step: u64, tag: &str| {
            step < state.step || step == state.step && (state.batch == 0 || tag.starts_with(STEP))
        };
        let length = cut(&fs::read(file).with_context(|| file.display().to_string())?, keep);
        let mut opened = OpenOptions::new().append(true).open(file)?;
        opened.set_len(length as u64)?;
        if length == 0 {
            opened.write_all(&Event::version()?.record())?;
        }
        return Ok(board(opened));
    }
    for file in known {
        fs::remove_file(&file).with_context(|| file.display().to_string())?;
    }
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut file = File::create(folder.join(format!("{PREFIX}{seconds}.tikhonov")))?;
    file.write_all(&Event::version()?.record())?;
    Ok(board(file))
}

/// Every number of a record but those that say when it is, under the path of its keys.
fn scalars(event: &mut Event, path: &str, record: &Value) {
    for (key, value) in record.as_object().into_iter().flatten() {
        let tag = format!("{path}{key}");
        match value {
            Value::Object(_) => scalars(event, &format!("{tag}/"), value),
            Value::Number(number) if !["step", "epoch"].contains(&tag.trim_start_matches(STEP)) => {
                event.scalar(&tag, number.as_f64().unwrap_or(f64::NAN));
            }
            _ => {}
        }
    }
}

/// Waits for the device. A tensor that is not finite has no histogram; it is never empty.
fn histogram(weights: &Tensor) -> Result<Histogram> {
    let weights = weights.detach().f_to_kind(Kind::Float)?.f_flatten(0, -1)?;
    let wide = weights.f_to_kind(Kind::Double)?;
    let moments = Tensor::f_stack(
        &[wide.f_min()?, wide.f_max()?, wide.f_sum(Kind::Double)?, wide.f_square()?.f_sum(Kind::Double)?],
        0,
    )?;
    let [min, max, sum, squares]: [f64; 4] =
        Vec::<f64>::try_from(moments)?.try_into().map_err(|_| anyhow::anyhow!("four moments"))?;
    let count = weights.numel() as f64;
    let buckets = if min < max && (max - min).is_finite() {
        let counts: Vec<f64> = weights.f_histc(BINS)?.f_to_kind(Kind::Double)?.try_into()?;
        let width = (max - min) / BINS as f64;
        counts.into_iter().enumerate().map(|(bin, count)| (min + width * (bin + 1) as f64, count)).collect()
    } else {
        vec![(max, count)]
    };
    Ok(Histogram { min, max, count, sum, squares, buckets })
}

/// What the pictures of one sample have in common: `epoch-0006-1` is of the series `1`.
fn series(name: &str) -> String {
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let mut parts: Vec<&str> =
        name.split(['-', '_', '.']).filter(|part| !["epoch", "step", ""].contains(part)).collect();
    if let Some(epoch) = parts.iter().position(is_number) {
        parts.remove(epoch);
    }
    if parts.is_empty() { "validation".into() } else { parts.join("-") }
}

/// Width and height of a PNG; None for what is none.
fn size(png: &[u8]) -> Option<[u32; 2]> {
    let header = png.strip_prefix(b"\x89PNG\r\n\x1a\n")?.get(8..16)?;
    let number = |bytes: &[u8]| Some(u32::from_be_bytes(bytes.try_into().ok()?));
    Some([number(&header[..4])?, number(&header[4..])?])
}
