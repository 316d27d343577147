//! Matthews' correlation coefficient of several classes, as scikit-learn's `matthews_corrcoef` (Gorodkin 2004).

use super::answers::{Answers, Counts};
use super::{Score, SetMetric, margins};

pub struct MatthewsCorrcoef;

impl SetMetric for MatthewsCorrcoef {
    const SCORES: &'static [Score] = &[Score::higher("matthews_corrcoef")];
    const TASKS: &'static [&'static str] = &["classification"];

    /// 0 where truth or predictions are all of one class, as scikit-learn has it.
    fn compute(answers: &Answers, counts: Counts) -> Vec<(String, f64)> {
        let Answers::Classes(answers) = answers else { return Vec::new() };
        let (all, hits, pairs) = margins(&answers.confusion(counts));
        let sum = |of: fn(&[f64; 2]) -> f64| pairs.iter().map(of).sum::<f64>();
        let covariance = hits * all - sum(|[truth, predicted]| truth * predicted);
        let [truth, predicted] =
            [sum(|[truth, _]| truth * truth), sum(|[_, predicted]| predicted * predicted)];
        let variance = (all * all - truth) * (all * all - predicted);
        let value = if variance > 0.0 { covariance / variance.sqrt() } else { 0.0 };
        vec![("matthews_corrcoef".into(), value)]
    }
}
