//! The folder of one run: config, metrics, log, checkpoints; one process at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::checkpoint::{Checkpoints, State, atomic};
use crate::exit::{Exit, OrExit, fail};
use crate::model::scripted::fingerprint;
use crate::telemetry::Record;

/// A run's folder that no other process trains in; nothing in it is touched yet.
pub struct LockedFolder {
    path: PathBuf,
    lock: File,
}

/// A run's folder, locked for this process until it is dropped.
pub struct RunFolder {
    path: PathBuf,
    metrics: File,
    log: File,
    _lock: File,
}

impl LockedFolder {
    /// Makes the folder if need be and takes it. Exit 2 where another process has it.
    pub fn take(path: &Path) -> Result<Self> {
        fs::create_dir_all(path)
            .or_exit(Exit::Storage, || format!("making the run folder {}", path.display()))?;
        Ok(Self { path: path.into(), lock: lock(path)? })
    }

    /// Opens the files at their start, or as they were at `state`: what was recorded later is forgotten.
    pub fn begin(self, state: Option<&State>) -> Result<RunFolder> {
        let keep = |position: &Position| match (state, position.kind.as_str()) {
            (None, _) => false,
            (Some(state), "epoch") => position.epoch <= state.epoch,
            (Some(state), _) => position.step <= state.step,
        };
        self.open(keep).or_exit(Exit::Storage, || "opening the run folder")
    }

    fn open(self, keep: impl Fn(&Position) -> bool) -> Result<RunFolder> {
        let Self { path, lock } = self;
        let metrics = path.join("metrics.jsonl");
        let past = match fs::read_to_string(&metrics) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.context("metrics.jsonl")?,
        };
        let kept: String = past
            .lines()
            .filter(|line| serde_json::from_str(line).is_ok_and(|position| keep(&position)))
            .map(|line| format!("{line}\n"))
            .collect();
        // Waiting for the disk where nothing is taken back would only make the start slower.
        if kept != past {
            atomic::write_bytes(&metrics, kept.as_bytes()).context("metrics.jsonl")?;
        }
        let append = |name: &str| {
            OpenOptions::new()
                .append(true)
                .create(true)
                .open(path.join(name))
                .with_context(|| name.to_owned())
        };
        let (metrics, log) = (append("metrics.jsonl")?, append("log.txt")?);
        Ok(RunFolder { metrics, log, path, _lock: lock })
    }
}

impl RunFolder {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints::of(&self.path)
    }

    /// Stores a file of the run, such as the resolved config.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        atomic::write_bytes(&self.path.join(name), text.as_bytes())
            .or_exit(Exit::Storage, || format!("writing {name} in {}", self.path.display()))
    }

    /// Copies the program `file` of SHA-256 `sha256` into the folder, unless it is there. Exit 4 where `file` is another by now.
    pub fn keep_program(&self, name: &str, file: &str, sha256: &str) -> Result<()> {
        let own = self.path.join(name);
        let is_kept = || fingerprint(&own.to_string_lossy()).is_ok_and(|known| known == sha256);
        if is_kept() {
            return Ok(());
        }
        let mut program = File::open(file).or_exit(Exit::Checkpoint, || file.to_owned())?;
        atomic::write(&own, |copy| Ok(io::copy(&mut program, copy).map(drop)?))?;
        is_kept().then_some(()).or_exit(Exit::Checkpoint, || {
            format!("{file} changed while it was being copied into the run folder; start the run again")
        })
    }

    /// Appends to `metrics.jsonl`; after an epoch `metrics.csv` is made anew from it.
    pub fn record(&mut self, record: &Record) -> Result<()> {
        self.append(record).or_exit(Exit::Storage, || "writing the metrics")
    }

    fn append(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.metrics.write_all(&line)?;
        if matches!(record, Record::Epoch(_)) {
            self.metrics.sync_data()?;
            self.write_csv()?;
        }
        Ok(())
    }

    /// Appends a line to `log.txt`.
    pub fn log(&mut self, line: &str) -> Result<()> {
        writeln!(self.log, "{line}").or_exit(Exit::Storage, || "writing log.txt")
    }

    /// One row per epoch; nested numbers are columns such as `test.accuracy`, empty where there is none. What is told
    /// layer by layer stays in `metrics.jsonl`: a table of hundreds of columns is nobody's to read.
    fn write_csv(&self) -> Result<()> {
        let text = fs::read_to_string(self.path.join("metrics.jsonl"))?;
        let mut table = csv::Writer::from_writer(Vec::new());
        let mut columns: Vec<String> = Vec::new();
        let mut rows = Vec::new();
        for line in text.lines() {
            let record: Value = serde_json::from_str(line)?;
            if record["kind"] == "epoch" {
                let mut row = Vec::new();
                flatten("", &record, &mut row);
                columns.extend(
                    row.iter()
                        .map(|(name, _)| name)
                        .filter(|name| !columns.contains(name))
                        .cloned()
                        .collect::<Vec<_>>(),
                );
                rows.push(row);
            }
        }
        table.write_record(&columns)?;
        for row in rows {
            let cell = |column| row.iter().find(|(name, _)| name == column).map(|(_, cell)| cell.as_str());
            table.write_record(columns.iter().map(|column| cell(column).unwrap_or_default()))?;
        }
        atomic::write_bytes(&self.path.join("metrics.csv"), &table.into_inner()?)
    }
}

#[derive(Deserialize)]
struct Position {
    kind: String,
    epoch: u64,
    step: u64,
}

fn flatten(name: &str, value: &Value, cells: &mut Vec<(String, String)>) {
    let Value::Object(inner) = value else {
        return cells.push((name.to_owned(), value.to_string()));
    };
    for (key, value) in inner.iter().filter(|(key, _)| !["kind", "layers"].contains(&key.as_str())) {
        let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
        flatten(&name, value, cells);
    }
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
