//! What a run, or a sweep, has left in its folder, as far as it can be read: a killed run and one of an
//! earlier version too.

mod sweep;

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};

use crate::config::CONFIG_FILE;
use crate::metrics::{Monitor, with_class_name};
use crate::penalty::KEYS;
use crate::plot::number;
use crate::tasks::TaskSpec;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::yaml::Document;

pub use sweep::{Swept, SweptPoint};

/// The state of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunStatus {
    /// A process trains it.
    Running,
    Done,
    /// Its loss became NaN or infinite.
    Diverged,
    /// `--resume` goes on with it.
    Interrupted,
}

impl RunStatus {
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Diverged => "diverged",
            Self::Interrupted => "interrupted",
        }
    }
}

/// A run as its folder records it. What is not there is null or empty.
pub struct History {
    pub path: PathBuf,
    /// The name of the folder.
    pub name: String,
    pub config: Value,
    /// Records of `metrics.jsonl`; lines that are broken are left out.
    pub steps: Vec<Value>,
    pub epochs: Vec<Value>,
    pub result: Value,
    pub confusion: Value,
    pub status: RunStatus,
}

impl History {
    pub fn is_run(path: &Path) -> bool {
        path.join(CONFIG_FILE).is_file() || path.join("metrics.jsonl").is_file()
    }

    /// Exit 2 where the folder holds no run.
    pub fn read(path: &Path) -> Result<Self> {
        if !Self::is_run(path) {
            let message =
                format!("{} holds no run: neither config.yaml nor metrics.jsonl is there", path.display());
            return Err(fail(ExitCode::Usage, message));
        }
        let config = fs::read_to_string(path.join(CONFIG_FILE)).unwrap_or_default();
        let config = Document::parse(CONFIG_FILE, config).map_or(Value::Null, |document| document.tree);
        let metrics = path.join("metrics.jsonl");
        let records = match fs::read(&metrics) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            bytes => bytes.with_exit_code(ExitCode::Storage, || metrics.display())?,
        };
        let [result, confusion] = ["result.json", "confusion.json"].map(|name| json_of(&path.join(name)));
        let mut history = Self::new(path, config, &records, result, confusion);
        history.status = history.read_status();
        Ok(history)
    }

    /// The run in the folder `path`, from what would be read there: the lines of `metrics.jsonl`,
    /// `result.json`, `confusion.json`; the two are null where there are none.
    pub fn new(path: &Path, config: Value, records: &[u8], result: Value, confusion: Value) -> Self {
        let text = String::from_utf8_lossy(records);
        let (mut steps, mut epochs) = (Vec::new(), Vec::new());
        for record in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            match record["kind"].as_str() {
                Some("step") => steps.push(record),
                Some("epoch") => epochs.push(record),
                _ => {}
            }
        }
        let status = if result.is_null() { RunStatus::Interrupted } else { RunStatus::Done };
        let (path, name) = (path.to_owned(), name_of(path));
        Self { path, name, config, steps, epochs, result, confusion, status }
    }

    fn read_status(&self) -> RunStatus {
        if is_locked(&self.path) {
            return RunStatus::Running;
        }
        // A resumed run that goes beyond its old result is not done.
        let step = |record: Option<&Value>| record.and_then(|record| record["step"].as_u64()).unwrap_or(0);
        let reached = step(self.steps.last()).max(step(self.epochs.last()));
        if self.result["steps"].as_u64().is_some_and(|steps| steps >= reached) {
            return RunStatus::Done;
        }
        let log = fs::read(self.path.join("log.txt")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        match log.lines().next_back().is_some_and(|line| line.contains("became NaN or infinite")) {
            true => RunStatus::Diverged,
            false => RunStatus::Interrupted,
        }
    }

    /// The score that decides; None where the config does not say.
    pub fn monitor(&self) -> Option<Monitor> {
        let task = match &self.config["task"] {
            Value::String(name) => json!({name: {}}),
            task => task.clone(),
        };
        let task: TaskSpec = serde_json::from_value(task).ok()?;
        let mut monitor = task.monitor(self.config["train"]["monitor"].as_str()).ok()?;
        // As the records call it; those of earlier versions have numbers.
        let classes = &self.config["data"]["train"]["images"]["mask"]["classes"];
        let classes: Vec<String> = serde_json::from_value(classes.clone()).unwrap_or_default();
        let named = with_class_name(&monitor.metric, &classes);
        let has =
            |record: &Value| ["validation", "test"].iter().any(|split| !record[split][&named].is_null());
        if self.epochs.iter().any(has) {
            monitor.metric = named;
        }
        Some(monitor)
    }

    /// Epochs that are over.
    pub fn epochs_done(&self) -> u64 {
        self.epochs.last().and_then(|record| record["epoch"].as_f64()).map_or(0, |epoch| epoch as u64)
    }

    pub fn epochs_planned(&self) -> Option<u64> {
        self.config["train"]["epochs"].as_u64()
    }

    /// Of training.
    pub fn seconds(&self) -> f64 {
        self.result["seconds"].as_f64().unwrap_or_else(|| self.sum(|record| record["seconds"].as_f64()))
    }

    pub fn images_per_s(&self) -> Option<f64> {
        let seconds = self.sum(|record| record["seconds"].as_f64());
        let images = self.sum(|record| Some(record["seconds"].as_f64()? * record["images_per_s"].as_f64()?));
        (seconds > 0.0).then(|| images / seconds)
    }

    fn sum(&self, of: impl Fn(&Value) -> Option<f64>) -> f64 {
        // An empty `sum` is −0.
        self.epochs.iter().filter_map(of).fold(0.0, |sum, value| sum + value)
    }

    /// The best of a score on the validation set, or where there is none on the test set; and the epoch.
    pub fn best(&self, Monitor { metric, higher_is_better }: &Monitor) -> Option<(f64, u64)> {
        let of = |split: &str| {
            let scores = self
                .epochs
                .iter()
                .filter_map(|record| Some((record[split][metric].as_f64()?, record["epoch"].as_u64()?)));
            scores.reduce(|a, b| if (b.0 > a.0) == *higher_is_better && b.0 != a.0 { b } else { a })
        };
        of("validation").or_else(|| of("test"))
    }

    /// The last `metric` on the test set.
    pub fn last_test(&self, metric: &str) -> Option<f64> {
        let last = self.result["last"]["test"][metric].as_f64();
        last.or_else(|| self.epochs.iter().rev().find_map(|record| record["test"][metric].as_f64()))
    }

    /// `l2 5·10⁻⁴`, as the config declares it.
    pub fn penalty(&self) -> String {
        let penalty = &self.config["penalty"];
        let reached = |key: &str| {
            let mut groups = self.epochs.last()?["lambda"].as_object()?.values();
            groups.find_map(|rates| rates[key].as_f64())
        };
        let lambda =
            |key: &str, value: &Value| match (value.as_f64(), value["start"].as_f64(), value["end"].as_f64())
            {
                (Some(lambda), ..) => Some(number(lambda)).filter(|_| lambda != 0.0),
                (_, Some(start), Some(end)) => Some(format!("{} → {}", number(start), number(end))),
                _ if value.get("auto").is_some() => Some(
                    reached(key)
                        .map_or_else(|| "auto".into(), |lambda| format!("auto, now {}", number(lambda))),
                ),
                _ => None,
            };
        let mut words: Vec<String> =
            (KEYS.iter()).filter_map(|key| Some(format!("{key} {}", lambda(key, &penalty[*key])?))).collect();
        let groups = |section: &Value| section["groups"].as_array().map_or(0, Vec::len);
        match groups(penalty) + groups(&self.config) {
            0 => {}
            1 => words.push("1 group".into()),
            more => words.push(format!("{more} groups")),
        }
        if words.is_empty() { "none".into() } else { words.join(", ") }
    }

    /// The optimizer's name and base learning rate.
    pub fn optimizer(&self) -> Option<(String, f64)> {
        let (name, arguments) = self.config["optimizer"].as_object()?.iter().next()?;
        Some((name.clone(), arguments["lr"].as_f64()?))
    }

    /// Epochs as a fraction for the records of steps, and what `value` finds in each: NaN where it is null.
    pub fn over_steps(&self, value: impl Fn(&Value) -> Option<&Value>) -> Vec<(f64, f64)> {
        let of = |record: &Value| Some((record["step"].as_f64()?, record["epoch"].as_f64()?));
        let per_epoch = self.epochs.last().and_then(of).map(|(step, epoch)| step / epoch);
        // Before the end of the first epoch its length is not known.
        let per_epoch = per_epoch.or_else(|| self.steps.last().and_then(of).map(|(step, _)| step));
        points(&self.steps, |record| Some(record["step"].as_f64()? / per_epoch?), value)
    }

    pub fn over_epochs(&self, value: impl Fn(&Value) -> Option<&Value>) -> Vec<(f64, f64)> {
        points(&self.epochs, |record| record["epoch"].as_f64(), value)
    }

    /// PNG files under `pictures`: the newest epoch first, by the first number in their names, then by name.
    pub fn pictures(&self) -> Vec<PathBuf> {
        let folder = fs::read_dir(self.path.join("pictures"));
        let files = folder.into_iter().flatten().flatten().map(|entry| entry.path());
        let mut files: Vec<PathBuf> =
            files.filter(|path| path.extension().is_some_and(|e| e == "png")).collect();
        let key = |path: &PathBuf| {
            let name = name_of(path);
            let number = name.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty());
            (std::cmp::Reverse(number.and_then(|digits| digits.parse::<u64>().ok())), name)
        };
        files.sort_by_cached_key(key);
        files
    }
}

fn points(
    records: &[Value],
    x: impl Fn(&Value) -> Option<f64>,
    value: impl Fn(&Value) -> Option<&Value>,
) -> Vec<(f64, f64)> {
    let point = |record| Some((x(record)?, value(record)?.as_f64().unwrap_or(f64::NAN)));
    records.iter().filter_map(point).collect()
}

/// Null where there is no such file, or it is no JSON.
fn json_of(path: &Path) -> Value {
    fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or(Value::Null)
}

/// The last part of the path, as text.
pub fn name_of(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    whole.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// Whether a process trains there. Shared, and for a moment: a run that starts now is not kept from it for
/// long.
fn is_locked(path: &Path) -> bool {
    let Ok(file) = File::open(path.join(".lock")) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}
