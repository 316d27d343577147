//! TrivialAugment: Müller and Hutter 2021, "TrivialAugment: Tuning-free yet state-of-the-art data
//! augmentation"; torchvision's `TrivialAugmentWide`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::operations::{Magnitudes, Operation, SPACE, check_channels, linspace, sampled};
use super::rand_augment::thirty_one;
use super::values::{chance, is_one, one, probability};
use super::warp::Interpolation;
use super::{Augmentation, ChangesLevels, Levels, image_sides};
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// One of fourteen operations, drawn for each image, of a random magnitude from a wide range. Masks move with
/// the image.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrivialAugmentWide {
    /// Number of magnitudes there are.
    #[serde(default = "thirty_one")]
    #[schemars(range(min = 2))]
    pub num_magnitude_bins: usize,
    #[serde(default)]
    pub interpolation: Interpolation,
    /// The grey level of what comes into view; ignored in masks.
    #[serde(default)]
    pub fill: u8,
    /// Probability.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
}

/// The largest magnitudes.
const MAGNITUDES: Magnitudes =
    Magnitudes { shear: 0.99, shift: [32.0, 32.0], rotate: 135.0, colour: 0.99, posterize: 6.0 };

impl Augmentation for TrivialAugmentWide {
    fn validate(&self) -> Result<(), Invalid> {
        if self.num_magnitude_bins < 2 {
            return Err(Invalid::new("num_magnitude_bins", "must be 2 or more"));
        }
        probability("p", self.p)
    }

    fn output_shape(&self, input: &[i64]) -> Result<Vec<i64>, String> {
        image_sides(input)?;
        check_channels(input)
    }

    fn num_params(&self) -> usize {
        3
    }

    /// Whether it happens, the number of the operation and its magnitude.
    fn sample(&self, _: [usize; 2], rng: &mut CounterRng, params: &mut Vec<f64>) {
        params.push(chance(self.p, rng));
        let operation = rng.below(SPACE.len() as u64) as usize;
        let bin = rng.below(self.num_magnitude_bins as u64) as usize;
        let place = linspace(bin, self.num_magnitude_bins);
        params.extend([operation as f64, sampled(SPACE[operation], &MAGNITUDES, place, rng)]);
    }
}

impl ChangesLevels for TrivialAugmentWide {
    fn apply(&self, levels: &mut Levels, params: &[f64]) {
        if params[0] > 0.5 {
            Operation::numbered(params[1]).apply(levels, params[2], self.interpolation, self.fill);
        }
    }
}
