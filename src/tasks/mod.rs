//! What the network is trained for: the loss, the metrics, and what a prediction looks like.

pub mod classification;
pub mod degrade;
pub mod reconstruction;
pub mod regression;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::data::Dataset;
use crate::metrics::Meter;
use crate::yaml::Invalid;

pub use classification::Classification;
pub use reconstruction::Reconstruction;
pub use regression::Regression;

/// The task as declared: `task: classification`, or `task: {classification: {label_smoothing: 0.1}}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TaskSpec {
    Classification(Classification),
    Regression(Regression),
    Reconstruction(Reconstruction),
}

impl TaskSpec {
    pub fn validate(&self) -> Result<(), Invalid> {
        match self {
            Self::Classification(spec) => spec.validate(),
            Self::Regression(spec) => spec.validate(),
            Self::Reconstruction(spec) => spec.validate(),
        }
    }

    /// The task itself; it has no state.
    pub fn build(&self) -> Box<dyn Task> {
        match self.clone() {
            Self::Classification(spec) => Box::new(spec),
            Self::Regression(spec) => Box::new(spec),
            Self::Reconstruction(spec) => Box::new(spec),
        }
    }
}

/// The metric that decides what is best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    pub metric: &'static str,
    pub higher_is_better: bool,
}

/// What the network says of one sample.
#[derive(Debug)]
pub enum Prediction {
    /// (class index, probability), most probable first.
    Classes(Vec<(usize, f64)>),
    /// One number per target.
    Values(Vec<f64>),
    /// An image `[C, H, W]` in [0, 1].
    Image(Tensor),
}

/// A loss, its metrics, its predictions. Nothing here waits for the device, `Meter::scores` and `predictions`
/// excepted.
pub trait Task {
    /// Whether the network's output (without batch) fits the data; the message ends with the remedy.
    fn check(&self, output: &[i64], set: &Dataset) -> Result<()>;

    /// The shape of what the network sees of a sample as loaded, both without batch.
    fn input(&self, sample: &[i64]) -> Vec<i64> {
        sample.to_vec()
    }

    /// Makes what the network sees and should answer of a batch as loaded. May draw from libtorch's generator,
    /// which the caller has seeded. Panics as tch does.
    fn prepare(&self, xs: Tensor, ys: Tensor, _train: bool) -> Result<(Tensor, Tensor)> {
        Ok((xs, ys))
    }

    /// Makes what the network sees of samples that nobody knows the answer to.
    fn present(&self, xs: Tensor) -> Tensor {
        xs
    }

    /// Makes the task's answer of the network's, as residual learning does.
    fn answer(&self, _xs: &Tensor, outputs: Tensor) -> Tensor {
        outputs
    }

    /// Mean data loss over the batch, 0-dim.
    fn loss(&self, outputs: &Tensor, ys: &Tensor) -> Tensor;

    /// The loss that evaluation reports: without label smoothing and the like.
    fn evaluation_loss(&self, outputs: &Tensor, ys: &Tensor) -> Tensor {
        self.loss(outputs, ys)
    }

    /// `output` is the network's output shape without batch.
    fn meter(&self, output: &[i64]) -> Box<dyn Meter>;

    fn goal(&self) -> Goal;

    /// One prediction per sample of the answer `[N, …]`.
    fn predictions(&self, outputs: &Tensor) -> Result<Vec<Prediction>>;
}
