//! Average precision: Σ (Rₙ − Rₙ₋₁)·Pₙ over the thresholds, as scikit-learn's `average_precision_score`.

use super::answers::{Answers, Counts};
use super::{Score, SetMetric, macro_average};

/// Each class against the others, and the mean over classes; of two classes that exclude each other the score of
/// the second, which is scikit-learn's positive one. A class that no sample is of has none.
pub struct AveragePrecision;

impl SetMetric for AveragePrecision {
    const SCORES: &'static [Score] =
        &[Score::higher("average_precision"), Score::higher("average_precision_{class}")];
    const TASKS: &'static [&'static str] = &["classification", "multi_label"];

    fn compute(answers: &Answers, counts: Counts) -> Vec<(String, f64)> {
        let each = answers.each_class(counts, |steps| {
            let (mut hits, mut found, mut sum) = (0, 0, 0.0);
            for step in steps.iter().filter(|step| step.hits + step.others > 0) {
                hits += step.hits;
                found += step.hits + step.others;
                sum += step.hits as f64 * hits as f64 / found as f64;
            }
            (hits > 0).then(|| sum / hits as f64)
        });
        let mut scores = macro_average("average_precision", &each);
        if let (Answers::Classes(_), [_, positive]) = (answers, each.as_slice()) {
            scores.retain(|(name, _)| name != "average_precision");
            scores.splice(0..0, positive.map(|value| ("average_precision".to_owned(), value)));
        }
        scores
    }
}
