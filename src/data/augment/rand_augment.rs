//! RandAugment: Cubuk et al. 2020, "RandAugment: Practical automated data augmentation with a reduced search
//! space"; torchvision's `RandAugment`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::operations::{Magnitudes, Operation, SPACE, check_channels, linspace, sampled};
use super::values::{chance, is_one, one, probability};
use super::warp::Interpolation;
use super::{Augmentation, ChangesLevels, Levels, image_sides};
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// `num_ops` of fourteen operations one after the other, drawn for each image, all of one magnitude. Masks move
/// with the image.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RandAugment {
    /// Operations on each image.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 64))]
    pub num_ops: usize,
    /// How strong they are: a number below `num_magnitude_bins`.
    #[serde(default = "nine")]
    pub magnitude: usize,
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

fn two() -> usize {
    2
}

fn nine() -> usize {
    9
}

pub(super) fn thirty_one() -> usize {
    31
}

/// The largest magnitudes.
fn magnitudes([height, width]: [usize; 2]) -> Magnitudes {
    let shift = |side: usize| 150.0 / 331.0 * side as f64;
    Magnitudes { shear: 0.3, shift: [shift(width), shift(height)], rotate: 30.0, colour: 0.9, posterize: 4.0 }
}

impl Augmentation for RandAugment {
    fn validate(&self) -> Result<(), Invalid> {
        if !(1..=64).contains(&self.num_ops) {
            return Err(Invalid::new("num_ops", format!("{} is out of range: 1 to 64", self.num_ops)));
        }
        if self.num_magnitude_bins < 2 {
            return Err(Invalid::new("num_magnitude_bins", "must be 2 or more"));
        }
        if self.magnitude >= self.num_magnitude_bins {
            let most = self.num_magnitude_bins - 1;
            let message =
                format!("{} is out of range: 0 to {most}, below `num_magnitude_bins`", self.magnitude);
            return Err(Invalid::new("magnitude", message));
        }
        probability("p", self.p)
    }

    fn output_shape(&self, input: &[i64]) -> Result<Vec<i64>, String> {
        image_sides(input)?;
        check_channels(input)
    }

    fn num_params(&self) -> usize {
        1 + 2 * self.num_ops
    }

    /// Whether it happens, then the number of each operation and its magnitude.
    fn sample(&self, sides: [usize; 2], rng: &mut CounterRng, params: &mut Vec<f64>) {
        params.push(chance(self.p, rng));
        let magnitudes = magnitudes(sides);
        for _ in 0..self.num_ops {
            let operation = rng.below(SPACE.len() as u64) as usize;
            let place = linspace(self.magnitude, self.num_magnitude_bins);
            params.extend([operation as f64, sampled(SPACE[operation], &magnitudes, place, rng)]);
        }
    }
}

impl ChangesLevels for RandAugment {
    fn apply(&self, levels: &mut Levels, params: &[f64]) {
        if params[0] < 0.5 {
            return;
        }
        for &[operation, magnitude] in params[1..].as_chunks::<2>().0 {
            Operation::numbered(operation).apply(levels, magnitude, self.interpolation, self.fill);
        }
    }
}
