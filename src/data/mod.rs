//! Data sets: where samples come from, and how they become batches.

pub mod augment;
pub mod balance;
mod cache;
mod files;
mod fingerprint;
mod format;
pub mod image;
pub mod loader;
pub mod mask;
pub mod normalize;
pub mod sources;
mod spec;
mod split;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::util::exit_code::{ExitCode, fail};
use image::smooth::SmoothSpec;
use mask::Masks;
pub use sources::Split;

pub use cache::DatasetCache;
pub use files::{Damaged, Files, Framing};
pub use image::eval_transform::{EvalTransform, Interpolation};
pub use image::picture::{Fit, ImageFile, JPEG_PIXELS, Mode, Picture, Resize};
pub use sources::folder::{pictures, pictures_at, pictures_in};
pub use sources::{SourceSpec, ValidationSpec};
pub use spec::DataSpec;

/// The samples of one set, without their targets.
pub enum Samples {
    /// All in memory. Images are uint8 `[N, C, H, W]` (or float32, from npy files), tables float64 or
    /// float32 `[N, F]`. On the CPU, contiguous.
    Resident(Tensor),
    /// Images that the loader's workers decode when their turn comes.
    Files(Arc<Files>),
}

/// What the network should say about each sample.
pub enum Targets {
    /// A class index in 0..K per sample.
    Classes(Vec<i64>),
    /// float64 `[N, T]`.
    Values(Tensor),
    /// float32 `[N, K]` of zeros and ones: which of the K classes a sample has, any number of them.
    MultiLabel(Tensor),
    /// An image of so many channels, in [0, 1], `scale` times as large as the sample; it comes with the sample.
    Images { channels: usize, scale: usize },
    /// A class per pixel, which comes with the sample.
    Masks(Arc<Masks>),
    /// Nothing is known, as for pictures that are only to be predicted.
    Unknown,
}

/// One set of samples with their targets.
pub struct Dataset {
    pub samples: Samples,
    pub targets: Targets,
    /// One sample as the network sees it: `[C, H, W]` or `[F]`. `[C, 0, 0]` where each image has its own
    /// size.
    pub shape: Vec<i64>,
    /// The names of the classes in index order; empty for regression.
    pub classes: Vec<String>,
    /// The names of a table's columns; empty where they have none.
    pub features: Vec<String>,
    /// A name per sample, or per file that several samples are cut from; empty where samples have none.
    pub names: Vec<String>,
    /// The columns of a table of pictures that folds go by, a value per sample.
    pub columns: BTreeMap<String, Vec<String>>,
    /// sha256 in hex of the content, or of (names, sizes) for files decoded on demand.
    pub fingerprint: String,
    /// What could not be read at the start and was left out, within the budget.
    pub skipped: Vec<Skipped>,
    /// What else there is to say of what was read, such as files that are no pictures.
    pub notes: Vec<String>,
}

/// A sample that was left out.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    pub name: String,
    pub reason: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skipped {}: {}", self.name, self.reason)
    }
}

/// The sets of one run. All have the same `shape` and the same `classes`.
pub struct Splits {
    pub train: Dataset,
    pub validation: Option<Dataset>,
    pub test: Option<Dataset>,
}

impl Targets {
    /// What targets are, for messages.
    fn kind(&self) -> &'static str {
        match self {
            Targets::Classes(_) => "classes",
            Targets::Values(_) => "numbers",
            Targets::MultiLabel(_) => "several labels each",
            Targets::Images { .. } => "images",
            Targets::Masks(_) => "masks",
            Targets::Unknown => "unknown",
        }
    }
}

impl Dataset {
    /// How many samples there are.
    pub fn len(&self) -> usize {
        match &self.samples {
            Samples::Resident(xs) => xs.size().first().map_or(0, |&n| n as usize),
            Samples::Files(files) => files.samples(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The name of sample `index`; None where samples have none.
    pub fn name(&self, index: usize) -> Option<String> {
        match &self.samples {
            Samples::Files(files) if files.per_image() > 1 => {
                let (file, patch) = (index / files.per_image(), index % files.per_image());
                self.names.get(file).map(|name| format!("{name}#{}", patch + 1))
            }
            _ => self.names.get(index).cloned(),
        }
    }

    /// What was left out so far in the order of its discovery: at the start, and since then by whatever reads
    /// the files.
    pub fn left_out(&self) -> Vec<Skipped> {
        let mut all = self.skipped.clone();
        if let Samples::Files(files) = &self.samples {
            let damaged = files.damaged();
            all.extend(damaged.found.iter().map(|index| Skipped {
                name: self.names.get(*index).cloned().unwrap_or_default(),
                reason: damaged.reasons[index].clone(),
            }));
        }
        all
    }

    /// How many samples each class has, in the order of [`classes`](Self::classes); empty where targets are
    /// no classes.
    pub fn class_counts(&self) -> Vec<usize> {
        if let Targets::MultiLabel(ys) = &self.targets {
            // A sum of zeros and ones is a count below 2^53.
            let sums = ys.f_sum_dim_intlist(0, false, Kind::Double).and_then(Vec::<f64>::try_from);
            return sums.unwrap_or_default().into_iter().map(|sum| sum as usize).collect();
        }
        let Targets::Classes(labels) = &self.targets else { return Vec::new() };
        let mut counts = vec![0; self.classes.len()];
        for &label in labels {
            if let Some(count) = counts.get_mut(label as usize) {
                *count += 1;
            }
        }
        counts
    }

    /// Whether samples are images `[C, H, W]`.
    fn is_images(&self) -> bool {
        self.shape.len() == 3
    }

    /// Passes resident images through the filter; files are smoothed when they are decoded.
    fn smooth(&mut self, filter: Option<SmoothSpec>) -> Result<()> {
        match (&mut self.samples, filter) {
            (Samples::Resident(xs), Some(filter)) => {
                if xs.dim() != 4 {
                    return Err(fail(
                        ExitCode::Data,
                        "smooth is for images, the samples are rows of a table; remove it",
                    ));
                }
                *xs = filter.tensor(xs)?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Brings the class indices to those of the training set, by name, and checks that both sets are of one
    /// kind.
    fn align(&mut self, train: &Dataset, part: Split) -> Result<()> {
        let refuse = |message: String| Err(fail(ExitCode::Data, message));
        let is_image = self.is_images() && train.is_images() && self.shape[0] == train.shape[0];
        if self.shape != train.shape && !(is_image && (self.shape[1] == 0 || train.shape[1] == 0)) {
            return refuse(format!(
                "samples are {:?} in the training set and {:?} in the {part}",
                train.shape, self.shape
            ));
        }
        if self.features != train.features && !self.features.is_empty() && !train.features.is_empty() {
            let (mine, theirs) = (self.features.join(", "), train.features.join(", "));
            return refuse(format!(
                "the columns are {theirs} in the training set and {mine} in the {part}; declare `features` in one order"
            ));
        }
        match (&mut self.targets, &train.targets) {
            (Targets::Classes(_), Targets::Classes(_)) | (Targets::MultiLabel(_), Targets::MultiLabel(_)) => {
                self.align_classes(&train.classes, part)
            }
            (Targets::Values(mine), Targets::Values(theirs)) if mine.size()[1..] == theirs.size()[1..] => {
                Ok(())
            }
            (Targets::Values(mine), Targets::Values(theirs)) => {
                let (mine, theirs) = (&mine.size()[1..], &theirs.size()[1..]);
                refuse(format!("targets are {theirs:?} in the training set and {mine:?} in the {part}"))
            }
            (Targets::Unknown, Targets::Unknown) => Ok(()),
            (
                Targets::Images { channels: mine, scale: own },
                Targets::Images { channels: theirs, scale: other },
            ) if mine == theirs && own == other => Ok(()),
            (Targets::Masks(_), Targets::Masks(_)) if self.classes == train.classes => Ok(()),
            (mine, theirs) if mine.kind() != theirs.kind() => refuse(format!(
                "targets are {} in the training set and {} in the {part}",
                theirs.kind(),
                mine.kind()
            )),
            _ => {
                refuse(format!("targets differ between the training set and the {part}: declare both alike"))
            }
        }
    }

    /// Brings the class indices to those of `classes`, by name; sets without classes are left as they are.
    pub(crate) fn align_classes(&mut self, classes: &[String], part: Split) -> Result<()> {
        if !matches!(self.targets, Targets::Classes(_) | Targets::MultiLabel(_)) || self.classes == classes {
            return Ok(());
        }
        let mut index = Vec::with_capacity(self.classes.len());
        for (name, count) in self.classes.iter().zip(self.class_counts()) {
            let found = classes.iter().position(|known| known == name);
            if found.is_none() && count > 0 {
                let message = format!("class `{name}` of the {part} is not among those of the training set");
                return Err(fail(ExitCode::Data, message));
            }
            index.push(found.map(|class| class as i64));
        }
        match &mut self.targets {
            Targets::Classes(labels) => {
                labels.iter_mut().for_each(|label| *label = index[*label as usize].unwrap_or_default());
            }
            Targets::MultiLabel(ys) => {
                let aligned =
                    Tensor::f_zeros([ys.size()[0], classes.len() as i64], (Kind::Float, ys.device()))?;
                for (from, to) in (0..).zip(&index) {
                    if let Some(to) = to {
                        aligned.f_select(1, *to)?.f_copy_(&ys.f_select(1, from)?)?;
                    }
                }
                *ys = aligned;
            }
            _ => {}
        }
        self.classes = classes.to_vec();
        Ok(())
    }
}
