//! Cohen's κ: agreement beyond that of chance, as scikit-learn's `cohen_kappa_score` (Cohen 1960).

use super::answers::{Answers, Counts};
use super::{Score, SetMetric, margins};

pub struct CohenKappa;

impl SetMetric for CohenKappa {
    const SCORES: &'static [Score] = &[Score::higher("cohen_kappa")];
    const TASKS: &'static [&'static str] = &["classification"];

    /// None where truth and predictions are all of one class: 0/0.
    fn compute(answers: &Answers, counts: Counts) -> Vec<(String, f64)> {
        let Answers::Classes(answers) = answers else { return Vec::new() };
        let (all, hits, pairs) = margins(&answers.confusion(counts));
        let chance: f64 = pairs.iter().map(|[truth, predicted]| truth * predicted / (all * all)).sum();
        let kappa = (hits / all - chance) / (1.0 - chance);
        (chance < 1.0).then(|| ("cohen_kappa".into(), kappa)).into_iter().collect()
    }
}
