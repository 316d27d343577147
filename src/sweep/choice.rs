//! What the trials say: mean and standard error per point, the best point, and the one-standard-error point.

use serde::Serialize;
use serde_json::Value;

use super::over::Point;

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
    /// Sample standard deviation / √trials; None for fewer than two.
    pub standard_error: Option<f64>,
}

impl Standing {
    /// `scores`: None for a trial that diverged.
    pub fn of(point: Point, scores: &[Option<f64>]) -> Self {
        let finished: Vec<f64> = scores.iter().copied().flatten().collect();
        let (trials, diverged) = (finished.len(), scores.len() - finished.len());
        let mean = (trials > 0 && diverged == 0).then(|| finished.iter().sum::<f64>() / trials as f64);
        let standard_error = mean.filter(|_| trials > 1).map(|mean| {
            let squares: f64 = finished.iter().map(|score| (score - mean).powi(2)).sum();
            (squares / (trials - 1) as f64).sqrt() / (trials as f64).sqrt()
        });
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

/// Indices of the chosen points.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Choice {
    pub best: usize,
    /// The strongest penalty whose mean is within one standard error of the best one's (Breiman et al. 1984): what is
    /// varied must be one number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub one_standard_error: Option<usize>,
}

/// None where no point is left: every one diverged, was given up or died.
pub fn choose(standings: &[Standing], higher_is_better: bool) -> Option<Choice> {
    let sign = if higher_is_better { -1.0 } else { 1.0 };
    let cost = |standing: &Standing| standing.mean.map(|mean| sign * mean);
    let best = (0..standings.len()).filter(|&at| cost(&standings[at]).is_some_and(f64::is_finite)).min_by(
        |&a, &b| cost(&standings[a]).partial_cmp(&cost(&standings[b])).unwrap_or(std::cmp::Ordering::Equal),
    )?;
    let limit = cost(&standings[best]).zip(standings[best].standard_error).map(|(cost, error)| cost + error);
    let strength = |at: usize| match standings[at].point.as_slice() {
        [Value::Number(value)] => value.as_f64(),
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

    fn standing(value: f64, scores: &[f64]) -> Standing {
        Standing::of(vec![json!(value)], &scores.iter().copied().map(Some).collect::<Vec<_>>())
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
        assert_eq!(choose(&standings, false), Some(Choice { best: 1, one_standard_error: Some(2) }));
        assert_eq!(choose(&standings, true).map(|choice| choice.best), Some(0));
    }

    #[test]
    fn a_point_that_diverged_or_was_given_up_is_never_chosen() {
        let diverged = Standing::of(vec![json!(9)], &[Some(0.0), None]);
        assert_eq!((diverged.mean, diverged.diverged), (None, 1));
        let pruned = standing(3.0, &[0.0]).without(1, 0);
        assert_eq!((pruned.mean, pruned.all()), (None, 2));
        let standings = [diverged, standing(1.0, &[5.0]), pruned];
        assert_eq!(choose(&standings, false), Some(Choice { best: 1, one_standard_error: None }));
        assert_eq!(choose(&standings[..1], false), None);
    }
}
