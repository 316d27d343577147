//! Metrics that accumulate on the device over batches and are read once.
//!
//! A metric, or a family of them that is computed from the same sums, is one file and one row of `metrics!`.

mod bits_per_pixel;
mod classification;
mod elbo;
pub mod image;
mod regression;
mod segmentation;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use tch::Tensor;

use crate::functional::loss::Likelihood;
use crate::util::yaml::nearest;

pub use classification::ClassReport;
pub use elbo::nats;
pub use image::ImageRules;

/// What a task made of the network's output for one batch.
#[derive(Debug)]
pub struct ModelOutput {
    /// What is compared with the targets, `[N, …]`.
    pub outputs: Tensor,
    /// The code that they were made from: quantised `[N, C, …]`, or its means and log-variances
    /// `[N, 2·Z, …]`.
    pub latent: Option<Tensor>,
}

impl From<Tensor> for ModelOutput {
    fn from(outputs: Tensor) -> Self {
        Self { outputs, latent: None }
    }
}

/// What a metric reports, and which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Score {
    /// Such as `accuracy`. One that ends with `{class}` is a score per class: `dice_0`, `dice_1` and so on.
    pub name: &'static str,
    pub higher_is_better: bool,
}

const CLASS: &str = "{class}";

/// The data loss, which every task reports.
const LOSS: Score = Score::lower("loss");

impl Score {
    /// One of which more is better.
    pub const fn higher(name: &'static str) -> Self {
        Self { name, higher_is_better: true }
    }

    /// One of which less is better.
    pub const fn lower(name: &'static str) -> Self {
        Self { name, higher_is_better: false }
    }

    fn is_called(&self, name: &str) -> bool {
        match self.name.strip_suffix(CLASS) {
            Some(stem) => class_of(stem, name).is_some(),
            None => self.name == name,
        }
    }
}

/// The class number behind `stem` in `name`, such as 3 in `dice_3`.
fn class_of(stem: &str, name: &str) -> Option<usize> {
    let digits = name.strip_prefix(stem)?;
    digits.parse().ok().filter(|number: &usize| number.to_string() == digits)
}

/// What a task says of its network's outputs, for its metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct MetricArgs {
    /// Number of classes; 0 where the task has none.
    pub classes: usize,
    /// What of an image is measured.
    pub image: ImageRules,
    /// Of a variational autoencoder.
    pub likelihood: Likelihood,
}

/// Collects one split's metrics, batch after batch, without waiting for the device.
pub trait Metric {
    /// Everything it may report, in the order in which it is shown.
    fn scores() -> &'static [Score]
    where
        Self: Sized;

    /// The tasks that report it, by their names in YAML.
    fn tasks() -> &'static [&'static str]
    where
        Self: Sized;

    fn new(args: &MetricArgs) -> Self
    where
        Self: Sized;

    /// Whether `name`, one of [`Metric::scores`], can be reported for outputs as `args` describes them.
    fn reports(_args: &MetricArgs, _name: &str) -> bool
    where
        Self: Sized,
    {
        true
    }

    /// `xs` is what the network saw, `ys` the targets.
    fn update(&mut self, xs: &Tensor, answer: &ModelOutput, ys: &Tensor);

    /// The metrics over all that was added; waits for the device.
    fn compute(&self) -> Scores;
}

/// A row of the table.
struct Family {
    scores: fn() -> &'static [Score],
    tasks: fn() -> &'static [&'static str],
    reports: fn(&MetricArgs, &str) -> bool,
    new: fn(&MetricArgs) -> Box<dyn Metric>,
}

macro_rules! metrics {
    ($($metric:ty,)*) => {
        const FAMILIES: &[Family] = &[$(Family {
            scores: <$metric>::scores,
            tasks: <$metric>::tasks,
            reports: <$metric>::reports,
            new: |args| Box::new(<$metric>::new(args)),
        },)*];
    };
}

// Scores are shown in this order.
metrics! {
    classification::ClassificationMetric,
    segmentation::SegmentationMetric,
    regression::RegressionMetric,
    image::ImageMetric,
    bits_per_pixel::BitsPerPixel,
    elbo::Elbo,
}

/// The metrics of the task `task`, in the order of the table.
fn families(task: &str) -> impl Iterator<Item = &'static Family> {
    FAMILIES.iter().filter(move |family| (family.tasks)().contains(&task))
}

/// Everything that the task `task` may report.
pub fn scores(task: &str) -> impl Iterator<Item = Score> {
    [LOSS].into_iter().chain(families(task).flat_map(|family| (family.scores)().iter().copied()))
}

/// Several metrics that are computed beside each other.
pub struct MetricCollection(Vec<Box<dyn Metric>>);

impl MetricCollection {
    /// Those of the task `task`.
    pub fn new(task: &str, args: &MetricArgs) -> Self {
        Self(families(task).map(|family| (family.new)(args)).collect())
    }

    /// `xs` is what the network saw, `ys` the targets.
    pub fn update(&mut self, xs: &Tensor, answer: &ModelOutput, ys: &Tensor) {
        self.0.iter_mut().for_each(|metric| metric.update(xs, answer, ys));
    }

    /// The metrics over all that was added; waits for the device.
    pub fn compute(&self) -> Scores {
        let mut all = Scores::default();
        for scores in self.0.iter().map(|metric| metric.compute()) {
            all.values.extend(scores.values);
            all.each.extend(scores.each);
            all.report = all.report.or(scores.report);
        }
        all
    }
}

/// The score that decides what is best.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitor {
    pub metric: String,
    pub higher_is_better: bool,
}

impl Monitor {
    /// The score `name` of the task `task`; else what is wrong and the nearest one that it reports.
    pub fn new(task: &str, name: &str) -> Result<Self, String> {
        match scores(task).find(|score| score.is_called(name)) {
            Some(score) => Ok(Self { metric: name.to_owned(), higher_is_better: score.higher_is_better }),
            None => Err(unknown(task, name, &scores(task).map(|score| score.name).collect::<Vec<_>>())),
        }
    }

    /// Refuses a score that outputs as `args` describes them do not have.
    pub fn check(&self, task: &str, args: &MetricArgs) -> Result<(), String> {
        let is_called = |score: &Score| score.is_called(&self.metric);
        let reported =
            |family: &Family| (family.scores)().iter().any(is_called) && (family.reports)(args, &self.metric);
        if is_called(&LOSS) || families(task).any(reported) {
            return Ok(());
        }
        let all = families(task)
            .flat_map(|family| (family.scores)().iter().map(move |score| (family, score.name)))
            .filter(|(family, name)| (family.reports)(args, name));
        let known: Vec<_> = [LOSS.name].into_iter().chain(all.map(|(_, name)| name)).collect();
        let classes = format!("{task} of {} classes", args.classes);
        Err(unknown(if args.classes > 0 { &classes } else { task }, &self.metric, &known))
    }
}

fn unknown(task: &str, name: &str, known: &[&str]) -> String {
    let near = nearest(name, known.iter().copied());
    let near = near.map_or_else(String::new, |near| format!("did you mean `{near}`? "));
    format!("{task} has no score `{name}`; {near}Its scores are {}", known.join(", "))
}

/// Named metrics, in the order in which they are shown.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    pub values: Vec<(String, f64)>,
    /// Precision, recall and F1 per class, and the confusion matrix; classification and segmentation only.
    pub report: Option<ClassReport>,
    /// The values that the means are of, in the order of the samples; images only.
    pub each: Vec<(String, Vec<f64>)>,
    /// Which samples of the set these scores are of: those that could be read.
    pub indices: Vec<i64>,
    /// The names of the classes, where they are known.
    pub classes: Vec<String>,
}

/// `dice_1` as `dice_road`, where that is the name of class 1 and of no other; every other name as it is.
pub fn with_class_name(name: &str, classes: &[String]) -> String {
    let stems = FAMILIES
        .iter()
        .flat_map(|family| (family.scores)())
        .filter_map(|score| score.name.strip_suffix(CLASS));
    let mut classed = stems.filter_map(|stem| Some((stem, classes.get(class_of(stem, name)?)?)));
    match classed.next() {
        Some((stem, class)) if classes.iter().filter(|other| *other == class).count() == 1 => {
            format!("{stem}{class}")
        }
        _ => name.to_owned(),
    }
}

impl Scores {
    /// The values as they are shown: those of single classes, such as `dice_1`, by the names of the classes.
    pub fn named(&self) -> impl Iterator<Item = (String, f64)> {
        self.values.iter().map(|(name, value)| (with_class_name(name, &self.classes), *value))
    }

    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }
}

impl Serialize for Scores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in self.named() {
            map.serialize_entry(&name, &value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_found_by_its_name_or_by_that_of_its_class() {
        let find = |task: &str, name: &str| Monitor::new(task, name);
        assert!(find("classification", "macro_f1").unwrap().higher_is_better);
        assert!(!find("regression", "mae").unwrap().higher_is_better);
        assert!(!find("segmentation", "loss").unwrap().higher_is_better);
        assert_eq!(find("segmentation", "dice_11").unwrap().metric, "dice_11");
        for name in ["dice_", "dice_01", "dice_-1", "dice_{class}", "psnr"] {
            assert!(find("segmentation", name).is_err(), "{name}");
        }
        let message = find("classification", "makro_f1").unwrap_err();
        assert!(message.contains("did you mean `macro_f1`?"), "{message}");
    }

    #[test]
    fn a_score_that_so_many_classes_do_not_have_is_refused() {
        let args = |classes| MetricArgs { classes, ..MetricArgs::default() };
        let top5 = Monitor::new("classification", "top5_accuracy").unwrap();
        assert!(top5.check("classification", &args(6)).is_ok());
        assert!(top5.check("classification", &args(5)).unwrap_err().contains("classification of 5 classes"));
        let dice = Monitor::new("segmentation", "dice_2").unwrap();
        assert!(
            dice.check("segmentation", &args(3)).is_ok() && dice.check("segmentation", &args(2)).is_err()
        );
    }
}
