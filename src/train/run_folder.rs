//! The folder of one run: config, metrics, log, checkpoints; one process at a time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::checkpoint::{Checkpoints, State};
use crate::config::{CALIBRATION_FILE, CONFIG_FILE, PREDICTIONS_FILE, PROGRAM_FILE};
use crate::nn::model::scripted::fingerprint;
use crate::train::records::Record;
use crate::util::atomic_file;
use crate::util::console::print_err;
use crate::util::exit_code::{ExitCode, WithExitCode};
use crate::util::folder_lock::lock;

/// A run's folder that no other process trains in; nothing in it is touched yet.
pub struct LockedFolder {
    path: PathBuf,
    lock: File,
}

/// A run's folder, locked for this process until it is dropped.
pub struct RunFolder {
    path: PathBuf,
    metrics: File,
    /// What `metrics.jsonl` holds.
    records: Vec<u8>,
    table: Option<Table>,
    log: File,
    /// When the metrics were last flushed to the disk, and whether there were more since.
    synced: Instant,
    is_behind: bool,
    _lock: File,
}

/// `metrics.csv`, open for more rows.
struct Table {
    columns: Vec<String>,
    file: File,
}

/// How much of the metrics a power failure may lose between two checkpoints. What a killed process wrote is
/// not lost.
const SYNC_EVERY: Duration = Duration::from_secs(1);

impl LockedFolder {
    /// Makes the folder if need be and takes it. Exit 2 where another process has it.
    pub fn take(path: &Path) -> Result<Self> {
        atomic_file::make_folder(path)
            .with_exit_code(ExitCode::Storage, || format!("making the run folder {}", path.display()))?;
        Ok(Self { path: path.into(), lock: lock(path, "training")? })
    }

    /// Whether there is a run, whole or in part, that tikhonov made.
    pub fn holds_run(&self) -> bool {
        self.path.join(CONFIG_FILE).is_file()
            && ["metrics.jsonl", "log.txt", "checkpoints"].iter().any(|name| self.path.join(name).exists())
    }

    /// Removes what a run leaves, and nothing else; says what stays. The result goes first: without it the
    /// run is not over.
    pub fn clear(&self) -> Result<String> {
        const FILES: [&str; 9] = [
            "result.json",
            CALIBRATION_FILE,
            "confusion.json",
            "coefficients.csv",
            PREDICTIONS_FILE,
            "metrics.csv",
            "metrics.jsonl",
            "log.txt",
            PROGRAM_FILE,
        ];
        const FOLDERS: [&str; 5] = ["checkpoints", "plots", "pictures", "tensorboard", "ranks"];
        let removed = |outcome: io::Result<()>, name: &str| match outcome {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error)
                .with_exit_code(ExitCode::Storage, || format!("removing {}", self.path.join(name).display())),
            _ => Ok(()),
        };
        for name in FILES {
            removed(fs::remove_file(self.path.join(name)), name)?;
        }
        for name in FOLDERS {
            removed(fs::remove_dir_all(self.path.join(name)), name)?;
        }
        // The last, so that what is left by a process that was killed is still known for a run.
        removed(fs::remove_file(self.path.join(CONFIG_FILE)), CONFIG_FILE)?;
        let mut rest = Vec::new();
        for entry in fs::read_dir(&self.path).with_exit_code(ExitCode::Storage, || self.path.display())? {
            let name = entry
                .with_exit_code(ExitCode::Storage, || self.path.display())?
                .file_name()
                .to_string_lossy()
                .into_owned();
            if name != ".lock" {
                rest.push(name);
            }
        }
        rest.sort();
        let folder = self.path.display();
        Ok(match rest.as_slice() {
            [] => format!("--force: the run that was in {folder} is replaced"),
            rest => format!(
                "--force: the run that was in {folder} is replaced; not of a run, and left there: {}",
                rest.join(", ")
            ),
        })
    }

    /// Opens the files at their start, or as they were at `state`: what was recorded later is forgotten.
    pub fn begin(self, state: Option<&State>) -> Result<RunFolder> {
        let keep = |position: &Position| match (state, position.kind.as_str()) {
            (None, _) => false,
            (Some(state), "epoch") if position.epoch.fract() == 0.0 => position.epoch <= state.epoch as f64,
            (Some(state), _) => position.step <= state.step,
        };
        self.open(keep).with_exit_code(ExitCode::Storage, || "opening the run folder")
    }

    fn open(self, keep: impl Fn(&Position) -> bool) -> Result<RunFolder> {
        let Self { path, lock } = self;
        for folder in [path.clone(), path.join("plots"), path.join("pictures")] {
            atomic_file::sweep(&folder);
        }
        let metrics = path.join("metrics.jsonl");
        let past = match fs::read(&metrics) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            bytes => bytes.context("metrics.jsonl")?,
        };
        let (mut kept, mut damaged) = (Vec::with_capacity(past.len()), 0);
        for line in past.split_inclusive(|&byte| byte == b'\n') {
            let is_whole = line.ends_with(b"\n");
            match std::str::from_utf8(line).ok().and_then(|line| serde_json::from_str(line).ok()) {
                Some(position) if keep(&position) => {
                    kept.extend_from_slice(line.trim_ascii_end());
                    kept.push(b'\n');
                }
                Some(_) => {}
                // The last line of a process that was killed while it wrote it is no damage.
                None => damaged += usize::from(is_whole),
            }
        }
        // Waiting for the disk where nothing is taken back would only make the start slower.
        if kept != past {
            atomic_file::write_bytes(&metrics, &kept).context("metrics.jsonl")?;
            write_csv(&path, &kept).context("metrics.csv")?;
        }
        let append = |name: &str| {
            OpenOptions::new()
                .append(true)
                .create(true)
                .open(path.join(name))
                .with_context(|| name.to_owned())
        };
        let (metrics, mut log) = (append("metrics.jsonl")?, append("log.txt")?);
        if damaged > 0 {
            let s = if damaged == 1 { "" } else { "s" };
            let line = format!(
                "{damaged} damaged line{s} of metrics.jsonl left out; the checkpoints do not depend on it"
            );
            print_err!("{line}");
            writeln!(log, "{line}").context("log.txt")?;
        }
        // The first epoch to come writes the table whole.
        let (table, synced) = (None, Instant::now());
        Ok(RunFolder { metrics, records: kept, table, log, path, synced, is_behind: false, _lock: lock })
    }
}

impl RunFolder {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The lines of `metrics.jsonl`.
    pub fn records(&self) -> &[u8] {
        &self.records
    }

    /// The step of the last evaluation.
    pub fn last_evaluation(&self) -> Option<u64> {
        let lines = self.records.split(|&byte| byte == b'\n').rev();
        let positions = lines.filter_map(|line| serde_json::from_slice::<Position>(line).ok());
        positions.into_iter().find(|position| position.kind == "epoch").map(|position| position.step)
    }

    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints::of(&self.path)
    }

    /// Stores a file of the run, such as the resolved config.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        atomic_file::write_bytes(&self.path.join(name), text.as_bytes())
            .with_exit_code(ExitCode::Storage, || format!("writing {name} in {}", self.path.display()))
    }

    /// Copies the program `file` of SHA-256 `sha256` into the folder, unless it is there. Exit 4 where `file`
    /// is another by now.
    pub fn keep_program(&self, name: &str, file: &str, sha256: &str) -> Result<()> {
        let own = self.path.join(name);
        let is_kept = || fingerprint(&own.to_string_lossy()).is_ok_and(|known| known == sha256);
        if is_kept() {
            return Ok(());
        }
        let mut program = File::open(file).with_exit_code(ExitCode::Checkpoint, || file.to_owned())?;
        atomic_file::write(&own, |copy| Ok(io::copy(&mut program, copy).map(drop)?))?;
        is_kept().then_some(()).with_exit_code(ExitCode::Checkpoint, || {
            format!("{file} changed while it was being copied into the run folder; start the run again")
        })
    }

    /// Appends to `metrics.jsonl`, and of an epoch a row to `metrics.csv`.
    pub fn record(&mut self, record: &Record) -> Result<()> {
        self.append(record).with_exit_code(ExitCode::Storage, || self.writing("the metrics"))
    }

    fn append(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.metrics.write_all(&line)?;
        self.records.extend_from_slice(&line);
        self.is_behind = true;
        if matches!(record, Record::Epoch(_)) {
            self.tabulate(&line)?;
            if self.synced.elapsed() >= SYNC_EVERY {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Adds the row of `line`; a column that is new makes the table anew, from `metrics.jsonl`.
    fn tabulate(&mut self, line: &[u8]) -> Result<()> {
        let row = row(&serde_json::from_slice(line)?);
        let fits = |table: &&mut Table| row.iter().all(|(name, _)| table.columns.contains(name));
        match self.table.as_mut().filter(fits) {
            Some(table) => {
                let mut lines = csv::Writer::from_writer(Vec::new());
                lines.write_record(cells(&table.columns, &row))?;
                table.file.write_all(&lines.into_inner()?)?;
            }
            None => self.table = write_csv(&self.path, &self.records)?,
        }
        Ok(())
    }

    /// Has the metrics on the disk: a checkpoint must not outlive what led to it.
    pub fn sync(&mut self) -> Result<()> {
        self.flush().with_exit_code(ExitCode::Storage, || self.writing("the metrics to the disk"))
    }

    /// What was being done when it failed. A folder that is gone is named as the cause.
    fn writing(&self, what: &str) -> String {
        let gone =
            if self.path.is_dir() { "" } else { ", which was removed or renamed while the run went on" };
        format!("writing {what} in {}{gone}", self.path.display())
    }

    fn flush(&mut self) -> Result<()> {
        if self.is_behind {
            self.metrics.sync_data()?;
            if let Some(table) = &self.table {
                table.file.sync_data()?;
            }
            (self.synced, self.is_behind) = (Instant::now(), false);
        }
        Ok(())
    }

    /// Appends a line to `log.txt`.
    pub fn log(&mut self, line: &str) -> Result<()> {
        self.log
            .write_all(format!("{line}\n").as_bytes())
            .with_exit_code(ExitCode::Storage, || self.writing("log.txt"))
    }
}

/// `metrics.csv` anew from the lines of `metrics.jsonl`: one row per epoch; nested numbers are columns such as
/// `test.accuracy`, empty where there is none. What is recorded layer by layer stays in `metrics.jsonl`, so
/// that the table has few columns. None, and no file, where no epoch is over.
fn write_csv(folder: &Path, records: &[u8]) -> Result<Option<Table>> {
    let path = folder.join("metrics.csv");
    let mut columns: Vec<String> = Vec::new();
    let mut rows = Vec::new();
    for line in records.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let record: Value = serde_json::from_slice(line)?;
        if record["kind"] == "epoch" {
            let row = row(&record);
            for (name, _) in &row {
                if !columns.contains(name) {
                    columns.push(name.clone());
                }
            }
            rows.push(row);
        }
    }
    if rows.is_empty() {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(None),
        };
    }
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(&columns)?;
    for row in rows {
        table.write_record(cells(&columns, &row))?;
    }
    atomic_file::write_bytes(&path, &table.into_inner()?)?;
    let file = OpenOptions::new().append(true).open(&path)?;
    Ok(Some(Table { columns, file }))
}

/// The columns of an epoch's record, each with its cell.
fn row(record: &Value) -> Vec<(String, String)> {
    let mut row = Vec::new();
    flatten("", record, &mut row);
    row
}

/// The cells of `row` in the order of `columns`.
fn cells<'a>(columns: &'a [String], row: &'a [(String, String)]) -> impl Iterator<Item = &'a str> {
    let cell = |column: &String| row.iter().find(|(name, _)| name == column).map(|(_, cell)| cell.as_str());
    columns.iter().map(move |column| cell(column).unwrap_or_default())
}

#[derive(Deserialize)]
struct Position {
    kind: String,
    /// Of an evaluation within an epoch no whole number.
    epoch: f64,
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
