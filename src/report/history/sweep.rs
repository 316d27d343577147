//! A sweep by its folder: every trial that is finished, and what they say of each point so far.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Map, Value};

use super::{json_of, name_of};
use crate::sweep::choice::{Score, Standing, choose, same_folds};
use crate::sweep::plot::View;
use crate::util::exit_code::{ExitCode, fail};

pub struct Swept {
    pub path: PathBuf,
    pub name: String,
    /// The keys that are varied.
    pub keys: Vec<String>,
    /// Of them, those that go by the logarithm.
    pub log: Vec<bool>,
    pub metric: String,
    pub higher_is_better: bool,
    pub folds_by_seed: bool,
    pub points: Vec<SweptPoint>,
    /// Indices into `points`.
    pub best: Option<usize>,
    pub one_standard_error: Option<usize>,
    /// Trials that are finished, and their seconds of training together.
    pub finished: usize,
    pub seconds: f64,
}

pub struct SweptPoint {
    pub standing: Standing,
    pub scores: Vec<f64>,
    /// Why it has no mean.
    pub failed: Option<&'static str>,
    /// Folders of its trials.
    pub trials: Vec<PathBuf>,
}

impl Swept {
    pub fn is_sweep(path: &Path) -> bool {
        path.join("sweep.json").is_file()
    }

    /// Exit 2 where the folder holds no sweep that can be read.
    pub fn read(path: &Path) -> Result<Self> {
        let design = json_of(&path.join("sweep.json"));
        let axes = design["axes"].as_array().cloned().unwrap_or_default();
        let keys: Vec<String> =
            axes.iter().filter_map(|axis| Some(axis["key"].as_str()?.to_owned())).collect();
        if keys.is_empty() || keys.len() != axes.len() {
            let message = format!("{} is not a sweep's description", path.join("sweep.json").display());
            return Err(fail(ExitCode::Usage, message));
        }
        let trials = fs::read(path.join("trials.jsonl")).unwrap_or_default();
        let trials = String::from_utf8_lossy(&trials);
        let mut trials: Vec<Value> =
            trials.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        // Stable: of a trial with two lines the first counts.
        trials.sort_by_key(|trial| trial["trial"].as_u64());
        trials.dedup_by_key(|trial| trial["trial"].as_u64());

        let mut points: Vec<(Map<String, Value>, Vec<&Value>)> = Vec::new();
        for trial in &trials {
            let Some(point) = trial["point"].as_object() else { continue };
            match points.iter_mut().find(|known| known.0 == *point) {
                Some(known) => known.1.push(trial),
                None => points.push((point.clone(), vec![trial])),
            }
        }
        let same_folds = same_folds(&design["base"]);
        let points: Vec<SweptPoint> = points
            .into_iter()
            .map(|(point, trials)| swept_point(path, &keys, &point, &trials, same_folds))
            .collect();

        let higher_is_better = design["higher_is_better"].as_bool().unwrap_or(false);
        let result = json_of(&path.join("result.json"));
        let chosen = |which: &str| {
            let wanted = result[which]["point"].as_object()?;
            points.iter().position(|point| {
                keys.iter().zip(&point.standing.point).all(|(key, value)| wanted.get(key) == Some(value))
            })
        };
        let (best, one_standard_error) = match result.is_null() {
            false => (chosen("best"), chosen("one_standard_error")),
            // So far, among the points that have as many trials as any.
            true => {
                let most = points.iter().map(|point| point.standing.trials).max().unwrap_or(0);
                let whole: Vec<usize> =
                    (0..points.len()).filter(|at| points[*at].standing.trials == most).collect();
                let standings: Vec<Standing> = whole.iter().map(|at| points[*at].standing.clone()).collect();
                let choice = choose(&standings, &keys, higher_is_better);
                (choice.map(|c| whole[c.best]), choice.and_then(|c| c.one_standard_error).map(|at| whole[at]))
            }
        };
        Ok(Self {
            path: path.to_owned(),
            name: name_of(path),
            log: axes.iter().map(|axis| axis["range"]["log"].as_bool().unwrap_or(false)).collect(),
            keys,
            metric: design["metric"].as_str().unwrap_or("score").to_owned(),
            higher_is_better,
            folds_by_seed: design["folds"].is_u64() && !same_folds,
            points,
            best,
            one_standard_error,
            finished: trials.len(),
            seconds: trials.iter().filter_map(|trial| trial["seconds"].as_f64()).sum(),
        })
    }
}

impl Swept {
    pub fn view(&self) -> View<'_> {
        View {
            keys: self.keys.iter().map(String::as_str).collect(),
            log: self.log.clone(),
            metric: &self.metric,
            higher_is_better: self.higher_is_better,
            folds_by_seed: self.folds_by_seed,
            standings: self.points.iter().map(|point| &point.standing).collect(),
            scores: self.points.iter().map(|point| point.scores.as_slice()).collect(),
            best: self.best,
            one_standard_error: self.one_standard_error,
        }
    }
}

fn swept_point(
    path: &Path,
    keys: &[String],
    point: &Map<String, Value>,
    trials: &[&Value],
    same_folds: bool,
) -> SweptPoint {
    let values: Vec<Value> = keys.iter().map(|key| point.get(key).cloned().unwrap_or(Value::Null)).collect();
    let ended = |how: &'static str| trials.iter().filter(move |trial| trial["ending"] == how);
    let score = |trial: &&Value| Score {
        seed: trial["seed"].as_u64().unwrap_or_default(),
        fold: trial["fold"].as_u64().map(|fold| fold as usize),
        value: trial["score"].as_f64(),
    };
    let scores: Vec<Score> = ended("done").chain(ended("diverged")).map(score).collect();
    let mut standing = Standing::of(values, &scores, same_folds);
    let failed = ["diverged", "crashed", "pruned"].into_iter().find(|how| ended(how).next().is_some());
    if failed.is_some() {
        (standing.mean, standing.standard_error) = (None, None);
    }
    let folder = |trial: &&Value| Some(path.join("trials").join(format!("{:04}", trial["trial"].as_u64()?)));
    SweptPoint {
        standing,
        scores: scores.into_iter().filter_map(|score| score.value).collect(),
        failed,
        trials: trials.iter().filter_map(folder).collect(),
    }
}
