//! Metrics that accumulate on the device over batches and are read once.

mod classification;
mod compression;
mod generation;
pub mod image;
mod regression;
mod segmentation;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use tch::Tensor;

pub use classification::{ClassReport, ClassificationMeter};
pub use compression::CompressionMeter;
pub use generation::GenerationMeter;
pub use image::{ImageMeter, ImageRules};
pub use regression::RegressionMeter;
pub use segmentation::SegmentationMeter;

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

/// Collects one split's metrics, batch after batch, without waiting for the device.
pub trait Metric {
    /// `xs` is what the network saw, `ys` the targets.
    fn update(&mut self, xs: &Tensor, answer: &ModelOutput, ys: &Tensor);
    /// The metrics over all that was added; waits for the device.
    fn compute(&self) -> Scores;
}

/// Named metrics, in the order in which they are shown.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    pub values: Vec<(String, f64)>,
    /// Precision, recall and F1 per class, and the confusion matrix; classification only.
    pub report: Option<ClassReport>,
    /// The values that the means are of, in the order of the samples; images only.
    pub each: Vec<(String, Vec<f64>)>,
    /// Which samples of the set these scores are of: those that could be read.
    pub indices: Vec<i64>,
}

impl Scores {
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }
}

impl Serialize for Scores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in &self.values {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}
