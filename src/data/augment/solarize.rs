//! Bright pixels turned into their negative: torchvision's `RandomSolarize`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{chance, half, probability};
use super::{Augmentation, ChangesLevels, Levels};
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Inverts every level of at least `threshold`, with probability `p`.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Solarize {
    /// The first level that is inverted, from 0 to 255.
    #[schemars(range(min = 0, max = 255))]
    pub threshold: f64,
    /// Probability.
    #[serde(default = "half")]
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
}

impl Augmentation for Solarize {
    fn validate(&self) -> Result<(), Invalid> {
        if !(0.0..=255.0).contains(&self.threshold) {
            let message = format!("{} is no level: give a number from 0 to 255", self.threshold);
            return Err(Invalid::new("threshold", message));
        }
        probability("p", self.p)
    }

    fn num_params(&self) -> usize {
        1
    }

    /// Whether it happens.
    fn sample(&self, _: [usize; 2], rng: &mut CounterRng, params: &mut Vec<f64>) {
        params.push(chance(self.p, rng));
    }
}

impl ChangesLevels for Solarize {
    fn apply(&self, levels: &mut Levels, params: &[f64]) {
        if params[0] > 0.5 {
            solarize(levels, self.threshold as f32);
        }
    }
}

pub(super) fn solarize(levels: &mut Levels, threshold: f32) {
    levels.look_up(&std::array::from_fn(|level| {
        let level = level as u8;
        if f32::from(level) >= threshold { 255 - level } else { level }
    }));
}
