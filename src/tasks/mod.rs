//! What the network is trained for: the loss, the metrics, and what a prediction looks like.

mod classification;
mod compression;
pub mod degrade;
mod generation;
mod reconstruction;
mod regression;
mod segmentation;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::ModuleT;

use crate::data::Dataset;
use crate::metrics::Metric;
use crate::metrics::image::psnr;
use crate::nn::model::{Model, Network};
use crate::schedule::ScheduleStep;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml::Invalid;

pub use classification::Classification;
pub use compression::Compression;
pub use generation::Generation;
pub use reconstruction::Reconstruction;
pub use regression::Regression;
pub use segmentation::Segmentation;

pub use crate::metrics::ModelOutput;

/// The task as declared: `task: classification`, or `task: {classification: {label_smoothing: 0.1}}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TaskSpec {
    Classification(Classification),
    Regression(Regression),
    Reconstruction(Reconstruction),
    Segmentation(Segmentation),
    Generation(Generation),
    Compression(Compression),
}

impl TaskSpec {
    pub fn validate(&self) -> Result<(), Invalid> {
        match self {
            Self::Classification(spec) => spec.validate(),
            Self::Regression(spec) => spec.validate(),
            Self::Reconstruction(spec) => spec.validate(),
            Self::Segmentation(spec) => spec.validate(),
            Self::Generation(spec) => spec.validate(),
            Self::Compression(spec) => spec.validate(),
        }
    }

    /// The task itself; it has no state.
    pub fn build(&self) -> Box<dyn Task> {
        match self.clone() {
            Self::Classification(spec) => Box::new(spec),
            Self::Regression(spec) => Box::new(spec),
            Self::Reconstruction(spec) => Box::new(spec),
            Self::Segmentation(spec) => Box::new(spec),
            Self::Generation(spec) => Box::new(spec),
            Self::Compression(spec) => Box::new(spec),
        }
    }
}

/// The metric that decides what is best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Monitor {
    pub metric: &'static str,
    pub higher_is_better: bool,
}

/// What the network says of one sample, where it is no picture.
#[derive(Debug)]
pub enum Prediction {
    /// (class index, probability), most probable first.
    Classes(Vec<(usize, f64)>),
    /// One number per target.
    Values(Vec<f64>),
}

/// One of the pictures that show how a sample went.
#[derive(Debug)]
pub struct Panel {
    /// ASCII.
    pub caption: String,
    /// `[1, C, H, W]` in [0, 1].
    pub image: Tensor,
}

impl Panel {
    fn new(caption: impl Into<String>, image: &Tensor) -> Self {
        Self { caption: caption.into(), image: image.clamp(0.0, 1.0) }
    }
}

/// An image `[1, C, H, W]` and what came of it.
fn through(outputs: &Tensor, ys: &Tensor) -> Vec<Panel> {
    let outputs = outputs.clamp(0.0, 1.0);
    let caption = format!("back {:.2} dB", psnr(&outputs, ys).double_value(&[0]));
    vec![Panel::new("given", ys), Panel::new(caption, &outputs)]
}

/// The top-level child `name` (or `_name`) of the network, which the task runs apart; exit 2 where it has
/// none.
fn part<'a>(network: &'a Network, name: &str, task: &str) -> Result<&'a dyn ModuleT> {
    network.child(name).ok_or_else(|| lacks(name, task))
}

/// The shape of one code: what `encoder` gives, its first axis `per_value` times as long, and `decoder`
/// takes. Exit 2 where the model has no such parts.
fn code<'m>(model: &'m Model, per_value: i64, task: &str) -> Result<&'m [i64]> {
    let child = |name| model.child(name).ok_or_else(|| lacks(name, task));
    let ((_, given), (taken, _)) = (child("encoder")?, child("decoder")?);
    let wanted = taken.first().map(|first| first * per_value);
    if given.first().copied() == wanted && given.get(1..) == taken.get(1..) {
        return Ok(taken);
    }
    let per_value = if per_value == 1 { "one number" } else { "a mean and a log-variance" };
    let message = format!(
        "{task} wants {per_value} from `encoder` for each that `decoder` takes, and the one gives {given:?} and the \
         other takes {taken:?}; make the two fit"
    );
    Err(fail(ExitCode::Usage, message))
}

fn lacks(name: &str, task: &str) -> anyhow::Error {
    let message = format!(
        "{task} runs the network's parts `encoder` and `decoder`, and its model has no `{name}`; name two of its \
         top-level layers so (`_{name}` keeps it out of the parameter names)"
    );
    fail(ExitCode::Usage, message)
}

/// A loss, its metrics, its predictions. Nothing here waits for the device, `Metric::scores` and
/// `predictions` excepted.
pub trait Task {
    /// Whether the network has what the task runs and its output fits the data; the message ends with the
    /// remedy.
    fn check(&self, model: &Model, set: &Dataset) -> Result<()>;

    /// The shape of what the network sees of a sample as loaded, both without batch.
    fn input(&self, sample: &[i64]) -> Vec<i64> {
        sample.to_vec()
    }

    /// Makes what the network sees and should answer of a batch as loaded. May draw from libtorch's
    /// generator, which the caller has seeded. Panics as tch does.
    fn make_batch(&self, xs: Tensor, ys: Tensor, _train: bool) -> Result<(Tensor, Tensor)> {
        Ok((xs, ys))
    }

    /// Makes what the network sees of samples that nobody knows the answer to.
    fn make_inference_input(&self, xs: Tensor) -> Tensor {
        xs
    }

    /// Runs the network on what [`Task::make_batch`] made, and makes the answer of its output. May draw as that
    /// does. Exit 2 where the network lacks a part that the task runs apart.
    fn forward(&self, network: &Network, xs: &Tensor, train: bool) -> Result<ModelOutput> {
        Ok(network.forward(xs, train).into())
    }

    /// Mean data loss over the batch, 0-dim. `clock` is None in evaluation, which reports the loss without
    /// label smoothing and the like.
    fn loss(&self, answer: &ModelOutput, ys: &Tensor, clock: Option<ScheduleStep>) -> Tensor;

    /// What the loss is a function of, where it is no mean over samples: sums over the batch, float64 `[S]`,
    /// differentiable. Sums of several batches are added, and [`Task::joint_loss`] of them is the loss of the
    /// batches as one.
    fn sums(&self, _answer: &ModelOutput, _ys: &Tensor) -> Option<Tensor> {
        None
    }

    /// The loss of what [`Task::sums`] gave, 0-dim.
    fn joint_loss(&self, sums: &Tensor) -> Tensor {
        sums.shallow_clone()
    }

    /// What a batch counts in the mean over several, 0-dim, where that is known from the targets and not the
    /// number of its samples.
    fn weight(&self, _ys: &Tensor) -> Option<Tensor> {
        None
    }

    /// Whether the loss of several batches is neither a mean of theirs nor one weighted by [`Task::weight`].
    fn is_joint(&self) -> bool {
        false
    }

    /// Whether the loss of the same answer may be another at another `clock`.
    fn loss_depends_on_step(&self) -> bool {
        false
    }

    /// `output` is the network's output shape without batch.
    fn metrics(&self, output: &[i64]) -> Box<dyn Metric>;

    fn monitor(&self) -> Monitor;

    /// One sample side by side, batch of 1 each: what the network saw, what it answers, what was wanted.
    /// Empty where there is nothing to see. Panics as tch does.
    fn panels(&self, _xs: &Tensor, _outputs: &Tensor, _ys: &Tensor) -> Vec<Panel> {
        Vec::new()
    }

    /// One prediction per sample of the answer `[N, …]`. Exit 2 where the answers are pictures.
    fn predictions(&self, _outputs: &Tensor) -> Result<Vec<Prediction>> {
        let message = "this run answers with pictures: `restore` writes those of a reconstruction";
        Err(fail(ExitCode::Usage, message))
    }
}
