//! Colours taken away at random: torchvision's `RandomGrayscale`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::levels::luma;
use super::values::{chance, probability, tenth};
use super::{Augmentation, ChangesLevels, Levels, image_sides};
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Replaces the colours by their luma, in all three channels, with probability `p`.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Grayscale {
    /// Probability.
    #[serde(default = "tenth")]
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
}

impl Augmentation for Grayscale {
    fn validate(&self) -> Result<(), Invalid> {
        probability("p", self.p)
    }

    fn output_shape(&self, input: &[i64]) -> Result<Vec<i64>, String> {
        image_sides(input)?;
        match input[0] {
            3 => Ok(input.to_vec()),
            _ => Err("only RGB images have colours to lose; remove it".into()),
        }
    }

    fn num_params(&self) -> usize {
        1
    }

    /// Whether it happens.
    fn sample(&self, _: [usize; 2], rng: &mut CounterRng, params: &mut Vec<f64>) {
        params.push(chance(self.p, rng));
    }
}

impl ChangesLevels for Grayscale {
    fn apply(&self, levels: &mut Levels, params: &[f64]) {
        if params[0] > 0.5
            && let Some([red, green, blue]) = levels.rgb()
        {
            for ((red, green), blue) in red.iter_mut().zip(green).zip(blue) {
                let grey = luma(*red, *green, *blue) as u8;
                (*red, *green, *blue) = (grey, grey, grey);
            }
        }
    }
}
