//! Expected calibration error: how far confidence is from accuracy, over 15 bins of equal width (Naeini, Cooper
//! and Hauskrecht 2015), as `MulticlassCalibrationError(norm="l1")` of torchmetrics.

use serde::Serialize;

use super::answers::{Answers, Counts, count};
use super::{Score, SetMetric};

pub struct CalibrationError;

const BINS: usize = 15;

/// What was answered with a confidence between `from` and `to`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Bin {
    pub from: f64,
    pub to: f64,
    /// Answers; with any number of classes per sample one for each class.
    pub count: u64,
    /// Their mean confidence, and how many of them are right.
    pub confidence: f64,
    pub accuracy: f64,
}

impl SetMetric for CalibrationError {
    const SCORES: &'static [Score] = &[Score::lower("ece")];
    const TASKS: &'static [&'static str] = &["classification", "multi_label"];

    /// Of the most probable class; with any number of classes per sample of each class's own probability
    /// (`BinaryCalibrationError`), the mean over classes.
    fn compute(answers: &Answers, counts: Counts) -> Vec<(String, f64)> {
        let errors: Vec<f64> = match answers {
            Answers::Labels(labels) => (0..labels.probabilities.classes)
                .map(|class| error(&bins(answers, counts, Some(class))))
                .collect(),
            _ => vec![error(&bins(answers, counts, None))],
        };
        vec![("ece".into(), errors.iter().sum::<f64>() / errors.len() as f64)]
    }
}

/// Σ share of the bin · |accuracy − confidence|.
fn error(bins: &[Bin]) -> f64 {
    let all: u64 = bins.iter().map(|bin| bin.count).sum();
    let gaps = bins.iter().map(|bin| (bin.accuracy - bin.confidence).abs() * bin.count as f64);
    gaps.sum::<f64>() / all as f64
}

/// The reliability diagram (DeGroot and Fienberg 1983); bins without answers are left out. Empty where answers are
/// no classes.
pub fn reliability(answers: &Answers) -> Vec<Bin> {
    let mut bins = bins(answers, None, None);
    // Torchmetrics counts a confidence of exactly 1 apart.
    if let Some(last) = bins.pop().filter(|last| last.count > 0)
        && let Some(bin) = bins.last_mut()
    {
        let all = (bin.count + last.count) as f64;
        let mean = |a: f64, b: f64| (a * bin.count as f64 + b * last.count as f64) / all;
        (bin.confidence, bin.accuracy) =
            (mean(bin.confidence, last.confidence), mean(bin.accuracy, last.accuracy));
        bin.count += last.count;
    }
    bins.retain(|bin| bin.count > 0);
    bins
}

/// [`BINS`] bins, closed below and open above, and one for a confidence of 1. `class` None takes all labels.
fn bins(answers: &Answers, counts: Counts, class: Option<usize>) -> Vec<Bin> {
    let edge = |bin: usize| bin.min(BINS) as f64 / BINS as f64;
    let mut bins: Vec<Bin> =
        (0..=BINS).map(|bin| Bin { from: edge(bin), to: edge(bin + 1), ..Bin::default() }).collect();
    let mut add = |confidence: f64, is_right: bool, number: u64| {
        let place = (confidence * BINS as f64) as usize;
        // The product is rounded: the edges decide.
        let place = if place < BINS && confidence >= edge(place + 1) { place + 1 } else { place };
        let place = if confidence < edge(place) { place.saturating_sub(1) } else { place };
        let bin = &mut bins[place.min(BINS)];
        bin.count += number;
        bin.confidence += confidence * number as f64;
        bin.accuracy += if is_right { number as f64 } else { 0.0 };
    };
    match answers {
        Answers::Classes(answers) => {
            for (sample, (&truth, &predicted)) in answers.truth.iter().zip(&answers.predicted).enumerate() {
                let confidence = answers.probabilities.of(sample, predicted);
                add(confidence, truth == predicted, count(counts, sample));
            }
        }
        Answers::Labels(answers) => {
            let classes = answers.probabilities.classes;
            for (at, (&probability, &is)) in
                answers.probabilities.values.iter().zip(&answers.truth).enumerate()
            {
                if class.is_none_or(|class| at % classes == class) {
                    add(probability, is, count(counts, at / classes));
                }
            }
        }
        _ => return Vec::new(),
    }
    for bin in bins.iter_mut().filter(|bin| bin.count > 0) {
        bin.confidence /= bin.count as f64;
        bin.accuracy /= bin.count as f64;
    }
    bins
}
