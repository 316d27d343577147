//! Brier score: the squared error of the probabilities, as scikit-learn's `brier_score_loss` (Brier 1950).

use super::answers::{Answers, Counts, count};
use super::{Score, SetMetric};

/// Summed over classes, halved where there are two; with any number of classes per sample the mean over classes.
pub struct BrierScore;

impl SetMetric for BrierScore {
    const SCORES: &'static [Score] = &[Score::lower("brier_score")];
    const TASKS: &'static [&'static str] = &["classification", "multi_label"];

    fn compute(answers: &Answers, counts: Counts) -> Vec<(String, f64)> {
        let error = |probability: f64, is: bool| (probability - f64::from(u8::from(is))).powi(2);
        let (samples, mean): (usize, Box<dyn Fn(usize) -> f64>) = match answers {
            Answers::Classes(answers) => {
                let half = if answers.probabilities.classes == 2 { 0.5 } else { 1.0 };
                let of = move |sample: usize| {
                    let row = answers.probabilities.row(sample).iter().enumerate();
                    half * row.map(|(class, p)| error(*p, answers.truth[sample] == class)).sum::<f64>()
                };
                (answers.truth.len(), Box::new(of))
            }
            Answers::Labels(answers) => {
                let classes = answers.probabilities.classes;
                let of = move |sample: usize| {
                    let truth = &answers.truth[sample * classes..][..classes];
                    let row = answers.probabilities.row(sample).iter().zip(truth);
                    row.map(|(p, is)| error(*p, *is)).sum::<f64>() / classes as f64
                };
                (answers.probabilities.samples(), Box::new(of))
            }
            _ => return Vec::new(),
        };
        let (mut sum, mut all) = (0.0, 0);
        for sample in 0..samples {
            let number = count(counts, sample);
            sum += mean(sample) * number as f64;
            all += number;
        }
        vec![("brier_score".into(), sum / all as f64)]
    }
}
