//! What a sweep is: its points, seeds and folds, and the trials that they make.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::choice::{Score, Standing, same_folds};
use super::prune::Prune;
use super::search::Search;
use crate::metrics::is_of_all;
use crate::sweep::search_space::{Axis, Point};
use crate::util::exit_code::{ExitCode, WithExitCode};

/// Everything that decides which runs there are: a sweep goes on only where it is the same.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Design {
    /// The config that all trials share.
    pub base: Value,
    pub axes: Vec<Axis>,
    #[serde(default, skip_serializing_if = "is_grid")]
    pub search: Search,
    /// Those of TPE come one by one, [`Self::count`] in the end; they are no part of what the sweep is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<Point>,
    /// Points in the end.
    pub count: usize,
    pub seeds: Vec<u64>,
    /// Folds of the cross-validation; None where the config's own validation set judges.
    pub folds: Option<usize>,
    /// Of the validation set.
    pub metric: String,
    pub higher_is_better: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prune: Option<Prune>,
    /// Whether each trial starts where the one with the next stronger penalty ended: the points are in that
    /// order.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub path: bool,
}

fn is_grid(search: &Search) -> bool {
    *search == Search::Grid
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
    /// It was given up for others that did better.
    Pruned,
    /// Its process was killed, or ran out of memory, twice; `--resume` tries it again.
    Crashed,
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
    /// Of a pruned trial the epochs that it had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Of a pruned trial the one after its last epoch.
    pub score: Option<f64>,
    /// All scores on the validation set.
    pub scores: Value,
    /// Of training.
    pub seconds: f64,
}

impl Design {
    /// Point by point, seed by seed, fold by fold.
    pub fn trials(&self) -> Vec<Trial> {
        (0..self.points.len()).flat_map(|point| self.trials_of(point)).collect()
    }

    pub fn trials_of(&self, point: usize) -> Vec<Trial> {
        let folds: Vec<Option<usize>> = match self.folds {
            Some(folds) => (0..folds).map(Some).collect(),
            None => vec![None],
        };
        let both = self.seeds.iter().flat_map(|&seed| folds.iter().map(move |&fold| (seed, fold)));
        let first = point * self.per_point();
        both.enumerate().map(|(at, (seed, fold))| Trial { id: first + at, point, seed, fold }).collect()
    }

    /// Trials of a point.
    pub fn per_point(&self) -> usize {
        self.seeds.len() * self.folds.unwrap_or(1)
    }

    /// The keys that are varied.
    pub fn keys(&self) -> Vec<&str> {
        self.axes.iter().map(|axis| axis.key.as_str()).collect()
    }

    /// What can run beside each other in the end: trials, or whole paths of them.
    pub fn breadth(&self) -> usize {
        if self.path { self.per_point() } else { self.total() }
    }

    /// Trials in the end.
    pub fn total(&self) -> usize {
        self.count * self.per_point()
    }

    /// The score from all that a run has, NaN where it is none.
    pub fn score(&self, scores: &Value) -> Result<f64> {
        let score = scores.get(&self.metric).with_exit_code(ExitCode::Usage, || {
            let known: Vec<_> = scores.as_object().into_iter().flat_map(|map| map.keys().cloned()).collect();
            format!("there is no score `{}`; the scores are {}", self.metric, known.join(", "))
        })?;
        Ok(score.as_f64().unwrap_or(f64::NAN))
    }

    /// `key=value` for everything in which a point differs from the base.
    pub fn assignments(&self, point: &Point) -> Vec<String> {
        self.axes.iter().zip(point).map(|(axis, value)| format!("{}={value}", axis.key)).collect()
    }

    /// Has the trials compute the score that decides, where it is none that they compute anyway.
    fn wanted(&self) -> Option<String> {
        let task = &self.base["task"];
        let task = task.as_str().or_else(|| Some(task.as_object()?.keys().next()?.as_str()));
        if !task.is_some_and(|task| is_of_all(task, &self.metric)) {
            return None;
        }
        let own = self.base.pointer("/train/metrics").and_then(Value::as_array);
        let mut names: Vec<Value> = own.cloned().unwrap_or_default();
        if !names.iter().any(|name| *name == self.metric) {
            names.push(self.metric.clone().into());
        }
        Some(format!("train.metrics={}", Value::from(names)))
    }

    /// The same, with the trial's seed and fold.
    pub fn sets(&self, trial: &Trial) -> Vec<String> {
        let mut sets = self.assignments(&self.points[trial.point]);
        sets.push(format!("seed={}", trial.seed));
        sets.extend(self.wanted());
        if let (Some(of), Some(index)) = (self.folds, trial.fold) {
            // Only the folds differ between settings: an own `shuffle` and `group` stay.
            let own = self.base.pointer("/data/validation/fold").and_then(Value::as_object);
            let mut fold = own.cloned().unwrap_or_default();
            fold.insert("of".into(), of.into());
            fold.insert("index".into(), index.into());
            sets.push(format!("data.validation={}", json!({"fold": fold})));
        }
        sets
    }

    pub fn named(&self, point: &Point) -> Map<String, Value> {
        self.axes.iter().map(|axis| axis.key.clone()).zip(point.iter().cloned()).collect()
    }

    /// What the finished trials say of each point; points without all their trials are left out.
    pub fn standings(&self, finished: &[Finished]) -> Vec<Standing> {
        let (per_point, same_folds) = (self.per_point(), same_folds(&self.base));
        let of_point = |point: usize| -> Vec<&Finished> {
            let mut of_point: Vec<_> = finished.iter().filter(|one| one.trial / per_point == point).collect();
            // The sum must not depend on who finished first.
            of_point.sort_by_key(|one| one.trial);
            of_point
        };
        (0..self.points.len())
            .map(|point| (point, of_point(point)))
            .filter(|(_, trials)| trials.len() == per_point)
            .map(|(point, trials)| {
                let is_over = |one: &&&Finished| matches!(one.ending, Ending::Done | Ending::Diverged);
                let score = |one: &&Finished| Score { seed: one.seed, fold: one.fold, value: one.score };
                let scores: Vec<_> = trials.iter().filter(is_over).map(score).collect();
                let count = |ending| trials.iter().filter(|one| one.ending == ending).count();
                Standing::of(self.points[point].clone(), &scores, same_folds)
                    .without(count(Ending::Pruned), count(Ending::Crashed))
            })
            .collect()
    }
}
