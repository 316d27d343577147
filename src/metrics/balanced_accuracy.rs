//! Balanced accuracy: the mean recall of the classes that have samples, as scikit-learn's
//! `balanced_accuracy_score`.

use super::answers::{Answers, Counts};
use super::{Score, SetMetric};

pub struct BalancedAccuracy;

impl SetMetric for BalancedAccuracy {
    const SCORES: &'static [Score] = &[Score::higher("balanced_accuracy")];
    const TASKS: &'static [&'static str] = &["classification"];

    fn compute(answers: &Answers, counts: Counts) -> Vec<(String, f64)> {
        let Answers::Classes(answers) = answers else { return Vec::new() };
        let confusion = answers.confusion(counts);
        let recall = |(class, row): (usize, &Vec<i64>)| {
            let support: i64 = row.iter().sum();
            (support > 0).then(|| row[class] as f64 / support as f64)
        };
        let recalls: Vec<f64> = confusion.iter().enumerate().filter_map(recall).collect();
        let mean = recalls.iter().sum::<f64>() / recalls.len() as f64;
        vec![("balanced_accuracy".into(), mean)]
    }
}
