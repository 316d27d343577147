//! Augmentation: random changes to training samples, each a pure function of (seed, epoch, sample).
//!
//! The list is applied in its order, in three stages: changes to pixels, in the units of the picture; then,
//! after normalisation, `noise` and `cutout`; then mixtures of samples, of which each batch gets one.

mod color;
mod crop;
mod cutout;
mod dihedral;
mod flip;
mod mix;
mod noise;
mod pipeline;
mod resized;
mod rotation;
mod values;

use serde::{Deserialize, Serialize};

pub use color::ColorJitter;
pub use crop::{Crop, PaddingMode};
pub use cutout::Cutout;
pub use dihedral::Dihedral;
pub use flip::Flip;
pub use mix::{Cutmix, Mixup};
pub use noise::Noise;
pub use pipeline::{Pipeline, Pixels, soft};
pub use resized::RandomResizedCrop;
pub use rotation::Rotation;

use crate::util::yaml::Invalid;

/// One step of the augmentation.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Augment {
    Flip(Flip),
    Crop(Crop),
    Dihedral(Dihedral),
    RandomResizedCrop(RandomResizedCrop),
    Rotation(Rotation),
    ColorJitter(ColorJitter),
    Noise(Noise),
    Cutout(Cutout),
    Mixup(Mixup),
    Cutmix(Cutmix),
}

/// When a step takes place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Pixels,
    Normalized,
    Mixture,
}

impl Augment {
    /// Checks the values of this step.
    pub fn validate(&self) -> Result<(), Invalid> {
        match self {
            Augment::Flip(step) => step.validate(),
            Augment::Crop(step) => step.validate(),
            Augment::Dihedral(_) => Ok(()),
            Augment::RandomResizedCrop(step) => step.validate(),
            Augment::Rotation(step) => step.validate(),
            Augment::ColorJitter(step) => step.validate(),
            Augment::Noise(step) => step.validate(),
            Augment::Cutout(step) => step.validate(),
            Augment::Mixup(step) => step.validate(),
            Augment::Cutmix(step) => step.validate(),
        }
        .map_err(|invalid| invalid.under(self.name()))
    }

    /// The key of the step in YAML.
    pub fn name(&self) -> &'static str {
        match self {
            Augment::Flip(_) => "flip",
            Augment::Crop(_) => "crop",
            Augment::Dihedral(_) => "dihedral",
            Augment::RandomResizedCrop(_) => "random_resized_crop",
            Augment::Rotation(_) => "rotation",
            Augment::ColorJitter(_) => "color_jitter",
            Augment::Noise(_) => "noise",
            Augment::Cutout(_) => "cutout",
            Augment::Mixup(_) => "mixup",
            Augment::Cutmix(_) => "cutmix",
        }
    }

    pub fn stage(&self) -> Stage {
        match self {
            Augment::Flip(_)
            | Augment::Crop(_)
            | Augment::Dihedral(_)
            | Augment::RandomResizedCrop(_)
            | Augment::Rotation(_)
            | Augment::ColorJitter(_) => Stage::Pixels,
            Augment::Noise(_) | Augment::Cutout(_) => Stage::Normalized,
            Augment::Mixup(_) | Augment::Cutmix(_) => Stage::Mixture,
        }
    }

    /// Whether the step crops the image as it was before it was resized, so that the files must be kept.
    pub fn needs_original(&self) -> bool {
        matches!(self, Augment::RandomResizedCrop(_))
    }

    /// Whether the step works on tables too, not only on pictures.
    fn works_on_tables(&self) -> bool {
        matches!(self, Augment::Noise(_) | Augment::Mixup(_))
    }
}

/// Checks every step and their order. Paths are relative to the list: `1.crop.size`.
pub fn validate(steps: &[Augment]) -> Result<(), Invalid> {
    for (index, step) in steps.iter().enumerate() {
        step.validate().map_err(|invalid| invalid.under(index))?;
        if let Some(earlier) = steps[..index].iter().find(|earlier| earlier.stage() > step.stage()) {
            let message = format!(
                "`{}` comes after `{}`, which works on what it makes; put it before",
                step.name(),
                earlier.name()
            );
            return Err(Invalid::new(index.to_string(), message));
        }
    }
    Ok(())
}
