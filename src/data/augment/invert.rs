//! Negatives: torchvision's `RandomInvert`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{chance, half, probability};
use super::{Augmentation, ChangesLevels, Levels};
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Turns black into white and white into black, with probability `p`.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Invert {
    /// Probability.
    #[serde(default = "half")]
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
}

impl Augmentation for Invert {
    fn validate(&self) -> Result<(), Invalid> {
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

impl ChangesLevels for Invert {
    fn apply(&self, levels: &mut Levels, params: &[f64]) {
        if params[0] > 0.5 {
            invert(levels);
        }
    }
}

pub(super) fn invert(levels: &mut Levels) {
    levels.image().iter_mut().for_each(|level| *level = !*level);
}
