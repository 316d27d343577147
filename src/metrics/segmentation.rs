//! Scores of pixel classes, all from one count over the whole set: IoU, Dice, pixel accuracy, confusion.

use tch::{Kind, Tensor};

use super::answers::{Answers, Counts, count};
use super::classification::{ClassReport, rows, share};
use super::{Metric, MetricArgs, ModelOutput, Score, Scores, class_of};
use crate::functional::bincount;

/// Counts pixels on the device: `confusion` is int64 `[K · K]`, row = truth, column = prediction.
#[derive(Debug)]
pub struct SegmentationMetric {
    classes: i64,
    confusion: Option<Tensor>,
}

impl Metric for SegmentationMetric {
    fn scores() -> &'static [Score] {
        const {
            &[
                Score::higher("mean_dice"),
                Score::higher("mean_iou"),
                Score::higher("pixel_accuracy"),
                Score::higher("dice_{class}"),
                Score::higher("iou_{class}"),
            ]
        }
    }

    fn tasks() -> &'static [&'static str] {
        &["segmentation"]
    }

    fn new(args: &MetricArgs) -> Self {
        Self { classes: args.classes as i64, confusion: None }
    }

    fn reports(args: &MetricArgs, name: &str) -> bool {
        let class = ["dice_", "iou_"].iter().find_map(|stem| class_of(stem, name));
        class.is_none_or(|class| class < args.classes)
    }

    /// `answer.outputs` are logits `[N, K, H, W]`, `ys` classes int64 `[N, H, W]`, of which negative ones do
    /// not count.
    fn update(&mut self, _xs: &Tensor, answer: &ModelOutput, ys: &Tensor) {
        let predicted = answer.outputs.argmax(1, false);
        // What does not count goes into one more cell, so that nothing waits for the device.
        let spare = self.classes * self.classes;
        let cells = (ys * self.classes + predicted)
            .where_self(&ys.ge(0), &Tensor::full([], spare, (Kind::Int64, ys.device())));
        let counts = bincount(&cells.reshape(-1), spare + 1).narrow(0, 0, spare);
        self.confusion = Some(match self.confusion.take() {
            Some(sum) => sum + counts,
            None => counts,
        });
    }

    fn compute(&self) -> Scores {
        let report = ClassReport::of(rows(self.confusion.as_ref(), self.classes as usize));
        Scores { values: scores(&report.confusion), report: Some(report), ..Scores::default() }
    }

    fn resampled(answers: &Answers, counts: Counts) -> Vec<(String, f64)> {
        let Answers::Pixels { classes, confusion } = answers else { return Vec::new() };
        let mut sum = vec![0; classes * classes];
        for (at, each) in confusion.iter().enumerate() {
            let number = count(counts, at) as i64;
            sum.iter_mut().zip(each).for_each(|(sum, pixels)| *sum += number * pixels);
        }
        scores(&sum.chunks(*classes).map(<[i64]>::to_vec).collect::<Vec<_>>())
    }
}

/// The confusion of each sample, int64 `[N, K · K]`: see [`SegmentationMetric::update`].
pub(super) fn confusion_of_each(logits: &Tensor, ys: &Tensor, classes: i64) -> Tensor {
    let (samples, spare) = (ys.size()[0], classes * classes);
    let cells = (ys * classes + logits.argmax(1, false))
        .where_self(&ys.ge(0), &Tensor::full([], spare, (Kind::Int64, ys.device())));
    let first = Tensor::arange(samples, (Kind::Int64, ys.device())) * (spare + 1);
    let counts = (cells.reshape([samples, -1]) + first.unsqueeze(1)).reshape(-1);
    counts.bincount::<Tensor>(None, samples * (spare + 1)).reshape([samples, spare + 1]).narrow(1, 0, spare)
}

/// The scores of a confusion `[truth][prediction]` of pixels.
fn scores(counts: &[Vec<i64>]) -> Vec<(String, f64)> {
    let pixels: i64 = counts.iter().flatten().sum();
    let hits: i64 = (0..counts.len()).map(|class| counts[class][class]).sum();
    // A class that neither the truth nor a prediction shows has no score.
    let per_class: Vec<_> = (0..counts.len())
        .filter_map(|class| {
            let hits = counts[class][class];
            let either = counts[class].iter().sum::<i64>() + counts.iter().map(|row| row[class]).sum::<i64>();
            (either > 0).then(|| (class, share(hits, either - hits), share(2 * hits, either)))
        })
        .collect();
    let mean = |score: fn(&(usize, f64, f64)) -> f64| {
        per_class.iter().map(score).sum::<f64>() / per_class.len().max(1) as f64
    };
    let mut values = vec![
        ("mean_dice".to_owned(), mean(|row| row.2)),
        ("mean_iou".to_owned(), mean(|row| row.1)),
        ("pixel_accuracy".to_owned(), share(hits, pixels)),
    ];
    for (class, iou, dice) in &per_class {
        values.extend([(format!("dice_{class}"), *dice), (format!("iou_{class}"), *iou)]);
    }
    values
}
