//! What the network is trained for: the loss, the metrics, the predictions. A task is one file and one row of
//! `tasks!`.

mod balanced;
mod classification;
mod compression;
pub mod degrade;
mod generation;
mod multi_label;
mod reconstruction;
mod regression;
mod segmentation;
pub mod tta;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn::ModuleT;
use tch::{Device, Kind, Tensor};

use crate::data::Dataset;
use crate::data::balance::ClassBalance;
use crate::metrics::image::psnr;
use crate::metrics::{MetricArgs, Monitor};
use crate::nn::model::{Model, Network};
use crate::schedule::ScheduleStep;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml::Invalid;

pub use compression::Compression;
pub use generation::Generation;
pub use reconstruction::Reconstruction;

pub use crate::metrics::ModelOutput;

/// The name of a task in YAML, as the table gives it.
pub trait Named {
    fn name(&self) -> &'static str;
}

macro_rules! tasks {
    ($($name:literal => $variant:ident($spec:ty),)*) => {
        /// What the network is trained for, which gives the loss and the metrics: `task: classification`, or
        /// `task: {classification: {label_smoothing: 0.1}}`.
        #[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub enum TaskSpec {
            $(#[serde(rename = $name)] $variant($spec),)*
        }

        $(impl Named for $spec {
            fn name(&self) -> &'static str {
                $name
            }
        })*

        impl TaskSpec {
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            pub fn task(&self) -> &dyn Task {
                match self {
                    $(Self::$variant(spec) => spec,)*
                }
            }

            /// The task itself; it has no state.
            pub fn build(&self) -> Box<dyn Task> {
                match self.clone() {
                    $(Self::$variant(spec) => Box::new(spec),)*
                }
            }
        }
    };
}

tasks! {
    "classification" => Classification(classification::Classification),
    "multi_label" => MultiLabel(multi_label::MultiLabel),
    "regression" => Regression(regression::Regression),
    "reconstruction" => Reconstruction(reconstruction::Reconstruction),
    "segmentation" => Segmentation(segmentation::Segmentation),
    "generation" => Generation(generation::Generation),
    "compression" => Compression(compression::Compression),
}

impl TaskSpec {
    /// Refuses what no task of the kind can mean; the path starts at the config's `task`.
    pub fn validate(&self) -> Result<(), Invalid> {
        let task = self.task();
        task.validate().map_err(|invalid| invalid.under(task.name()))
    }

    /// The score that decides: `name`, or the task's own where there is none. Else what is wrong.
    pub fn monitor(&self, name: Option<&str>) -> Result<Monitor, String> {
        let task = self.task();
        Monitor::new(task.name(), name.unwrap_or(task.default_monitor()))
    }
}

/// Arguments of a shipped model that follow from the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelArgs {
    pub channels: i64,
    pub classes: Option<usize>,
    /// Whether the network has one input size, which is then that of the data.
    pub is_sized: bool,
}

/// A prediction for one sample, where it is no image.
#[derive(Debug)]
pub enum Prediction {
    /// (class index, probability), most probable first.
    Classes(Vec<(usize, f64)>),
    /// The probability of each class, of which a sample may have any number.
    Labels(Vec<f64>),
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
    pub fn new(caption: impl Into<String>, image: &Tensor) -> Self {
        Self { caption: caption.into(), image: image.clamp(0.0, 1.0) }
    }
}

/// An image `[1, C, H, W]` and what the autoencoder makes of it.
fn autoencoder_panels(outputs: &Tensor, ys: &Tensor) -> Vec<Panel> {
    let outputs = outputs.clamp(0.0, 1.0);
    let caption = format!("back {:.2} dB", psnr(&outputs, ys).double_value(&[0]));
    vec![Panel::new("given", ys), Panel::new(caption, &outputs)]
}

/// The top-level child `name` (or `_name`) of the network, which the task runs apart; exit 2 where it has
/// none.
fn part<'a>(network: &'a Network, name: &str, task: &str) -> Result<&'a dyn ModuleT> {
    network.child(name).ok_or_else(|| missing_part(name, task))
}

/// The shape of one code: what `encoder` gives, its first axis `per_value` times as long, and `decoder`
/// takes. Exit 2 where the model has no such parts.
fn code_shape<'m>(model: &'m Model, per_value: i64, task: &str) -> Result<&'m [i64]> {
    let child = |name| model.child(name).ok_or_else(|| missing_part(name, task));
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

fn missing_part(name: &str, task: &str) -> anyhow::Error {
    let message = format!(
        "{task} runs the network's parts `encoder` and `decoder`, and its model has no `{name}`; name two of its \
         top-level layers so (`_{name}` keeps it out of the parameter names)"
    );
    fail(ExitCode::Usage, message)
}

/// A loss, its metrics, its predictions. Nothing here waits for the device, `predictions` and
/// [`compute`](crate::metrics::Metric::compute) of its metrics excepted.
pub trait Task: Named {
    /// Refuses what serde cannot express; the path starts at the task's own keys.
    fn validate(&self) -> Result<(), Invalid>;

    /// What the data's `channels` and `classes` say about a shipped model's arguments.
    fn model_args(&self, channels: i64, _classes: Option<usize>) -> ModelArgs {
        ModelArgs { channels, classes: None, is_sized: false }
    }

    /// Whether it runs the network's parts `encoder` and `decoder` one by one, so that the network as a whole
    /// cannot be cut into segments.
    fn runs_parts(&self) -> bool {
        false
    }

    /// Whether its scores are of images in 0..1, which rules out normalised data.
    fn scores_images(&self) -> bool {
        false
    }

    /// Whether its panels show the input, which is then shown as it was before normalisation.
    fn shows_input(&self) -> bool {
        false
    }

    /// Whether the network's output of shape `output` is logits of two classes or more along the channels.
    fn answers_logits(&self, _output: &[i64]) -> bool {
        false
    }

    /// Whether the network's outputs are logits of classes of which a sample may have any number.
    fn answers_labels(&self) -> bool {
        false
    }

    /// Whether auxiliary heads (`aux`) can learn what it wants, each by the task's own loss.
    fn takes_auxiliary(&self) -> bool {
        false
    }

    /// Whether the network's output is to be subtracted from its input.
    fn answers_residual(&self) -> bool {
        false
    }

    /// Takes the weights and adjustments of the classes into the training loss: none, or one of each output.
    fn balance(&mut self, _classes: &[ClassBalance], _kind: Kind, _device: Device) {}

    /// Whether [`Task::balance`] does.
    fn takes_balance(&self) -> bool {
        false
    }

    /// Whether the network has what the task runs and its output fits the data; the message ends with the
    /// remedy.
    fn check(&self, model: &Model, set: &Dataset) -> Result<()>;

    /// The shape of what the network sees of a sample as loaded, both without batch.
    fn input(&self, sample: &[i64]) -> Vec<i64> {
        sample.to_vec()
    }

    /// Makes the network's inputs and targets of a batch as loaded. May draw from libtorch's
    /// generator, which the caller has seeded. Panics as tch does.
    fn make_batch(&self, xs: Tensor, ys: Tensor, _train: bool) -> Result<(Tensor, Tensor)> {
        Ok((xs, ys))
    }

    /// Makes the network's input of samples without targets.
    fn make_inference_input(&self, xs: Tensor) -> Tensor {
        xs
    }

    /// Runs the network on what [`Task::make_batch`] made, and makes the answer of its output. May draw as
    /// that does. Exit 2 where the network lacks a part that the task runs apart.
    fn forward(&self, network: &Network, xs: &Tensor, train: bool) -> Result<ModelOutput> {
        Ok(self.answer(network.forward(xs, train)))
    }

    /// Makes the answer of the output of a network that is run as a whole, or of an auxiliary head's.
    fn answer(&self, output: Tensor) -> ModelOutput {
        output.into()
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

    /// The number through which the loss of the same answer is another at another `clock`; None where it is not.
    fn loss_number(&self, _clock: ScheduleStep) -> Option<f64> {
        None
    }

    /// The loss in training with that number, 0-dim, where the answer is: a recorded step reads it there.
    fn loss_with(&self, answer: &ModelOutput, ys: &Tensor, _number: &Tensor, clock: ScheduleStep) -> Tensor {
        self.loss(answer, ys, Some(clock))
    }

    /// What its metrics need to know; `output` is the network's output shape without batch.
    fn metric_args(&self, _output: &[i64]) -> MetricArgs {
        MetricArgs::default()
    }

    /// The score that is monitored where the config names none.
    fn default_monitor(&self) -> &'static str;

    /// One sample side by side, batch of 1 each: what the network saw, what it answers, what was wanted.
    /// Empty where there is nothing to see. Panics as tch does.
    fn panels(&self, _xs: &Tensor, _outputs: &Tensor, _ys: &Tensor) -> Vec<Panel> {
        Vec::new()
    }

    /// One sample as the network learns from it, batch of 1: pictures in [0, 1], a target that is a picture
    /// after the input. Panics as tch does.
    fn seen(&self, xs: &Tensor, ys: &Tensor) -> Vec<Panel> {
        let mut panels = vec![Panel::new("", xs)];
        if ys.dim() == 4 {
            panels.push(Panel::new("target", ys));
        }
        panels
    }

    /// One prediction per sample of the answer `[N, …]`. Exit 2 where the answers are pictures.
    fn predictions(&self, _outputs: &Tensor) -> Result<Vec<Prediction>> {
        let message = "this run answers with pictures: `restore` writes those of a reconstruction";
        Err(fail(ExitCode::Usage, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics;

    #[test]
    fn every_task_has_the_score_that_it_monitors() {
        for name in TaskSpec::NAMES {
            let spec: TaskSpec = serde_json::from_value(serde_json::json!({*name: {}})).unwrap();
            let monitor = spec.monitor(None).unwrap();
            assert!(metrics::scores(name).any(|score| score.name == monitor.metric), "{name}");
            assert!(!spec.monitor(Some("loss")).unwrap().higher_is_better);
        }
    }
}
