//! All answers of a set and what was wanted, on the CPU: what scores are of that no sums give, and what a bootstrap
//! draws from.

use std::cmp::Ordering;
use std::sync::OnceLock;

use tch::{Device, Kind, Tensor};

use super::classification::{ClassReport, ClassScores, share};
use super::{MetricArgs, ModelOutput};
use crate::libtorch::device::cores;
use crate::util::threads::each;

/// The answers, by kind.
pub enum Answers {
    /// One class per sample.
    Classes(ClassAnswers),
    /// Any number of classes per sample.
    Labels(LabelAnswers),
    /// Numbers: outputs and targets, `[T]` of each sample.
    Values { outputs: Vec<Vec<f64>>, targets: Vec<Vec<f64>> },
    /// Pixels of each sample by class: `[K · K]`, row = truth, column = prediction.
    Pixels { classes: usize, confusion: Vec<Vec<i64>> },
    /// Scores that are means over samples.
    Each(Vec<(String, Vec<f64>)>),
}

/// How often each sample counts: once, or as a bootstrap drew it.
pub type Counts<'a> = Option<&'a [u32]>;

/// How often sample `index` counts.
pub fn count(counts: Counts, index: usize) -> u64 {
    counts.map_or(1, |counts| u64::from(counts[index]))
}

/// `[N · K]`, sample after sample.
pub struct Probabilities {
    pub classes: usize,
    pub values: Vec<f64>,
    /// By class, the samples from the most probable down.
    order: OnceLock<Vec<Vec<u32>>>,
}

pub struct ClassAnswers {
    /// `[N · K]`, less ln Σ exp of them.
    pub logits: Vec<f64>,
    pub probabilities: Probabilities,
    pub truth: Vec<usize>,
    /// The most probable class; of equals the first.
    pub predicted: Vec<usize>,
    /// Whether the truth is among the five most probable.
    pub in_top5: Vec<bool>,
    /// −ln of the probability of the truth.
    pub nats: Vec<f64>,
}

pub struct LabelAnswers {
    /// `[N · K]`
    pub logits: Vec<f64>,
    pub probabilities: Probabilities,
    /// `[N · K]`
    pub truth: Vec<bool>,
    /// A class is found where its probability is at least this; one per class.
    pub thresholds: Vec<f64>,
    /// The mean over classes of −ln of the probability of what is.
    pub nats: Vec<f64>,
}

impl Probabilities {
    fn new(classes: usize, values: Vec<f64>) -> Self {
        Self { classes, values, order: OnceLock::new() }
    }

    pub fn samples(&self) -> usize {
        self.values.len() / self.classes.max(1)
    }

    pub fn row(&self, sample: usize) -> &[f64] {
        &self.values[sample * self.classes..][..self.classes]
    }

    pub fn of(&self, sample: usize, class: usize) -> f64 {
        self.values[sample * self.classes + class]
    }

    fn order(&self) -> &[Vec<u32>] {
        self.order.get_or_init(|| {
            let sorted = |class: usize| {
                let mut order: Vec<u32> = (0..self.samples() as u32).collect();
                let of = |sample: u32| self.of(sample as usize, class);
                order.sort_by(|a, b| of(*b).partial_cmp(&of(*a)).unwrap_or(Ordering::Equal));
                order
            };
            each(cores(), (0..self.classes).collect(), sorted)
        })
    }

    /// From the most probable sample of `class` down, one step per distinct probability.
    fn steps(&self, class: usize, counts: Counts, is_of: impl Fn(usize) -> bool) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        for &sample in &self.order()[class] {
            let (sample, number) = (sample as usize, count(counts, sample as usize));
            let probability = self.of(sample, class);
            if steps.last().is_none_or(|last| last.probability != probability) {
                steps.push(Step { probability, hits: 0, others: 0 });
            }
            if let Some(step) = steps.last_mut() {
                *(if is_of(sample) { &mut step.hits } else { &mut step.others }) += number;
            }
        }
        steps
    }
}

/// The samples of one probability: those of the class, and the others.
pub struct Step {
    pub probability: f64,
    pub hits: u64,
    pub others: u64,
}

impl Answers {
    /// A score of each class against the others, by the steps from its most probable sample down. Empty where
    /// answers are no classes.
    pub(super) fn each_class(
        &self,
        counts: Counts,
        score: impl Fn(&[Step]) -> Option<f64>,
    ) -> Vec<Option<f64>> {
        match self {
            Self::Classes(ClassAnswers { probabilities, truth, .. }) => (0..probabilities.classes)
                .map(|class| score(&probabilities.steps(class, counts, |sample| truth[sample] == class)))
                .collect(),
            Self::Labels(LabelAnswers { probabilities, truth, .. }) => {
                let classes = probabilities.classes;
                let is_of = |sample: usize, class: usize| truth[sample * classes + class];
                let of = |class| score(&probabilities.steps(class, counts, |sample| is_of(sample, class)));
                (0..classes).map(of).collect()
            }
            _ => Vec::new(),
        }
    }

    pub fn samples(&self) -> usize {
        match self {
            Self::Classes(answers) => answers.truth.len(),
            Self::Labels(answers) => answers.probabilities.samples(),
            Self::Values { targets, .. } => targets.len(),
            Self::Pixels { confusion, .. } => confusion.len(),
            Self::Each(scores) => scores.first().map_or(0, |(_, values)| values.len()),
        }
    }

    /// The same with logits that are divided by `temperature`, and thresholds of 0.5; None where there are none.
    pub fn at_temperature(&self, temperature: f64) -> Option<Self> {
        let divided = |logits: &[f64], classes: usize| {
            Tensor::from_slice(logits).reshape([-1, classes as i64]) / temperature
        };
        match self {
            Self::Classes(answers) => {
                let truth: Vec<i64> = answers.truth.iter().map(|&class| class as i64).collect();
                let logits = divided(&answers.logits, answers.probabilities.classes);
                Some(Self::Classes(ClassAnswers::new(&logits, &Tensor::from_slice(&truth))))
            }
            Self::Labels(answers) => {
                let truth: Vec<f64> = answers.truth.iter().map(|&is| f64::from(u8::from(is))).collect();
                let logits = divided(&answers.logits, answers.probabilities.classes);
                let truth = Tensor::from_slice(&truth).view_as(&logits);
                Some(Self::Labels(LabelAnswers::new(&logits, &truth)))
            }
            _ => None,
        }
    }

    /// Whether both are answers to the same questions.
    pub fn is_of_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Classes(a), Self::Classes(b)) => a.truth == b.truth,
            (Self::Labels(a), Self::Labels(b)) => a.truth == b.truth,
            (Self::Values { targets: a, .. }, Self::Values { targets: b, .. }) => a == b,
            (
                Self::Pixels { classes: a, confusion: ours },
                Self::Pixels { classes: b, confusion: theirs },
            ) => {
                let truth = |confusion: &[i64]| -> Vec<i64> {
                    confusion.chunks(*a).map(|row| row.iter().sum()).collect()
                };
                a == b
                    && ours.len() == theirs.len()
                    && ours.iter().zip(theirs).all(|(a, b)| truth(a) == truth(b))
            }
            (Self::Each(_), Self::Each(_)) => self.samples() == other.samples(),
            _ => false,
        }
    }
}

impl ClassAnswers {
    /// `logits` float64 `[N, K]`, `ys` int64 `[N]`, or shares of classes `[N, K]`, of which the largest counts.
    fn new(logits: &Tensor, ys: &Tensor) -> Self {
        let classes = logits.size()[1] as usize;
        let ys = if ys.dim() == 2 { ys.argmax(1, false) } else { ys.shallow_clone() };
        let truth: Vec<i64> = Vec::try_from(ys).unwrap_or_default();
        let truth: Vec<usize> = truth.into_iter().map(|class| class as usize).collect();
        let logarithms = host(&logits.log_softmax(1, Kind::Double));
        let predicted: Vec<i64> = Vec::try_from(logits.argmax(1, false)).unwrap_or_default();
        let rank = |(sample, &class): (usize, &usize)| {
            let row = &logarithms[sample * classes..][..classes];
            row.iter().filter(|other| **other > row[class]).count() < 5
        };
        Self {
            in_top5: truth.iter().enumerate().map(rank).collect(),
            nats: truth.iter().enumerate().map(|(at, &class)| -logarithms[at * classes + class]).collect(),
            probabilities: Probabilities::new(classes, logarithms.iter().map(|value| value.exp()).collect()),
            predicted: predicted.into_iter().map(|class| class as usize).collect(),
            truth,
            logits: logarithms,
        }
    }

    /// `[truth][prediction]`: number of samples.
    pub fn confusion(&self, counts: Counts) -> Vec<Vec<i64>> {
        let classes = self.probabilities.classes;
        let mut confusion = vec![vec![0; classes]; classes];
        for (at, (&truth, &predicted)) in self.truth.iter().zip(&self.predicted).enumerate() {
            confusion[truth][predicted] += count(counts, at) as i64;
        }
        confusion
    }
}

impl LabelAnswers {
    /// `logits` float64 `[N, K]`, `ys` zeros and ones `[N, K]`.
    fn new(logits: &Tensor, ys: &Tensor) -> Self {
        let classes = logits.size()[1] as usize;
        let nats = logits.binary_cross_entropy_with_logits::<Tensor>(ys, None, None, tch::Reduction::None);
        Self {
            logits: host(logits),
            probabilities: Probabilities::new(classes, host(&logits.sigmoid())),
            truth: host(ys).into_iter().map(|label| label > 0.5).collect(),
            thresholds: vec![0.5; classes],
            nats: host(&nats.mean_dim(&[1i64][..], false, Kind::Double)),
        }
    }

    /// By class, the threshold of the highest F1 over these samples (Lipton, Elkan and Naryanaswamy 2014), halfway
    /// between two probabilities; 0.5 of a class that none has.
    pub fn best_thresholds(&self) -> Vec<f64> {
        let classes = self.probabilities.classes;
        let best = |class: usize| {
            let is_of = |sample: usize| self.truth[sample * classes + class];
            let all = (0..self.probabilities.samples()).filter(|&sample| is_of(sample)).count() as u64;
            let (mut hits, mut found, mut best, mut threshold) = (0, 0, 0.0, 0.5);
            // The last step was the best so far: its threshold lies above the next probability.
            let mut above = None;
            for step in self.probabilities.steps(class, None, is_of) {
                if let Some(last) = above.take() {
                    threshold = f64::midpoint(last, step.probability);
                }
                hits += step.hits;
                found += step.hits + step.others;
                let f1 = 2.0 * hits as f64 / (found + all) as f64;
                if f1 > best {
                    (best, above) = (f1, Some(step.probability));
                }
            }
            above.map_or(threshold, |last| last / 2.0)
        };
        (0..classes).map(best).collect()
    }

    pub fn is_found(&self, sample: usize, class: usize) -> bool {
        self.probabilities.of(sample, class) >= self.thresholds[class]
    }

    /// By class: [hits, found, samples that have it].
    pub fn tallies(&self, counts: Counts) -> Vec<[i64; 3]> {
        let classes = self.probabilities.classes;
        let mut tallies = vec![[0; 3]; classes];
        for sample in 0..self.probabilities.samples() {
            let number = count(counts, sample) as i64;
            for (class, tally) in tallies.iter_mut().enumerate().filter(|_| number > 0) {
                let (is, found) = (self.truth[sample * classes + class], self.is_found(sample, class));
                for (at, holds) in [is && found, found, is].into_iter().enumerate() {
                    tally[at] += if holds { number } else { 0 };
                }
            }
        }
        tallies
    }

    /// Scores per class; there is no confusion where classes do not exclude each other.
    pub fn report(&self) -> ClassReport {
        let scores = |([hits, found, support], threshold): ([i64; 3], &f64)| ClassScores {
            precision: share(hits, found),
            recall: share(hits, support),
            f1: share(2 * hits, found + support),
            support,
            threshold: Some(*threshold),
        };
        let per_class = self.tallies(None).into_iter().zip(&self.thresholds).map(scores).collect();
        ClassReport { confusion: Vec::new(), per_class }
    }

    /// Whether all labels of sample `index` are right.
    pub fn is_right(&self, index: usize) -> bool {
        let classes = self.probabilities.classes;
        (0..classes).all(|class| self.is_found(index, class) == self.truth[index * classes + class])
    }
}

/// Takes answers where they were computed, without waiting for the device.
pub(super) struct Collector {
    task: String,
    classes: usize,
    batches: Vec<(Tensor, Tensor)>,
}

impl Collector {
    pub fn new(task: &str, args: &MetricArgs) -> Self {
        Self { task: task.to_owned(), classes: args.classes, batches: Vec::new() }
    }

    pub fn update(&mut self, answer: &ModelOutput, ys: &Tensor) {
        let outputs = answer.outputs.detach();
        match self.task.as_str() {
            "segmentation" => {
                let confusion = super::segmentation::confusion_of_each(&outputs, ys, self.classes as i64);
                self.batches.push((confusion.shallow_clone(), confusion));
            }
            "classification" | "multi_label" | "regression" => {
                self.batches.push((outputs, ys.shallow_clone()));
            }
            // Their scores are means over samples, and kept by themselves.
            _ => {}
        }
    }

    /// None where there are none to keep. Waits for the device.
    pub fn read(&self) -> Option<Answers> {
        let all = |of: fn(&(Tensor, Tensor)) -> &Tensor| {
            let parts: Vec<_> = self.batches.iter().map(|batch| of(batch).to_device(Device::Cpu)).collect();
            (!parts.is_empty()).then(|| Tensor::cat(&parts, 0))
        };
        let (outputs, ys) = (all(|batch| &batch.0)?, all(|batch| &batch.1)?);
        let rows = |tensor: &Tensor| -> Vec<Vec<f64>> {
            let flat = tensor.reshape([tensor.size()[0], -1]).to_kind(Kind::Double);
            Vec::try_from(flat).unwrap_or_default()
        };
        Some(match self.task.as_str() {
            "segmentation" => Answers::Pixels {
                classes: self.classes,
                confusion: Vec::<Vec<i64>>::try_from(outputs).unwrap_or_default(),
            },
            "regression" => Answers::Values { outputs: rows(&outputs), targets: rows(&ys) },
            "multi_label" => {
                Answers::Labels(LabelAnswers::new(&outputs.to_kind(Kind::Double), &ys.to_kind(Kind::Double)))
            }
            _ => Answers::Classes(ClassAnswers::new(&outputs.to_kind(Kind::Double), &ys)),
        })
    }
}

fn host(values: &Tensor) -> Vec<f64> {
    Vec::try_from(values.to_kind(Kind::Double).reshape(-1)).unwrap_or_default()
}
