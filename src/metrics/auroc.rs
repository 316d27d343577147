//! AUROC: the area under the curve of true against false positives, as scikit-learn's `roc_auc_score`.

use super::answers::{Answers, Counts};
use super::{Score, SetMetric, macro_average};

/// Each class against the others, and the mean over classes (`multi_class="ovr", average="macro"`). A class that
/// every sample is of, or none, has no AUROC and no part in the mean.
pub struct Auroc;

impl SetMetric for Auroc {
    const SCORES: &'static [Score] = &[Score::higher("auroc"), Score::higher("auroc_{class}")];
    const TASKS: &'static [&'static str] = &["classification", "multi_label"];

    fn compute(answers: &Answers, counts: Counts) -> Vec<(String, f64)> {
        let each = answers.each_class(counts, |steps| {
            let (mut hits, mut others, mut twice_area) = (0, 0, 0u128);
            for step in steps {
                // A tie is a slope.
                twice_area += u128::from(step.others) * u128::from(2 * hits + step.hits);
                hits += step.hits;
                others += step.others;
            }
            (hits > 0 && others > 0).then(|| twice_area as f64 / 2.0 / (hits as f64 * others as f64))
        });
        macro_average("auroc", &each)
    }
}
