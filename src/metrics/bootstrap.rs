//! Bootstrap intervals (Efron 1979): scores over samples that are drawn with replacement from those of the set. A
//! draw is a function of (seed, number).

use std::collections::BTreeMap;

use serde::Serialize;

use super::answers::{Answers, Counts};
use super::resampled;
use crate::libtorch::device::cores;
use crate::util::rng::{CounterRng, RngStream};
use crate::util::threads::each;

/// From the 2.5 % to the 97.5 % quantile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

/// How often each of `samples` samples is in draw `number`.
fn drawn(samples: usize, seed: u64, number: u64) -> Vec<u32> {
    let mut rng = CounterRng::new(seed, number, 0, RngStream::Bootstrap);
    let mut counts = vec![0; samples];
    for _ in 0..samples {
        counts[rng.below(samples as u64) as usize] += 1;
    }
    counts
}

/// `of` the counts of each of `draws` draws, in their order.
pub fn replicates<T: Send>(samples: usize, draws: u64, seed: u64, of: impl Fn(Counts) -> T + Sync) -> Vec<T> {
    each(cores(), (0..draws).collect(), |number| of(Some(&drawn(samples, seed, number))))
}

/// The interval of every score of the task `task`; none of a score that a draw did not have.
pub fn intervals(task: &str, answers: &Answers, draws: u64, seed: u64) -> BTreeMap<String, Interval> {
    let scores = replicates(answers.samples(), draws, seed, |counts| resampled(task, answers, counts));
    let mut by_name: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (name, value) in scores.into_iter().flatten() {
        by_name.entry(name).or_default().push(value);
    }
    let whole = by_name.into_iter().filter(|(_, values)| values.len() as u64 == draws);
    whole.map(|(name, values)| (name, interval(values))).collect()
}

/// Quantiles as numpy's, linear between two values.
pub fn interval(mut values: Vec<f64>) -> Interval {
    values.sort_by(f64::total_cmp);
    let quantile = |q: f64| {
        let place = q * (values.len() - 1) as f64;
        let (below, share) = (place.floor() as usize, place.fract());
        let above = values[(below + 1).min(values.len() - 1)];
        values[below] + (above - values[below]) * share
    };
    Interval { low: quantile(0.025), high: quantile(0.975) }
}
