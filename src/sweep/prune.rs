//! Trials that are given up because others did better at the same age: the median rule (Golovin et al. 2017)
//! and successive halving without waiting for a whole round (ASHA; Li et al. 2020).
//!
//! Trials are compared with those of other points on the same seed and fold. Under parallel trials what is
//! known when a trial is judged depends on who was faster; what was decided once stays decided, in
//! `reports.jsonl`.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Trial;
use crate::util::yaml::Invalid;

/// When to stop a trial early.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Prune {
    Median(Median),
    Halving(Halving),
}

/// A trial stops when its best score so far is worse than the median of the finished trials after as many
/// epochs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Median {
    /// Epochs that every trial gets.
    #[schemars(range(min = 1))]
    pub warmup: u64,
    /// Finished trials that there must be before one is pruned.
    pub startup: usize,
}

/// After `warmup`, `warmup · factor`, `warmup · factor²`, … epochs only the best 1/`factor` of the
/// trials that got so far go on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Halving {
    /// Epochs before the first comparison.
    #[schemars(range(min = 1))]
    pub warmup: u64,
    /// One of so many trials goes on at each comparison.
    #[schemars(range(min = 2))]
    pub factor: u64,
}

impl Default for Median {
    fn default() -> Self {
        Self { warmup: 1, startup: 5 }
    }
}

impl Default for Halving {
    fn default() -> Self {
        Self { warmup: 1, factor: 3 }
    }
}

impl Prune {
    pub fn validate(&self) -> Result<(), Invalid> {
        let refuse = |key: &str, least: u64| Err(Invalid::new(key, format!("must be {least} or more")));
        match self {
            Self::Median(Median { warmup: 0, .. }) => refuse("median.warmup", 1),
            Self::Median(Median { startup: 0, .. }) => refuse("median.startup", 1),
            Self::Halving(Halving { warmup: 0, .. }) => refuse("halving.warmup", 1),
            Self::Halving(Halving { factor: 0 | 1, .. }) => refuse("halving.factor", 2),
            _ => Ok(()),
        }
    }
}

/// A line of `reports.jsonl`: how a trial stood after an epoch, and whether it was given up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct IntermediateScore {
    pub trial: usize,
    pub point: usize,
    pub seed: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fold: Option<usize>,
    pub epoch: u64,
    /// None where it is NaN or infinite.
    pub value: Option<f64>,
    pub pruned: bool,
}

/// Decides about trials, and remembers its decisions.
pub struct TrialPruner {
    rule: Option<Prune>,
    higher_is_better: bool,
    scores: Vec<IntermediateScore>,
    finished: HashSet<usize>,
}

impl TrialPruner {
    /// `scores`: those of a sweep that goes on; `finished`: its trials that came to their own end.
    pub fn new(
        rule: Option<Prune>,
        higher_is_better: bool,
        scores: Vec<IntermediateScore>,
        finished: HashSet<usize>,
    ) -> Self {
        Self { rule, higher_is_better, scores, finished }
    }

    pub fn finish(&mut self, trial: usize) {
        self.finished.insert(trial);
    }

    /// The score with the decision about it, and whether that is new.
    pub fn decide(&mut self, trial: &Trial, epoch: u64, value: f64) -> (IntermediateScore, bool) {
        let known = self.scores.iter().find(|score| score.trial == trial.id && score.epoch == epoch);
        if let Some(known) = known {
            return (*known, false);
        }
        let value = Some(value).filter(|value| value.is_finite());
        let &Trial { id, point, seed, fold } = trial;
        let mut score = IntermediateScore { trial: id, point, seed, fold, epoch, value, pruned: false };
        score.pruned = match &self.rule {
            None => false,
            Some(Prune::Median(rule)) => self.is_below_median(rule, &score),
            Some(Prune::Halving(rule)) => self.is_out(rule, &score),
        };
        self.scores.push(score);
        (score, true)
    }

    /// What is to be small; a score that is no number loses against all.
    fn cost(&self, score: &IntermediateScore) -> f64 {
        let sign = if self.higher_is_better { -1.0 } else { 1.0 };
        score.value.map_or(f64::INFINITY, |value| sign * value)
    }

    fn rivals<'a>(&'a self, score: &IntermediateScore) -> impl Iterator<Item = &'a IntermediateScore> {
        let IntermediateScore { point, seed, fold, .. } = *score;
        self.scores
            .iter()
            .filter(move |other| other.point != point && other.seed == seed && other.fold == fold)
    }

    fn is_below_median(&self, rule: &Median, score: &IntermediateScore) -> bool {
        if score.epoch <= rule.warmup {
            return false;
        }
        let mut costs: Vec<f64> = self
            .rivals(score)
            .filter(|other| other.epoch == score.epoch && self.finished.contains(&other.trial))
            .map(|other| self.cost(other))
            .collect();
        if costs.len() < rule.startup {
            return false;
        }
        costs.sort_by(f64::total_cmp);
        let (low, high) = (costs[(costs.len() - 1) / 2], costs[costs.len() / 2]);
        let own = self.scores.iter().filter(|other| other.trial == score.trial);
        let best = own.map(|other| self.cost(other)).fold(self.cost(score), f64::min);
        best > (low + high) / 2.0
    }

    fn is_out(&self, rule: &Halving, score: &IntermediateScore) -> bool {
        // Not every epoch is evaluated: a trial comes to a rung with its first score from there on.
        let rung = |epoch: u64| (epoch / rule.warmup).checked_ilog(rule.factor);
        let Some(height) = rung(score.epoch) else { return false };
        let arrival = |trial: usize| {
            let of_trial = self.scores.iter().filter(move |other| other.trial == trial);
            of_trial.filter(|other| rung(other.epoch) >= Some(height)).min_by_key(|other| other.epoch)
        };
        if arrival(score.trial).is_some() {
            return false;
        }
        let rivals: HashSet<usize> = self.rivals(score).map(|other| other.trial).collect();
        let costs: Vec<f64> = rivals.into_iter().filter_map(arrival).map(|other| self.cost(other)).collect();
        let better = costs.iter().filter(|cost| **cost < self.cost(score)).count();
        let places = ((costs.len() as u64 + 1) / rule.factor).max(1) as usize;
        better >= places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pruner(rule: Prune) -> TrialPruner {
        TrialPruner::new(Some(rule), false, Vec::new(), HashSet::new())
    }

    fn trial(id: usize) -> Trial {
        Trial { id, point: id, seed: 0, fold: None }
    }

    #[test]
    fn halving_lets_the_best_third_of_those_so_far_go_on() {
        let mut pruner = pruner(Prune::Halving(Halving::default()));
        let mut pruned = |id: usize, epoch: u64, value: f64| pruner.decide(&trial(id), epoch, value).0.pruned;
        // The first has no rival; the second must beat it; of three to five the best goes on, of six
        // the best two.
        assert!(!pruned(0, 1, 5.0));
        assert!(pruned(1, 1, 6.0));
        assert!(!pruned(2, 1, 4.0));
        assert!(pruned(3, 1, 4.5));
        assert!(pruned(4, 1, f64::NAN));
        assert!(!pruned(5, 1, 4.2), "second of six");
        // Epoch 2 is no rung; at 3 there are two, and one goes on.
        assert!(!pruned(0, 2, 9.0));
        assert!(!pruned(0, 3, 3.0));
        assert!(pruned(2, 3, 3.5));
        assert!(!pruned(5, 4, 2.0), "the first score after the rung counts for it");
        assert!(!pruned(5, 5, 9.0), "and no later one");
    }

    #[test]
    fn the_median_rule_compares_the_best_so_far_with_the_finished_ones() {
        let rule = Median { warmup: 1, startup: 3 };
        let mut pruner = pruner(Prune::Median(rule));
        for (id, value) in [(0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0)] {
            assert!(
                !pruner.decide(&trial(id), 1, value).0.pruned
                    && !pruner.decide(&trial(id), 2, value).0.pruned
            );
        }
        (0..4).for_each(|id| pruner.finish(id));
        // The median after two epochs is 2.5.
        assert!(!pruner.decide(&trial(4), 1, 2.4).0.pruned);
        assert!(!pruner.decide(&trial(4), 2, 9.0).0.pruned, "it has been better");
        assert!(!pruner.decide(&trial(5), 1, 9.0).0.pruned, "within the warm-up");
        assert!(pruner.decide(&trial(5), 2, 2.6).0.pruned);
        // What is decided stays so, whatever came since.
        pruner.finish(4);
        assert_eq!(
            pruner.decide(&trial(5), 2, 0.0),
            (IntermediateScore { pruned: true, ..pruner.scores[11] }, false)
        );
        let other_seed = Trial { seed: 1, ..trial(6) };
        assert!(!pruner.decide(&other_seed, 2, 9.0).0.pruned, "other seeds are no rivals");
    }
}
