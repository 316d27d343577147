//! Data sets: where samples come from, and how they become batches.

pub mod augment;
pub mod draw;
pub mod normalize;
pub mod picture;
pub mod smooth;
pub mod sources;
mod spec;

use std::sync::Arc;

use serde::Serialize;
use tch::Tensor;

pub use picture::{Fit, ImageFile, Mode, Picture, Resize};
pub use spec::{DataSpec, SourceSpec, ValidationSpec};

/// The samples of one set, without their targets.
pub enum Samples {
    /// All in memory. Images are uint8 `[N, C, H, W]` (or float32, from npy files), tables float64 or
    /// float32 `[N, F]`. On the CPU, contiguous.
    Resident(Tensor),
    /// Images that the loader's workers decode when their turn comes.
    Files(Arc<Files>),
}

/// Image files and how each becomes a sample.
pub struct Files {
    pub files: Vec<ImageFile>,
    pub fit: Fit,
    /// How many of them may still turn out to be undecodable before the run ends with exit code 3.
    pub forgiven: usize,
}

/// What the network should say about each sample.
pub enum Targets {
    /// A class index in 0..K per sample.
    Classes(Vec<i64>),
    /// float64 `[N, T]`.
    Values(Tensor),
    /// Nothing is known, as for pictures that are only to be predicted.
    Unknown,
}

/// One set of samples with their targets.
pub struct Dataset {
    pub samples: Samples,
    pub targets: Targets,
    /// One sample as the network sees it: `[C, H, W]` or `[F]`.
    pub shape: Vec<i64>,
    /// The names of the classes in index order; empty for regression.
    pub classes: Vec<String>,
    /// The names of a table's columns; empty where they have none.
    pub features: Vec<String>,
    /// A name per sample, such as its file; empty where samples have none.
    pub names: Vec<String>,
    /// sha256 in hex of the content, or of (names, sizes) for files decoded on demand.
    pub fingerprint: String,
    /// What could not be read and was left out, within the budget.
    pub skipped: Vec<Skipped>,
}

/// A sample that was left out.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    pub name: String,
    pub reason: String,
}

/// The sets of one run. All have the same `shape` and the same `classes`.
pub struct Sets {
    pub train: Dataset,
    pub validation: Option<Dataset>,
    pub test: Option<Dataset>,
}

impl Dataset {
    /// How many samples there are.
    pub fn len(&self) -> usize {
        match &self.samples {
            Samples::Resident(xs) => xs.size().first().map_or(0, |&n| n as usize),
            Samples::Files(files) => files.files.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether samples are images `[C, H, W]`.
    pub fn is_images(&self) -> bool {
        self.shape.len() == 3
    }
}
