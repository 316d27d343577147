//! Augmentation: random changes to training samples, each a pure function of (seed, epoch, sample).
//!
//! The list of a config is applied in its order, in three phases: changes to pixels; then, after
//! normalisation, `noise`, `cutout` and `random_erasing`; then mixtures of samples, of which each batch gets
//! one. What computes 8-bit levels, and moves before it, is done on the loader's threads. A new augmentation
//! is one file, with its spec, and one row of the table below, which says how it changes a batch, and whether
//! it is geometric: an image or a mask that is the target moves with the picture.

mod adjust_sharpness;
mod affine;
mod autocontrast;
mod color_jitter;
mod crop;
mod cutmix;
mod cutout;
mod dihedral;
mod equalize;
mod flip;
mod gaussian_blur;
mod grayscale;
mod invert;
mod jpeg;
mod levels;
mod mixing;
mod mixup;
mod noise;
mod operations;
mod perspective;
mod pipeline;
mod pixel_map;
mod posterize;
mod rand_augment;
mod random_erasing;
mod random_resized_crop;
mod rotation;
mod solarize;
mod trivial_augment_wide;
mod values;
mod warp;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

pub use levels::{Levels, OwnTarget};
pub use mixing::soft;
pub use noise::normals;
pub use pipeline::{Erased, Fill, Params, Pipeline, Pixels};
pub(super) use pixel_map::{PixelMap, fill_level};

use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// What every augmentation says about itself.
pub(crate) trait Augmentation {
    /// Refuses values out of range; paths are relative to the augmentation.
    fn validate(&self) -> Result<(), Invalid> {
        Ok(())
    }

    /// The shape of a sample after it, `[C, H, W]` or `[F]` like `input`. The error says why it does not suit
    /// such samples, the remedy last. As it is here, it takes images and keeps their shape.
    fn output_shape(&self, input: &[i64]) -> Result<Vec<i64>, String> {
        image_sides(input)?;
        Ok(input.to_vec())
    }

    /// How many random parameters a sample has; mixtures draw for the whole batch and have none.
    fn num_params(&self) -> usize;

    /// Draws the parameters of one sample and appends them. `sides` are the height and width of its input,
    /// [0, 0] for a table.
    fn sample(&self, sides: [usize; 2], rng: &mut CounterRng, params: &mut Vec<f64>);

    /// Whether it crops the image as it was before it was resized, so that files must be kept. The decoder
    /// then cuts the rectangle of the first four parameters: top, left, height and width, in the file's
    /// pixels.
    fn crops_original(&self) -> bool {
        false
    }
}

/// How an augmentation changes a batch; the variants follow the order in which they run.
#[derive(Clone, Copy)]
pub(crate) enum Stage<'a> {
    /// Only moves pixels: masks and images that are targets move with the image.
    Moves(&'a dyn MovesPixels),
    /// Computes new 8-bit levels of one sample after the other.
    Levels(&'a dyn ChangesLevels),
    /// Computes new pixels, before normalisation: images `[B, C, H, W]` with white at 1.
    Pixels(&'a dyn ChangesValues),
    /// Blanks rectangles of normalised images, in which 0 is the mean colour.
    Erases(&'a dyn Erases),
    /// Computes new values after normalisation: `[B, ...]`.
    Normalized(&'a dyn ChangesValues),
    /// Mixes the samples of a batch and their targets.
    Mixes(&'a dyn Mixes),
}

/// An augmentation that only moves pixels. `params` are those of one sample.
pub(crate) trait MovesPixels {
    fn move_pixels(&self, map: &mut PixelMap, params: &[f64]);
}

/// An augmentation that computes new levels of one sample. `params` are its own.
pub(crate) trait ChangesLevels {
    fn apply(&self, levels: &mut Levels, params: &[f64]);
}

/// An augmentation that computes new values with operations of libtorch.
pub(crate) trait ChangesValues {
    /// `xs` floating point, on any device; the result has its kind.
    fn apply(&self, xs: &Tensor, params: &Params) -> Tensor;

    /// The masks `[B, 1, H, W]` of the samples, classes / 255, moved as [`apply`](Self::apply) moves the
    /// images; as they are where it moves nothing.
    fn apply_to_masks(&self, masks: &Tensor, _: &Params) -> Tensor {
        masks.shallow_clone()
    }
}

/// An augmentation that blanks a rectangle in every channel of the image.
pub(crate) trait Erases {
    fn erased(&self, params: &[f64]) -> Erased;
}

/// An augmentation that mixes samples.
pub(crate) trait Mixes {
    /// `xs` `[B, ...]` and `ys` `[B, K]`, both floating point. Everything random is drawn once per batch.
    fn mix(&self, xs: &Tensor, ys: &Tensor, rng: &mut CounterRng) -> (Tensor, Tensor);

    /// When batches are mixed.
    fn when(&self) -> MixWhen;
}

/// When a mixture is used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MixWhen {
    /// Share of the batches whose turn it is that are mixed.
    pub p: f64,
    /// From this epoch on, of which the first is 1, nothing is mixed.
    pub off_epoch: Option<u64>,
}

macro_rules! last {
    ($geometric:ident $name:literal) => {
        $name
    };
}

macro_rules! augmentations {
    ($($name:literal => $variant:ident($spec:ty): $stage:ident $($geometric:ident)?,)*) => {
        /// One step of the augmentation.
        #[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
        pub enum Augment {
            $(#[serde(rename = $name)] $variant($spec),)*
        }

        impl Augment {
            /// The names in YAML.
            pub const NAMES: &[&str] = &[$($name),*];

            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)*
                }
            }

            fn augmentation(&self) -> &dyn Augmentation {
                match self {
                    $(Self::$variant(spec) => spec,)*
                }
            }

            pub(crate) fn stage(&self) -> Stage<'_> {
                match self {
                    $(Self::$variant(spec) => Stage::$stage(spec),)*
                }
            }
        }

        /// The names of those that move pixels, so that a target that is an image or a mask moves with them.
        const GEOMETRIC: &[&str] = &[$($(last!($geometric $name),)?)*];
    };
}

augmentations! {
    "flip" => Flip(flip::Flip): Moves geometric,
    "crop" => Crop(crop::Crop): Moves geometric,
    "dihedral" => Dihedral(dihedral::Dihedral): Moves geometric,
    "random_resized_crop" => RandomResizedCrop(random_resized_crop::RandomResizedCrop): Pixels geometric,
    "rotation" => Rotation(rotation::Rotation): Pixels geometric,
    "affine" => Affine(affine::Affine): Levels geometric,
    "perspective" => Perspective(perspective::Perspective): Levels geometric,
    "color_jitter" => ColorJitter(color_jitter::ColorJitter): Pixels,
    "grayscale" => Grayscale(grayscale::Grayscale): Levels,
    "gaussian_blur" => GaussianBlur(gaussian_blur::GaussianBlur): Levels,
    "adjust_sharpness" => AdjustSharpness(adjust_sharpness::AdjustSharpness): Levels,
    "autocontrast" => Autocontrast(autocontrast::Autocontrast): Levels,
    "equalize" => Equalize(equalize::Equalize): Levels,
    "invert" => Invert(invert::Invert): Levels,
    "solarize" => Solarize(solarize::Solarize): Levels,
    "posterize" => Posterize(posterize::Posterize): Levels,
    "jpeg" => Jpeg(jpeg::Jpeg): Levels,
    "rand_augment" => RandAugment(rand_augment::RandAugment): Levels,
    "trivial_augment_wide" => TrivialAugmentWide(trivial_augment_wide::TrivialAugmentWide): Levels,
    "noise" => Noise(noise::Noise): Normalized,
    "cutout" => Cutout(cutout::Cutout): Erases,
    "random_erasing" => RandomErasing(random_erasing::RandomErasing): Erases,
    "mixup" => Mixup(mixup::Mixup): Mixes,
    "cutmix" => Cutmix(cutmix::Cutmix): Mixes,
}

impl Augment {
    /// Whether the files must be kept, see [`Augmentation::crops_original`].
    pub(super) fn crops_original(&self) -> bool {
        self.augmentation().crops_original()
    }

    /// Whether it moves pixels, so that targets that are images move with them.
    fn is_geometric(&self) -> bool {
        GEOMETRIC.contains(&self.name())
    }

    /// Whether it works on 8-bit levels.
    pub(super) fn takes_levels(&self) -> bool {
        matches!(self.stage(), Stage::Levels(_))
    }

    fn validate(&self) -> Result<(), Invalid> {
        self.augmentation().validate().map_err(|invalid| invalid.under(self.name()))
    }
}

impl Stage<'_> {
    /// Pixels, normalised samples, mixtures: a list must be in this order.
    fn phase(self) -> u8 {
        match self {
            Stage::Moves(_) | Stage::Levels(_) | Stage::Pixels(_) => 0,
            Stage::Erases(_) | Stage::Normalized(_) => 1,
            Stage::Mixes(_) => 2,
        }
    }
}

/// Checks every step and their order. Paths are relative to the list: `1.crop.size`.
pub fn validate(steps: &[Augment]) -> Result<(), Invalid> {
    for (index, step) in steps.iter().enumerate() {
        step.validate().map_err(|invalid| invalid.under(index))?;
        let phase = step.stage().phase();
        if let Some(earlier) = steps[..index].iter().find(|earlier| earlier.stage().phase() > phase) {
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

/// Refuses augmentations that do not go with targets that samples carry: what changes an image otherwise than
/// by moving pixels leaves a mask right, but not an image.
pub(super) fn check_own_targets(steps: &[Augment], target: OwnTarget) -> Result<(), String> {
    let goes = |step: &Augment| match (target, step.stage()) {
        (OwnTarget::None, _) => true,
        (_, Stage::Mixes(_)) => false,
        (OwnTarget::Mask, _) => true,
        (OwnTarget::Image(_), _) => step.is_geometric(),
    };
    let Some(step) = steps.iter().find(|step| !goes(step)) else { return Ok(()) };
    let (name, what) = (step.name(), if target == OwnTarget::Mask { "masks" } else { "images" });
    let remedy = match (target, GEOMETRIC) {
        (OwnTarget::Image(_), [names @ .., last]) => format!("{} and {last} do", names.join(", ")),
        _ => "remove it".to_owned(),
    };
    Err(format!("augment: `{name}` does not go with targets that are {what}; {remedy}"))
}

/// Height and width of an image `[C, H, W]`; the error refuses a table.
fn image_sides(shape: &[i64]) -> Result<[usize; 2], String> {
    match *shape {
        [_, height, width] => Ok([height as usize, width as usize]),
        _ => Err("this step works on pictures only; remove it".into()),
    }
}

/// `image` `[C, H, W]` with other sides.
fn with_sides(image: &[i64], sides: [usize; 2]) -> Vec<i64> {
    let mut shape = image.to_vec();
    if let [_, height, width] = shape.as_mut_slice() {
        [*height, *width] = sides.map(|side| side as i64);
    }
    shape
}
