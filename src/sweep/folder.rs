//! The folder of a sweep: what it is, a line per finished trial, and in the end what they say.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::choice::choose;
use super::outcome::{Outcome, csv};
use super::prune::IntermediateScore;
use super::{Design, Ending, Finished, Trial, path};
use crate::plot::png;
use crate::plot::standalone;
use crate::sweep::search_space::Point;
use crate::util::atomic_file;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::folder_lock::lock;

const DESIGN: &str = "sweep.json";
const TRIALS: &str = "trials.jsonl";
const POINTS: &str = "points.jsonl";
const REPORTS: &str = "reports.jsonl";

/// What a sweep that goes on has behind it.
#[derive(Default)]
pub struct Past {
    pub finished: Vec<Finished>,
    /// Of TPE.
    pub points: Vec<Point>,
    pub scores: Vec<IntermediateScore>,
}

/// The folder of a sweep.
pub struct Folder {
    pub path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Takes the folder for `design`: a new one, or with `resume` one that holds the same design. Returns
    /// what is there already.
    pub fn open(path: &Path, design: &Design, resume: bool) -> Result<(Self, Past)> {
        atomic_file::make_folder(path)
            .with_exit_code(ExitCode::Storage, || format!("making {}", path.display()))?;
        // Two sweeps would record every trial twice, and choose among the halves.
        let folder = Self { path: path.to_owned(), _lock: lock(path, "sweeping")? };
        atomic_file::sweep(path);
        let file = path.join(DESIGN);
        let now = serde_json::to_value(design)?;
        if !file.exists() {
            folder.write(DESIGN, &(serde_json::to_string_pretty(&now)? + "\n"))?;
            return Ok((folder, Past::default()));
        }
        if !resume {
            let message = format!(
                "{} holds a sweep already; --resume goes on with it, --output FOLDER puts the new one elsewhere",
                path.display()
            );
            return Err(fail(ExitCode::Usage, message));
        }
        let text = fs::read_to_string(&file).with_exit_code(ExitCode::Storage, || file.display())?;
        let then: Value =
            serde_json::from_str(&text).with_exit_code(ExitCode::Checkpoint, || file.display())?;
        if then != now {
            let differ = |key: &&String| then.get(key.as_str()) != now.get(key.as_str());
            let keys: Vec<_> =
                now.as_object().into_iter().flat_map(Map::keys).filter(differ).map(String::as_str).collect();
            // What follows from the axes, and what the config is called in here.
            let axes = keys.contains(&"axes");
            let named = keys.iter().filter(|key| !(axes && ["points", "count"].contains(key)));
            let named: Vec<_> = named.map(|&key| if key == "base" { "config" } else { key }).collect();
            let message = format!(
                "{} was begun as another sweep, which differs in its {}: go on with the command that began it, or start a new \
                 sweep with --output FOLDER",
                path.display(),
                named.join(", ")
            );
            return Err(fail(ExitCode::Usage, message));
        }
        let mut past = Past {
            finished: folder.lines(TRIALS)?,
            points: folder.lines(POINTS)?,
            scores: folder.lines(REPORTS)?,
        };
        let mut known = HashSet::new();
        past.finished.retain(|one| one.ending != Ending::Crashed && known.insert(one.trial));
        folder.rewrite(TRIALS, &past.finished)?;
        Ok((folder, past))
    }

    /// What a file holds, line by line. A line that was being written when the process was killed is no line,
    /// and goes.
    fn lines<T: Serialize + DeserializeOwned>(&self, name: &str) -> Result<Vec<T>> {
        let path = self.path.join(name);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            text => text.with_exit_code(ExitCode::Storage, || path.display().to_string())?,
        };
        // Bytes: one that is no UTF-8 must not cost the other lines.
        let lines = text.split(|&byte| byte == b'\n');
        let lines: Vec<T> = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
        self.rewrite(name, &lines)?;
        Ok(lines)
    }

    fn rewrite<T: Serialize>(&self, name: &str, lines: &[T]) -> Result<()> {
        if lines.is_empty() && !self.path.join(name).exists() {
            return Ok(());
        }
        let whole: Result<String> = lines.iter().map(|one| Ok(serde_json::to_string(one)? + "\n")).collect();
        self.write(name, &whole?)
    }

    pub fn trial(&self, trial: &Trial) -> PathBuf {
        self.path.join("trials").join(format!("{:04}", trial.id))
    }

    /// Adds a finished trial.
    pub fn record(&self, finished: &Finished) -> Result<()> {
        self.append(TRIALS, finished)
    }

    /// Adds a point that a search has come up with.
    pub fn record_point(&self, point: &Point) -> Result<()> {
        self.append(POINTS, point)
    }

    /// Adds a decision.
    pub fn record_score(&self, score: &IntermediateScore) -> Result<()> {
        self.append(REPORTS, score)
    }

    fn append(&self, name: &str, one: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(one)? + "\n";
        let append = || -> Result<()> {
            let mut file = OpenOptions::new().append(true).create(true).open(self.path.join(name))?;
            Ok(file.write_all(line.as_bytes())?)
        };
        append().with_exit_code(ExitCode::Storage, || self.path.join(name).display().to_string())
    }

    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        self.write_bytes(name, text.as_bytes())
    }

    pub fn write_bytes(&self, name: &str, bytes: &[u8]) -> Result<()> {
        atomic_file::write_bytes(&self.path.join(name), bytes)
    }

    /// `trials.csv`, `result.json` and, for one number, `curve.svg` and `curve.png`; for two, `heat.svg` and
    /// `heat.png`; of a path its coefficients.
    pub fn conclude(&self, design: &Design, finished: &[Finished]) -> Result<Outcome> {
        let standings = design.standings(finished);
        let choice = choose(&standings, &design.keys(), design.higher_is_better);
        let mut sorted = finished.to_vec();
        sorted.sort_by_key(|one| one.trial);
        self.write("trials.csv", &csv(design, &sorted)?)?;
        let outcome = Outcome { metric: design.metric.clone(), standings, choice };
        self.write("result.json", &(serde_json::to_string_pretty(&outcome.report(design))? + "\n"))?;
        let view = outcome.view(design);
        for (name, drawing) in [("curve", view.curve()), ("heat", view.heat())] {
            let Some(drawing) = drawing.as_deref().map(standalone) else { continue };
            self.write(&format!("{name}.svg"), &drawing)?;
            self.write_bytes(&format!("{name}.png"), &png::png(&drawing)?)?;
        }
        if design.path {
            path::conclude(self, design, finished)?;
        }
        Ok(outcome)
    }
}
