//! Top-1 and top-5 accuracy, the confusion matrix, and precision, recall and F1 per class.

use serde::Serialize;
use tch::{Kind, Tensor};

use super::answers::{Answers, Counts, count};
use super::{Metric, MetricArgs, ModelOutput, Score, Scores};
use crate::functional::bincount;

/// Counts hits on the device: `confusion` is int64 `[K · K]`, row = truth, column = prediction.
#[derive(Debug)]
pub struct ClassificationMetric {
    classes: i64,
    confusion: Option<Tensor>,
    top5_hits: Option<Tensor>,
}

/// Scores per class.
#[derive(Clone, Debug, Serialize)]
pub struct ClassReport {
    /// `confusion[truth][prediction]`: number of samples.
    pub confusion: Vec<Vec<i64>>,
    pub per_class: Vec<ClassScores>,
}

/// All in 0..=1; 0 where the class has no prediction (precision) or no sample (recall), as scikit-learn has
/// it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ClassScores {
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
    pub support: i64,
    /// The probability from which on the class is found; where a sample may have any number of classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
}

impl ClassificationMetric {
    fn confusion(&self) -> Vec<Vec<i64>> {
        rows(self.confusion.as_ref(), self.classes as usize)
    }
}

impl Metric for ClassificationMetric {
    fn scores() -> &'static [Score] {
        const { &[Score::higher("accuracy"), Score::higher("top5_accuracy"), Score::higher("macro_f1")] }
    }

    fn tasks() -> &'static [&'static str] {
        &["classification"]
    }

    fn new(args: &MetricArgs) -> Self {
        Self { classes: args.classes as i64, confusion: None, top5_hits: None }
    }

    fn reports(args: &MetricArgs, name: &str) -> bool {
        name != "top5_accuracy" || args.classes > 5
    }

    fn update(&mut self, _xs: &Tensor, answer: &ModelOutput, ys: &Tensor) {
        let logits = &answer.outputs;
        // After mixup or cutmix the truth is the class with the largest share.
        let ys = if ys.dim() == 2 { ys.argmax(1, false) } else { ys.shallow_clone() };
        let predicted = logits.argmax(1, false);
        let cells = bincount(&(&ys * self.classes + predicted), self.classes * self.classes);
        self.confusion = Some(match self.confusion.take() {
            Some(sum) => sum + cells,
            None => cells,
        });
        if self.classes > 5 {
            let (_, top) = logits.topk(5, 1, true, false);
            let hits = top.eq_tensor(&ys.unsqueeze(1)).sum(Kind::Int64);
            self.top5_hits = Some(match self.top5_hits.take() {
                Some(sum) => sum + hits,
                None => hits,
            });
        }
    }

    fn compute(&self) -> Scores {
        let top5 = self.top5_hits.as_ref().map(|hits| hits.int64_value(&[]));
        let (values, report) = scores(self.confusion(), top5);
        Scores { values, report: Some(report), ..Scores::default() }
    }

    fn resampled(answers: &Answers, counts: Counts) -> Vec<(String, f64)> {
        let Answers::Classes(answers) = answers else { return Vec::new() };
        let top5 = answers.in_top5.iter().enumerate().filter(|(_, hit)| **hit);
        let top5 = top5.map(|(at, _)| count(counts, at) as i64).sum();
        let (mut values, _) =
            scores(answers.confusion(counts), (answers.probabilities.classes > 5).then_some(top5));
        let weighted = answers.nats.iter().enumerate().map(|(at, nats)| nats * count(counts, at) as f64);
        // A bootstrap draws as many samples as there are.
        values.insert(0, ("loss".into(), weighted.sum::<f64>() / answers.truth.len() as f64));
        values
    }
}

/// The scores of a confusion, and of the hits among five.
fn scores(confusion: Vec<Vec<i64>>, top5: Option<i64>) -> (Vec<(String, f64)>, ClassReport) {
    let total: i64 = confusion.iter().flatten().sum();
    let hits: i64 = (0..confusion.len()).map(|class| confusion[class][class]).sum();
    let report = ClassReport::of(confusion);
    let mut values = vec![("accuracy".to_owned(), share(hits, total))];
    values.extend(top5.map(|hits| ("top5_accuracy".into(), share(hits, total))));
    // As scikit-learn's average="macro": a class that is neither there nor predicted does not count.
    let met =
        report.per_class.iter().zip(0..).filter(|(scores, class)| {
            scores.support > 0 || report.confusion.iter().any(|row| row[*class] > 0)
        });
    let f1: Vec<f64> = met.map(|(scores, _)| scores.f1).collect();
    values.push(("macro_f1".into(), f1.iter().sum::<f64>() / f1.len().max(1) as f64));
    (values, report)
}

/// Counts `[K · K]` on the device as rows; zeros where nothing was counted. Waits for the device.
pub(super) fn rows(counts: Option<&Tensor>, k: usize) -> Vec<Vec<i64>> {
    let mut host = vec![0i64; k * k];
    if let Some(counts) = counts {
        counts.to_device(tch::Device::Cpu).copy_data(&mut host, k * k);
    }
    host.chunks(k.max(1)).map(<[i64]>::to_vec).collect()
}

impl ClassReport {
    /// `confusion` is square: row = truth, column = prediction.
    pub fn of(confusion: Vec<Vec<i64>>) -> Self {
        let per_class = (0..confusion.len()).map(|class| class_scores(&confusion, class)).collect();
        Self { confusion, per_class }
    }
}

fn class_scores(confusion: &[Vec<i64>], class: usize) -> ClassScores {
    let hits = confusion[class][class];
    let support = confusion[class].iter().sum();
    let predicted = confusion.iter().map(|row| row[class]).sum();
    ClassScores {
        precision: share(hits, predicted),
        recall: share(hits, support),
        f1: share(2 * hits, predicted + support),
        support,
        threshold: None,
    }
}

pub(super) fn share(part: i64, whole: i64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_scores_are_those_of_the_definition() {
        // from sklearn.metrics import precision_recall_fscore_support as f
        // f([0,0,0,1,1,2],[0,0,1,1,2,1]) -> precision [1, 1/3, 0], recall [2/3, 1/2, 0], f1 [0.8, 0.4, 0]
        let mut meter = ClassificationMetric::new(&MetricArgs { classes: 3, ..MetricArgs::default() });
        let ys = Tensor::from_slice(&[0i64, 0, 0, 1, 1, 2]);
        let predicted = Tensor::from_slice(&[0i64, 0, 1, 1, 2, 1]);
        let logits = predicted.one_hot(3).to_kind(Kind::Float);
        for part in [0..2, 2..6] {
            let slice = |t: &Tensor| t.slice(0, part.start, part.end, 1);
            meter.update(&Tensor::new(), &slice(&logits).into(), &slice(&ys));
        }
        let scores = meter.compute();
        assert_eq!(scores.get("accuracy"), Some(0.5));
        let report = scores.report.expect("classification has a report");
        let f1: Vec<f64> = report.per_class.iter().map(|scores| scores.f1).collect();
        assert_eq!(f1, [0.8, 0.4, 0.0]);
        assert_eq!(report.per_class[1].precision, 1.0 / 3.0);
        assert_eq!(report.confusion, [[2, 1, 0], [0, 1, 1], [0, 1, 0]]);
    }
}
