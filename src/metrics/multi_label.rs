//! What is decided of any number of classes per sample, each by its threshold: F1, subset accuracy, Hamming loss, as
//! scikit-learn has them.

use super::answers::{Answers, Counts, count};
use super::{Score, SetMetric};

pub struct MultiLabel;

impl SetMetric for MultiLabel {
    const SCORES: &'static [Score] = &[
        Score::higher("macro_f1"),
        Score::higher("micro_f1"),
        Score::higher("subset_accuracy"),
        Score::lower("hamming_loss"),
    ];
    const TASKS: &'static [&'static str] = &["multi_label"];

    /// F1 is 0 of a class that no sample has and that is never found (`zero_division=0`). `subset_accuracy` is the
    /// share of samples all of whose labels are right, scikit-learn's `accuracy_score`; `hamming_loss` the share of
    /// wrong labels.
    fn compute(answers: &Answers, counts: Counts) -> Vec<(String, f64)> {
        let Answers::Labels(answers) = answers else { return Vec::new() };
        let tallies = answers.tallies(counts);
        let f1 = |[hits, found, support]: [i64; 3]| match found + support {
            0 => 0.0,
            either => 2.0 * hits as f64 / either as f64,
        };
        let sums = tallies.iter().fold([0; 3], |sum, tally| [0, 1, 2].map(|at| sum[at] + tally[at]));
        let (mut all, mut right) = (0, 0);
        for sample in 0..answers.probabilities.samples() {
            let number = count(counts, sample);
            all += number;
            right += if answers.is_right(sample) { number } else { 0 };
        }
        let [hits, found, support] = sums;
        let wrong = (found + support - 2 * hits) as f64;
        let classes = tallies.len() as f64;
        let nats = answers.nats.iter().enumerate().map(|(at, nats)| nats * count(counts, at) as f64);
        let loss = nats.sum::<f64>() / all as f64;
        vec![
            ("macro_f1".into(), tallies.iter().map(|tally| f1(*tally)).sum::<f64>() / classes),
            ("micro_f1".into(), f1(sums)),
            ("subset_accuracy".into(), right as f64 / all as f64),
            ("hamming_loss".into(), wrong / (all as f64 * classes)),
            ("loss".into(), loss),
        ]
    }
}
