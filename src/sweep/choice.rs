//! What the trials say: mean and standard error per point, the best point, and the one-standard-error point.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::penalty;
use crate::sweep::search_space::Point;

/// A point's scores over seeds and folds.
#[derive(Clone, Debug, Serialize)]
pub struct Standing {
    pub point: Point,
    /// Finished trials.
    pub trials: usize,
    /// Trials whose loss became NaN or infinite.
    pub diverged: usize,
    /// Trials that were given up: with one, a point is out of the choice.
    pub pruned: usize,
    /// Trials whose process died.
    pub crashed: usize,
    /// Over the finished trials; None where one diverged, was given up or died.
    pub mean: Option<f64>,
    /// Of the mean, as the function below computes it; None for fewer than two trials.
    pub standard_error: Option<f64>,
}

/// What one trial of a point says.
#[derive(Clone, Copy, Debug)]
pub struct Score {
    pub seed: u64,
    pub fold: Option<usize>,
    /// None where it diverged.
    pub value: Option<f64>,
}

impl Standing {
    /// `same_folds`: every seed has the same folds, see [`same_folds`].
    pub fn of(point: Point, scores: &[Score], same_folds: bool) -> Self {
        let finished: Vec<f64> = scores.iter().filter_map(|score| score.value).collect();
        let (trials, diverged) = (finished.len(), scores.len() - finished.len());
        let mean = (trials > 0 && diverged == 0).then(|| finished.iter().sum::<f64>() / trials as f64);
        let standard_error = mean.and_then(|_| standard_error(scores, same_folds));
        Self { point, trials, diverged, pruned: 0, crashed: 0, mean, standard_error }
    }

    /// The same with so many trials more that have no score.
    pub fn without(mut self, pruned: usize, crashed: usize) -> Self {
        (self.pruned, self.crashed) = (pruned, crashed);
        if pruned + crashed > 0 {
            (self.mean, self.standard_error) = (None, None);
        }
        self
    }

    /// All its trials.
    pub fn all(&self) -> usize {
        self.trials + self.diverged + self.pruned + self.crashed
    }
}

/// s/√n with s the sample standard deviation: over seeds, or over the folds of a cross-validation.
///
/// Of several seeds with folds the scores are not independent, for all are of the same samples: more seeds
/// would make the error as small as one likes. So where the seeds share their folds it is taken over the
/// folds of the seeds' mean; where each seed deals its own it is the root of the mean square of the seeds'
/// own errors. More seeds then steady the error and do not shrink it.
fn standard_error(scores: &[Score], same_folds: bool) -> Option<f64> {
    let cross_validated = scores.iter().any(|score| score.fold.is_some());
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let error = |values: &[f64]| {
        let n = values.len() as f64;
        let squares: f64 = values.iter().map(|value| (value - mean(values)).powi(2)).sum();
        (n > 1.0).then(|| (squares / (n - 1.0)).sqrt() / n.sqrt())
    };
    let mut parts: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for score in scores {
        let part = match (cross_validated, same_folds) {
            (false, _) => 0,
            (true, true) => score.fold.unwrap_or_default() as u64,
            (true, false) => score.seed,
        };
        parts.entry(part).or_default().extend(score.value);
    }
    if cross_validated && same_folds {
        return error(&parts.values().map(|values| mean(values)).collect::<Vec<_>>());
    }
    let squares: Vec<f64> =
        parts.values().map(|values| error(values).map(|e| e * e)).collect::<Option<_>>()?;
    Some(mean(&squares).sqrt())
}

/// Whether every seed of a sweep with this base config has the same folds: they are dealt by the seed unless
/// `shuffle` is false.
pub fn same_folds(base: &Value) -> bool {
    base.pointer("/data/validation/fold/shuffle") == Some(&Value::Bool(false))
}

/// Whether more of `key` is a stronger penalty: the key of a λ.
pub fn is_strength(key: &str) -> bool {
    let mut parts = key.split('.');
    let is_penalty = parts.next() == Some("penalty");
    let ends = parts.next_back().zip(parts.next_back());
    is_penalty
        && match ends {
            Some(("start" | "end", key)) => penalty::is_strength(key),
            _ => key.rsplit('.').next().is_some_and(penalty::is_strength),
        }
}

/// Indices of the chosen points.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Choice {
    pub best: usize,
    /// The strongest penalty whose mean is within one standard error of the best one's (Breiman et al. 1984):
    /// what is varied must be one λ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub one_standard_error: Option<usize>,
}

/// None where no point is left: every one diverged, was given up or died. `keys` are those that are varied.
pub fn choose<S: AsRef<str>>(standings: &[Standing], keys: &[S], higher_is_better: bool) -> Option<Choice> {
    let of_penalty = matches!(keys, [key] if is_strength(key.as_ref()));
    let sign = if higher_is_better { -1.0 } else { 1.0 };
    let cost = |standing: &Standing| standing.mean.map(|mean| sign * mean);
    let best = (0..standings.len()).filter(|&at| cost(&standings[at]).is_some_and(f64::is_finite)).min_by(
        |&a, &b| cost(&standings[a]).partial_cmp(&cost(&standings[b])).unwrap_or(std::cmp::Ordering::Equal),
    )?;
    let limit = cost(&standings[best]).zip(standings[best].standard_error).map(|(cost, error)| cost + error);
    let strength = |at: usize| match standings[at].point.as_slice() {
        [Value::Number(value)] if of_penalty => value.as_f64(),
        _ => None,
    };
    let one_standard_error = limit.and_then(|limit| {
        let within = |at: &usize| cost(&standings[*at]).is_some_and(|cost| cost <= limit);
        let strong = (0..standings.len()).filter(within).filter_map(|at| Some((strength(at)?, at)));
        strong.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, at)| at)
    });
    Some(Choice { best, one_standard_error })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const L2: &[&str] = &["penalty.l2"];

    fn seeds(scores: &[Option<f64>]) -> Vec<Score> {
        (0..).zip(scores).map(|(seed, &value)| Score { seed, fold: None, value }).collect()
    }

    fn standing(value: f64, scores: &[f64]) -> Standing {
        Standing::of(vec![json!(value)], &seeds(&scores.iter().copied().map(Some).collect::<Vec<_>>()), false)
    }

    #[test]
    fn more_seeds_of_a_cross_validation_do_not_shrink_its_error() {
        let scores = |count: u64| -> Vec<Score> {
            let of = |seed| {
                let fold = move |(fold, value)| Score { seed, fold: Some(fold), value: Some(value) };
                [1.0, 2.0, 4.0].into_iter().enumerate().map(fold)
            };
            (0..count).flat_map(of).collect()
        };
        let error = |scores: &[Score], same| Standing::of(vec![], scores, same).standard_error.unwrap();
        // numpy: np.std([1, 2, 4], ddof=1) / 3 ** 0.5
        let one = 0.8819171036881969;
        for (seeds, same) in [(1, false), (4, false), (100, false), (1, true), (100, true)] {
            assert!((error(&scores(seeds), same) - one).abs() < 1e-12, "{seeds} {same}");
        }
        // The folds are the same and the seeds' noise is not the folds': [1, 3] and [3, 1] have the mean [2,
        // 2].
        let both: Vec<Score> = [(0, 0, 1.0), (0, 1, 3.0), (1, 0, 3.0), (1, 1, 1.0)]
            .map(|(seed, fold, value)| Score { seed, fold: Some(fold), value: Some(value) })
            .into();
        assert_eq!((error(&both, true), error(&both, false)), (0.0, 1.0));
    }

    #[test]
    fn only_a_penalty_has_a_strongest_point() {
        let standings = [standing(20.0, &[1.0, 1.2, 1.1]), standing(300.0, &[1.0, 1.2, 1.1])];
        let simple = |key: &str| choose(&standings, &[key], false).unwrap().one_standard_error;
        assert_eq!(simple("train.epochs"), None);
        assert_eq!(simple("optimizer.sgd.lr"), None);
        for key in ["penalty.l2", "penalty.groups.0.l1", "penalty.decoupled.end"] {
            assert_eq!(simple(key), Some(1), "{key}");
        }
        // Less of a bound constrains more.
        assert_eq!(simple("penalty.max_norm"), None);
    }

    #[test]
    fn the_one_standard_error_rule_takes_the_strongest_penalty_that_is_as_good() {
        // numpy: a.mean(), a.std(ddof=1) / len(a) ** 0.5 of [1.0, 1.2, 1.1] are 1.1, 0.0577350269189626
        let standings = [
            standing(0.01, &[2.0, 2.0, 2.0]),
            standing(0.1, &[1.0, 1.2, 1.1]),
            standing(1.0, &[1.15, 1.15, 1.15]),
            standing(10.0, &[1.16, 1.16, 1.16]),
        ];
        let error = standings[1].standard_error.unwrap();
        assert!((error - 0.0577350269189626).abs() < 1e-15);
        assert_eq!(choose(&standings, L2, false), Some(Choice { best: 1, one_standard_error: Some(2) }));
        assert_eq!(choose(&standings, L2, true).map(|choice| choice.best), Some(0));
    }

    #[test]
    fn a_point_that_diverged_or_was_given_up_is_never_chosen() {
        let diverged = Standing::of(vec![json!(9)], &seeds(&[Some(0.0), None]), false);
        assert_eq!((diverged.mean, diverged.diverged), (None, 1));
        let pruned = standing(3.0, &[0.0]).without(1, 0);
        assert_eq!((pruned.mean, pruned.all()), (None, 2));
        let standings = [diverged, standing(1.0, &[5.0]), pruned];
        assert_eq!(choose(&standings, L2, false), Some(Choice { best: 1, one_standard_error: None }));
        assert_eq!(choose(&standings[..1], L2, false), None);
    }
}
