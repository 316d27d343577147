//! Sweeps: which runs there are, what became of each, and what they say together.

pub mod choice;
pub mod over;
pub mod plot;
pub mod separable;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::checkpoint::atomic;
use crate::exit::{Exit, OrExit, fail};
use crate::figure;
use crate::model::table;
use crate::plot::standalone;
use choice::{Choice, Standing, choose};
use over::{Axis, Point};

const DESIGN: &str = "sweep.json";
const TRIALS: &str = "trials.jsonl";

/// Everything that decides which runs there are: a sweep goes on only where it is the same.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Design {
    /// The config that all trials share.
    pub base: Value,
    pub axes: Vec<Axis>,
    pub points: Vec<Point>,
    pub seeds: Vec<u64>,
    /// Folds of the cross-validation; None where the config's own validation set judges.
    pub folds: Option<usize>,
    /// Of the validation set.
    pub metric: String,
    pub higher_is_better: bool,
}

/// One run of a sweep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    pub id: usize,
    pub point: usize,
    pub seed: u64,
    pub fold: Option<usize>,
}

/// How a trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    Done,
    /// Its loss became NaN or infinite.
    Diverged,
}

/// A line of `trials.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finished {
    pub trial: usize,
    /// The keys that the sweep varies, and their values.
    pub point: Map<String, Value>,
    pub seed: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fold: Option<usize>,
    pub ending: Ending,
    pub score: Option<f64>,
    /// All scores on the validation set.
    pub scores: Value,
    /// Of training.
    pub seconds: f64,
}

impl Design {
    /// Point by point, seed by seed, fold by fold.
    pub fn trials(&self) -> Vec<Trial> {
        let folds: Vec<Option<usize>> = match self.folds {
            Some(folds) => (0..folds).map(Some).collect(),
            None => vec![None],
        };
        let mut trials = Vec::new();
        for point in 0..self.points.len() {
            for &seed in &self.seeds {
                for &fold in &folds {
                    trials.push(Trial { id: trials.len(), point, seed, fold });
                }
            }
        }
        trials
    }

    /// `key=value` for everything in which a point differs from the base.
    pub fn assignments(&self, point: &Point) -> Vec<String> {
        self.axes.iter().zip(point).map(|(axis, value)| format!("{}={value}", axis.key)).collect()
    }

    /// The same, with the trial's seed and fold.
    pub fn sets(&self, trial: &Trial) -> Vec<String> {
        let mut sets = self.assignments(&self.points[trial.point]);
        sets.push(format!("seed={}", trial.seed));
        if let (Some(of), Some(index)) = (self.folds, trial.fold) {
            // Only the folds differ between settings: an own `shuffle` stays.
            let shuffle = self.base.pointer("/data/validation/fold/shuffle").and_then(Value::as_bool);
            let fold = json!({"of": of, "index": index, "shuffle": shuffle.unwrap_or(true)});
            sets.push(format!("data.validation={}", json!({"fold": fold})));
        }
        sets
    }

    pub fn named(&self, point: &Point) -> Map<String, Value> {
        self.axes.iter().map(|axis| axis.key.clone()).zip(point.iter().cloned()).collect()
    }

    /// What the finished trials say of each point; points without all their trials are left out.
    pub fn standings(&self, finished: &[Finished]) -> Vec<Standing> {
        let per_point = self.seeds.len() * self.folds.unwrap_or(1);
        let trials = self.trials();
        let scores = |point: usize| -> Vec<Option<f64>> {
            let mut of_point: Vec<_> = finished
                .iter()
                .filter(|one| trials.get(one.trial).is_some_and(|t| t.point == point))
                .collect();
            // The sum must not depend on who finished first.
            of_point.sort_by_key(|one| one.trial);
            of_point.into_iter().map(|one| one.score).collect()
        };
        (0..self.points.len())
            .map(|point| (point, scores(point)))
            .filter(|(_, scores)| scores.len() == per_point)
            .map(|(point, scores)| Standing::of(self.points[point].clone(), &scores))
            .collect()
    }
}

/// The folder of a sweep.
pub struct Folder {
    pub path: PathBuf,
}

impl Folder {
    /// Takes the folder for `design`: a new one, or with `resume` one that holds the same design. Returns what is
    /// finished already.
    pub fn open(path: &Path, design: &Design, resume: bool) -> Result<(Self, Vec<Finished>)> {
        let folder = Self { path: path.to_owned() };
        let file = path.join(DESIGN);
        let now = serde_json::to_value(design)?;
        if !file.exists() {
            fs::create_dir_all(path).or_exit(Exit::Storage, || path.display())?;
            folder.write(DESIGN, &(serde_json::to_string_pretty(&now)? + "\n"))?;
            return Ok((folder, Vec::new()));
        }
        if !resume {
            let message = format!(
                "{} holds a sweep already; --resume goes on with it, --output FOLDER puts the new one elsewhere",
                path.display()
            );
            return Err(fail(Exit::Usage, message));
        }
        let text = fs::read_to_string(&file).or_exit(Exit::Storage, || file.display())?;
        let then: Value = serde_json::from_str(&text).or_exit(Exit::Checkpoint, || file.display())?;
        if then != now {
            let differ = |key: &&String| then.get(key.as_str()) != now.get(key.as_str());
            let keys: Vec<_> =
                now.as_object().into_iter().flat_map(Map::keys).filter(differ).cloned().collect();
            let message = format!(
                "{} was begun with another {}; start a new sweep with --output FOLDER",
                path.display(),
                keys.join(", ")
            );
            return Err(fail(Exit::Usage, message));
        }
        let text = fs::read_to_string(path.join(TRIALS)).unwrap_or_default();
        // A line that was being written when the process was killed is no line.
        let finished: Vec<Finished> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let whole: Result<String> =
            finished.iter().map(|one| Ok(serde_json::to_string(one)? + "\n")).collect();
        folder.write(TRIALS, &whole?)?;
        Ok((folder, finished))
    }

    pub fn trial(&self, trial: &Trial) -> PathBuf {
        self.path.join("trials").join(format!("{:04}", trial.id))
    }

    /// Adds a finished trial.
    pub fn record(&self, finished: &Finished) -> Result<()> {
        let line = serde_json::to_string(finished)? + "\n";
        let append = || -> Result<()> {
            let mut file = OpenOptions::new().append(true).create(true).open(self.path.join(TRIALS))?;
            Ok(file.write_all(line.as_bytes())?)
        };
        append().or_exit(Exit::Storage, || self.path.join(TRIALS).display().to_string())
    }

    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        atomic::write(&self.path.join(name), |file| Ok(file.write_all(text.as_bytes())?))
    }

    /// `trials.csv`, `result.json` and, for one number, `curve.svg` and `curve.png`; for two, `heat.svg` and `heat.png`.
    pub fn conclude(&self, design: &Design, finished: &[Finished]) -> Result<Outcome> {
        let standings = design.standings(finished);
        let choice = choose(&standings, design.higher_is_better);
        let mut sorted = finished.to_vec();
        sorted.sort_by_key(|one| one.trial);
        self.write("trials.csv", &csv(design, &sorted)?)?;
        let outcome = Outcome { metric: design.metric.clone(), standings, choice };
        self.write("result.json", &(serde_json::to_string_pretty(&outcome.report(design))? + "\n"))?;
        let view = outcome.view(design);
        for (name, drawing) in [("curve", view.curve()), ("heat", view.heat())] {
            let Some(drawing) = drawing.as_deref().map(standalone) else { continue };
            self.write(&format!("{name}.svg"), &drawing)?;
            let picture = figure::png(&drawing)?;
            atomic::write(&self.path.join(format!("{name}.png")), |file| Ok(file.write_all(&picture)?))?;
        }
        Ok(outcome)
    }
}

/// What a sweep has found.
pub struct Outcome {
    pub metric: String,
    pub standings: Vec<Standing>,
    pub choice: Option<Choice>,
}

impl Outcome {
    fn report(&self, design: &Design) -> Value {
        let row = |standing: &Standing| {
            json!({
                "point": design.named(&standing.point), "mean": standing.mean,
                "standard_error": standing.standard_error, "trials": standing.trials, "diverged": standing.diverged,
            })
        };
        let chosen = |at: Option<usize>| at.map(|at| row(&self.standings[at]));
        json!({
            "metric": self.metric,
            "higher_is_better": design.higher_is_better,
            "points": self.standings.iter().map(row).collect::<Vec<_>>(),
            "best": chosen(self.choice.map(|choice| choice.best)),
            "one_standard_error": chosen(self.choice.and_then(|choice| choice.one_standard_error)),
        })
    }

    fn view<'a>(&'a self, design: &'a Design) -> plot::View<'a> {
        plot::View {
            keys: design.axes.iter().map(|axis| axis.key.as_str()).collect(),
            log: design.axes.iter().map(|axis| axis.range.is_some_and(|range| range.log)).collect(),
            metric: &self.metric,
            higher_is_better: design.higher_is_better,
            standings: self.standings.iter().collect(),
            scores: Vec::new(),
            best: self.choice.map(|choice| choice.best),
            one_standard_error: self.choice.and_then(|choice| choice.one_standard_error),
        }
    }

    /// A table for people: the best point is marked `*`, the one-standard-error point `+`.
    pub fn table(&self, design: &Design) -> String {
        let mut head: Vec<&str> = design.axes.iter().map(|axis| axis.key.as_str()).collect();
        head.extend([self.metric.as_str(), "± se", "trials", ""]);
        let mut rows = Vec::with_capacity(self.standings.len());
        for (at, standing) in self.standings.iter().enumerate() {
            let mut row: Vec<String> = standing.point.iter().map(shown).collect();
            let number = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.5}"));
            row.push(if standing.diverged > 0 { "diverged".into() } else { number(standing.mean) });
            row.push(number(standing.standard_error));
            row.push((standing.trials + standing.diverged).to_string());
            let best = self.choice.is_some_and(|choice| choice.best == at);
            let simple = self.choice.is_some_and(|choice| choice.one_standard_error == Some(at));
            row.push([if best { "*" } else { "" }, if simple { "+" } else { "" }].concat());
            rows.push(row);
        }
        table(&head, 0, rows)
    }
}

/// `penalty.l2=0.01, seed=3`, for people.
pub fn words(point: &Map<String, Value>) -> String {
    let words: Vec<_> = point.iter().map(|(key, value)| format!("{key}={}", shown(value))).collect();
    words.join(", ")
}

/// A value in a table: four digits of a number, other values as they are.
pub fn shown(value: &Value) -> String {
    match value.as_f64() {
        Some(number) if !value.is_i64() && !value.is_u64() => {
            let scientific = format!("{number:.3e}");
            let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
            match number == 0.0 || (1e-3..1e4).contains(&number.abs()) {
                true => format!("{}", (number * 1e6).round() / 1e6),
                false => format!("{}e{exponent}", digits.trim_end_matches('0').trim_end_matches('.')),
            }
        }
        _ => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
    }
}

fn csv(design: &Design, finished: &[Finished]) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut head = vec!["trial".to_owned()];
    head.extend(design.axes.iter().map(|axis| axis.key.clone()));
    head.extend(["seed", "fold", "ending", design.metric.as_str(), "seconds"].map(str::to_owned));
    writer.write_record(&head)?;
    for one in finished {
        let mut row = vec![one.trial.to_string()];
        row.extend(design.axes.iter().map(|axis| {
            let value = one.point.get(&axis.key).cloned().unwrap_or_default();
            value.as_str().map_or_else(|| value.to_string(), str::to_owned)
        }));
        let ending = serde_json::to_value(one.ending)?;
        row.extend([
            one.seed.to_string(),
            one.fold.map_or_else(String::new, |fold| fold.to_string()),
            ending.as_str().unwrap_or_default().to_owned(),
            one.score.map_or_else(String::new, |score| score.to_string()),
            format!("{:.3}", one.seconds),
        ]);
        writer.write_record(&row)?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}
