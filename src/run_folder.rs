//! The folder of one run: config, metrics, log, checkpoints; one process at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoints, State};
use crate::exit::{Exit, OrExit, fail};
use crate::metrics::Scores;

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record<'a> {
    Step(&'a StepRecord),
    Epoch(&'a EpochRecord),
}

/// How training stands at one optimiser step.
#[derive(Clone, Debug, Serialize)]
pub struct StepRecord {
    pub epoch: u64,
    pub step: u64,
    /// Data loss of this batch, without the penalty.
    pub loss: f64,
    /// Σ λ₁‖w‖₁ + (λ₂/2)‖w‖₂² over the groups (½λ‖w‖₂² for decoupled decay, which has no objective of its own).
    pub penalty: f64,
    /// `loss + penalty`.
    pub total: f64,
    pub lr: f64,
    /// ‖w‖₂ over the penalised tensors.
    pub weight_norm: f64,
    /// ‖g‖₂ over all tensors, before clipping, without the penalty.
    pub grad_norm: f64,
    /// Share of exact zeros among the penalised tensors' elements.
    pub zeros: f64,
    pub images_per_s: f64,
}

/// One epoch, and what evaluation said after it.
#[derive(Clone, Debug, Serialize)]
pub struct EpochRecord {
    /// 1 after the first epoch.
    pub epoch: u64,
    pub step: u64,
    /// Mean data loss over the epoch, as trained: augmented, smoothed.
    pub loss: f64,
    pub penalty: f64,
    pub lr: f64,
    pub weight_norm: f64,
    pub zeros: f64,
    pub images_per_s: f64,
    pub seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<Scores>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<Scores>,
}

/// A run's folder, locked for this process until it is dropped.
pub struct RunFolder {
    path: PathBuf,
    metrics: File,
    log: File,
    _lock: File,
}

impl RunFolder {
    /// A new run in `path`. A folder that holds a run already is refused.
    pub fn create(path: &Path) -> Result<Self> {
        fs::create_dir_all(path)
            .or_exit(Exit::Storage, || format!("making the run folder {}", path.display()))?;
        let lock = lock(path)?;
        if Checkpoints::new(path.join("checkpoints")).exist() {
            let message = format!(
                "{} holds a run already; --resume goes on with it, --output FOLDER puts the new one elsewhere",
                path.display()
            );
            return Err(fail(Exit::Usage, message));
        }
        Self::open(path, lock, |_| false)
    }

    /// The run in `path` as it was at `state`: what was recorded later is forgotten.
    pub fn reopen(path: &Path, state: &State) -> Result<Self> {
        Self::open(path, lock(path)?, |position| match position.kind.as_str() {
            "epoch" => position.epoch <= state.epoch,
            _ => position.step <= state.step,
        })
    }

    fn open(path: &Path, lock: File, keep: impl Fn(&Position) -> bool) -> Result<Self> {
        let context = || format!("opening the run folder {}", path.display());
        let metrics = path.join("metrics.jsonl");
        let past = match fs::read_to_string(&metrics) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.with_context(context)?,
        };
        let kept: String = past
            .lines()
            .filter(|line| serde_json::from_str(line).is_ok_and(|position| keep(&position)))
            .map(|line| format!("{line}\n"))
            .collect();
        replace(&metrics, kept.as_bytes()).with_context(context)?;
        let append = |name: &str| OpenOptions::new().append(true).create(true).open(path.join(name));
        let (metrics, log) = (append("metrics.jsonl"), append("log.txt"));
        let (metrics, log) = (metrics.with_context(context)?, log.with_context(context)?);
        Ok(Self { path: path.into(), metrics, log, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints::new(self.path.join("checkpoints"))
    }

    /// Stores a file of the run, such as the resolved config.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        replace(&self.path.join(name), text.as_bytes())
            .with_context(|| format!("writing {name} in {}", self.path.display()))
    }

    /// Appends to `metrics.jsonl`; after an epoch `metrics.csv` is made anew from it.
    pub fn record(&mut self, record: &Record) -> Result<()> {
        let context = || "writing metrics.jsonl".to_owned();
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.metrics.write_all(&line).with_context(context)?;
        if matches!(record, Record::Epoch(_)) {
            self.metrics.sync_data().with_context(context)?;
            self.write_csv().context("writing metrics.csv")?;
        }
        Ok(())
    }

    /// Appends a line to `log.txt`.
    pub fn log(&mut self, line: &str) -> Result<()> {
        writeln!(self.log, "{line}").context("writing log.txt")
    }

    /// One row per epoch; the columns are those of the first epoch, nested scores as `test.accuracy`.
    fn write_csv(&self) -> Result<()> {
        let text = fs::read_to_string(self.path.join("metrics.jsonl"))?;
        let mut table = csv::Writer::from_writer(Vec::new());
        let mut columns = Vec::new();
        for line in text.lines() {
            let record: serde_json::Value = serde_json::from_str(line)?;
            if record["kind"] != "epoch" {
                continue;
            }
            let cells = flatten(&record);
            if columns.is_empty() {
                columns = cells.iter().map(|(name, _)| name.clone()).collect();
                table.write_record(&columns)?;
            }
            let cell = |column| cells.iter().find(|(name, _)| name == column).map(|(_, cell)| cell.as_str());
            table.write_record(columns.iter().map(|column| cell(column).unwrap_or_default()))?;
        }
        Ok(replace(&self.path.join("metrics.csv"), &table.into_inner()?)?)
    }
}

#[derive(Deserialize)]
struct Position {
    kind: String,
    epoch: u64,
    step: u64,
}

fn flatten(record: &serde_json::Value) -> Vec<(String, String)> {
    let mut cells = Vec::new();
    for (name, value) in record.as_object().into_iter().flatten() {
        match value {
            serde_json::Value::Object(inner) => {
                cells.extend(
                    inner.iter().map(|(inner, value)| (format!("{name}.{inner}"), value.to_string())),
                );
            }
            _ if name == "kind" => {}
            _ => cells.push((name.clone(), value.to_string())),
        }
    }
    cells
}

/// Two processes in one folder would overwrite each other's checkpoints.
fn lock(path: &Path) -> Result<File> {
    let file = path.join(".lock");
    let lock = File::create(&file).or_exit(Exit::Storage, || format!("making {}", file.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            let message =
                format!("another process is training in {}; wait for it, or use --output", path.display());
            Err(fail(Exit::Usage, message))
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("locking {}", file.display())),
    }
}

/// Replaces a file in one piece: a reader sees the old text or the new.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".draft");
    let mut file = File::create(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&draft, path)
}
