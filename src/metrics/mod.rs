//! Metrics that accumulate on the device over batches and are read once, and metrics of all answers of a set.
//!
//! A metric, or a family of them that is computed from the same sums, is one file and one row of `metrics!`.

pub mod answers;
mod auroc;
mod average_precision;
mod balanced_accuracy;
mod bits_per_pixel;
pub mod bootstrap;
mod brier_score;
mod calibration_error;
mod classification;
mod cohen_kappa;
mod elbo;
pub mod image;
mod matthews_corrcoef;
pub mod mcnemar;
mod multi_label;
mod regression;
mod segmentation;
pub mod temperature;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use tch::Tensor;

use crate::functional::loss::Likelihood;
use crate::util::yaml::nearest;
use answers::{Answers, Collector, Counts};
use bootstrap::Interval;

pub use calibration_error::{Bin, reliability};
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

/// Whether `name` is the score called `stem` of one class, such as `auroc_3` of `auroc`.
pub fn is_of_class(stem: &str, name: &str) -> bool {
    class_of(&format!("{stem}_"), name).is_some()
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

    /// The same of samples that count as often as a bootstrap drew them; what it does not know is left out.
    fn resampled(_answers: &Answers, _counts: Counts) -> Vec<(String, f64)>
    where
        Self: Sized,
    {
        Vec::new()
    }
}

/// A metric of all answers of a set. Classification computes it where it is wanted, `multi_label` always.
pub trait SetMetric {
    /// Everything it may report, in the order in which it is shown.
    const SCORES: &'static [Score];
    /// The tasks that report it, by their names in YAML.
    const TASKS: &'static [&'static str];

    /// The scores of samples that count so often; those that are not defined are left out.
    fn compute(answers: &Answers, counts: Counts) -> Vec<(String, f64)>;
}

type NewMetric = fn(&MetricArgs) -> Box<dyn Metric>;

/// A row of the table.
struct Family {
    scores: fn() -> &'static [Score],
    tasks: fn() -> &'static [&'static str],
    reports: fn(&MetricArgs, &str) -> bool,
    /// None of a metric of all answers.
    new: Option<NewMetric>,
    of: fn(&Answers, Counts) -> Vec<(String, f64)>,
}

macro_rules! metrics {
    ($($metric:ty $(: $all:ident)?,)*) => {
        const FAMILIES: &[Family] = &[$(metrics!(@ $metric $(: $all)?),)*];
    };
    (@ $metric:ty) => {
        Family {
            scores: <$metric>::scores,
            tasks: <$metric>::tasks,
            reports: <$metric>::reports,
            new: Some(|args| Box::new(<$metric>::new(args))),
            of: <$metric>::resampled,
        }
    };
    (@ $metric:ty: set) => {
        Family {
            scores: || <$metric as SetMetric>::SCORES,
            tasks: || <$metric as SetMetric>::TASKS,
            reports: |args, name| has_class(<$metric as SetMetric>::SCORES, args, name),
            new: None,
            of: <$metric as SetMetric>::compute,
        }
    };
}

/// Whether `name` is no score of a single class, or of one that there is.
fn has_class(scores: &[Score], args: &MetricArgs, name: &str) -> bool {
    let mut stems = scores.iter().filter_map(|score| score.name.strip_suffix(CLASS));
    stems.find_map(|stem| class_of(stem, name)).is_none_or(|class| class < args.classes)
}

/// The mean of the classes that have a score, and the score of each.
fn macro_average(name: &str, each: &[Option<f64>]) -> Vec<(String, f64)> {
    let known: Vec<f64> = each.iter().flatten().copied().collect();
    let mean = known.iter().sum::<f64>() / known.len() as f64;
    let mean = (!known.is_empty()).then(|| (name.to_owned(), mean));
    let classes = each.iter().enumerate();
    let classes = classes.filter_map(|(class, value)| value.map(|value| (format!("{name}_{class}"), value)));
    mean.into_iter().chain(classes).collect()
}

/// Of a confusion: all samples, hits, and by class how many are and how many are predicted.
fn margins(confusion: &[Vec<i64>]) -> (f64, f64, Vec<[f64; 2]>) {
    let classes = 0..confusion.len();
    let hits: i64 = classes.clone().map(|class| confusion[class][class]).sum();
    let all: i64 = confusion.iter().flatten().sum();
    let of = |class: usize| {
        let predicted: i64 = confusion.iter().map(|row| row[class]).sum();
        [confusion[class].iter().sum::<i64>() as f64, predicted as f64]
    };
    (all as f64, hits as f64, classes.map(of).collect())
}

// Scores are shown in this order.
metrics! {
    classification::ClassificationMetric,
    auroc::Auroc: set,
    average_precision::AveragePrecision: set,
    multi_label::MultiLabel: set,
    balanced_accuracy::BalancedAccuracy: set,
    cohen_kappa::CohenKappa: set,
    matthews_corrcoef::MatthewsCorrcoef: set,
    brier_score::BrierScore: set,
    calibration_error::CalibrationError: set,
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

/// Every score of the task `task` over samples that count so often.
pub fn resampled(task: &str, answers: &Answers, counts: Counts) -> Vec<(String, f64)> {
    families(task).flat_map(|family| (family.of)(answers, counts)).collect()
}

/// Which scores of all answers are computed beside those that a task always has.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    /// Those of these names.
    Names(&'a [String]),
    All,
}

impl Wanted<'_> {
    fn takes(self, name: &str) -> bool {
        match self {
            Self::Names(names) => names.iter().any(|wanted| wanted == name),
            Self::All => true,
        }
    }
}

/// What decides which classes are found of those of which a sample may have any number.
#[derive(Clone, Copy, Debug)]
pub enum Thresholds<'a> {
    /// One per class; 0.5 each where there are none.
    Given(&'a [f64]),
    /// Those of the highest F1 on this set.
    Best,
}

/// Several metrics that are computed beside each other.
pub struct MetricCollection<'a> {
    metrics: Vec<Box<dyn Metric>>,
    /// None where no score of all answers is wanted.
    collector: Option<Collector>,
    task: &'a str,
    wanted: Wanted<'a>,
}

/// The task whose scores are all of all answers.
const OF_ALL: &str = "multi_label";

impl<'a> MetricCollection<'a> {
    /// Those of the task `task`.
    pub fn new(task: &'a str, args: &MetricArgs, wanted: Wanted<'a>) -> Self {
        let metrics = families(task).filter_map(|family| family.new).map(|new| new(args)).collect();
        let set = families(task).filter(|family| family.new.is_none()).flat_map(|family| (family.scores)());
        let is_wanted = match wanted {
            Wanted::All => true,
            Wanted::Names(names) => {
                let mut set = set;
                set.any(|score| names.iter().any(|name| score.is_called(name)))
            }
        };
        let collector = (is_wanted || task == OF_ALL).then(|| Collector::new(task, args));
        Self { metrics, collector, task, wanted }
    }

    /// `xs` is what the network saw, `ys` the targets.
    pub fn update(&mut self, xs: &Tensor, answer: &ModelOutput, ys: &Tensor) {
        self.metrics.iter_mut().for_each(|metric| metric.update(xs, answer, ys));
        if let Some(collector) = &mut self.collector {
            collector.update(answer, ys);
        }
    }

    /// The metrics over all that was added; waits for the device.
    pub fn compute(&self, thresholds: Thresholds) -> Scores {
        let mut all = Scores::default();
        for scores in self.metrics.iter().map(|metric| metric.compute()) {
            all.values.extend(scores.values);
            all.each.extend(scores.each);
            all.report = all.report.or(scores.report);
        }
        let Some(collector) = &self.collector else { return all };
        let mut answers = match collector.read() {
            Some(answers) => answers,
            None if all.each.is_empty() => return all,
            None => Answers::Each(all.each.clone()),
        };
        if let Answers::Labels(answers) = &mut answers {
            answers.thresholds = match thresholds {
                Thresholds::Best => answers.best_thresholds(),
                Thresholds::Given(given) if given.len() == answers.thresholds.len() => given.to_vec(),
                Thresholds::Given(_) => answers.thresholds.clone(),
            };
            all.thresholds.clone_from(&answers.thresholds);
            all.report = Some(answers.report());
        }
        for family in families(self.task).filter(|family| family.new.is_none()) {
            let is_usual =
                |name: &str| self.task == OF_ALL && (family.scores)().iter().any(|score| score.name == name);
            let is_shown = |name: &str| is_usual(name) || self.wanted.takes(name);
            let is_wanted = match self.wanted {
                Wanted::All => true,
                Wanted::Names(names) => {
                    self.task == OF_ALL
                        || (family.scores)()
                            .iter()
                            .any(|score| names.iter().any(|name| score.is_called(name)))
                }
            };
            if is_wanted {
                // The evaluation has the loss by itself.
                let scores = (family.of)(&answers, None).into_iter().filter(|(name, _)| name != LOSS.name);
                all.values.extend(scores.filter(|(name, _)| is_shown(name)));
            }
        }
        all.answers = Some(Arc::new(answers));
        all
    }
}

/// Whether the score `name` of the task `task` is computed only where it is wanted.
pub fn is_of_all(task: &str, name: &str) -> bool {
    let mut of_all =
        families(task).filter(|family| family.new.is_none()).flat_map(|family| (family.scores)());
    of_all.any(|score| score.is_called(name))
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
#[derive(Clone, Default)]
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
    /// By class, what decided whether it is found in a sample; of `multi_label` only.
    pub thresholds: Vec<f64>,
    /// By score, where they were drawn.
    pub intervals: BTreeMap<String, Interval>,
    /// What the scores are of, where it was collected.
    pub answers: Option<Arc<Answers>>,
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

impl fmt::Debug for Scores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scores").field("values", &self.values).finish_non_exhaustive()
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
