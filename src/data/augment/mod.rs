//! Augmentation: random changes to training samples, each a pure function of (seed, epoch, sample).
//!
//! The list of a config is applied in its order, in three phases: changes to pixels; then, after
//! normalisation, `noise` and `cutout`; then mixtures of samples, of which each batch gets one. A new
//! augmentation is one file, with its spec, and one row of the table below, which says how it changes a
//! batch.

mod color_jitter;
mod crop;
mod cutmix;
mod cutout;
mod dihedral;
mod flip;
mod mixing;
mod mixup;
mod noise;
mod pipeline;
mod pixel_map;
mod random_resized_crop;
mod rotation;
mod values;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

pub use mixing::soft;
pub use pipeline::{Params, Pipeline, Pixels};
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
    /// Computes new pixels, before normalisation: images `[B, C, H, W]` with white at 1.
    Pixels(&'a dyn ChangesValues),
    /// Sets rectangles of normalised images to 0, which is their mean colour.
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

/// An augmentation that computes new values with operations of libtorch.
pub(crate) trait ChangesValues {
    /// `xs` floating point, on any device; the result has its kind.
    fn apply(&self, xs: &Tensor, params: &Params) -> Tensor;
}

/// An augmentation that sets a rectangle to 0 in every channel.
pub(crate) trait Erases {
    /// First and last + 1 of the rows, then of the columns; empty where nothing is erased.
    fn rectangle(&self, params: &[f64]) -> [usize; 4];
}

/// An augmentation that mixes samples.
pub(crate) trait Mixes {
    /// `xs` `[B, ...]` and `ys` `[B, K]`, both floating point. Everything random is drawn once per batch.
    fn mix(&self, xs: &Tensor, ys: &Tensor, rng: &mut CounterRng) -> (Tensor, Tensor);
}

macro_rules! augmentations {
    ($($name:literal => $variant:ident($spec:ty): $stage:ident,)*) => {
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

        const STAGES: &[(&str, &str)] = &[$(($name, stringify!($stage))),*];
    };
}

augmentations! {
    "flip" => Flip(flip::Flip): Moves,
    "crop" => Crop(crop::Crop): Moves,
    "dihedral" => Dihedral(dihedral::Dihedral): Moves,
    "random_resized_crop" => RandomResizedCrop(random_resized_crop::RandomResizedCrop): Pixels,
    "rotation" => Rotation(rotation::Rotation): Pixels,
    "color_jitter" => ColorJitter(color_jitter::ColorJitter): Pixels,
    "noise" => Noise(noise::Noise): Normalized,
    "cutout" => Cutout(cutout::Cutout): Erases,
    "mixup" => Mixup(mixup::Mixup): Mixes,
    "cutmix" => Cutmix(cutmix::Cutmix): Mixes,
}

impl Augment {
    /// Whether the files must be kept, see [`Augmentation::crops_original`].
    pub(super) fn crops_original(&self) -> bool {
        self.augmentation().crops_original()
    }

    fn validate(&self) -> Result<(), Invalid> {
        self.augmentation().validate().map_err(|invalid| invalid.under(self.name()))
    }
}

impl Stage<'_> {
    /// Pixels, normalised samples, mixtures: a list must be in this order.
    fn phase(self) -> u8 {
        match self {
            Stage::Moves(_) | Stage::Pixels(_) => 0,
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

/// Refuses augmentations that would change a target otherwise than its image, or interpolate between the
/// classes of a mask: only those that move pixels go with such targets.
pub(super) fn check_image_targets(steps: &[Augment]) -> Result<(), String> {
    let Some(step) = steps.iter().find(|step| !matches!(step.stage(), Stage::Moves(_))) else {
        return Ok(());
    };
    let moving = STAGES.iter().filter(|(_, stage)| *stage == "Moves").map(|(name, _)| *name);
    let moving: Vec<_> = moving.collect();
    let moving = match moving.as_slice() {
        [names @ .., last] if !names.is_empty() => format!("{} and {last} do", names.join(", ")),
        names => format!("{} does", names.concat()),
    };
    let name = step.name();
    Err(format!("augment: `{name}` does not go with targets that are images; {moving}"))
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
