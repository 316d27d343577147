//! Fewer levels: torchvision's `RandomPosterize`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{chance, half, probability};
use super::{Augmentation, ChangesLevels, Levels};
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Keeps the `bits` highest bits of every level, with probability `p`.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Posterize {
    /// Bits that are kept, from 0 to 8.
    #[schemars(range(min = 0, max = 8))]
    pub bits: u32,
    /// Probability.
    #[serde(default = "half")]
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
}

impl Augmentation for Posterize {
    fn validate(&self) -> Result<(), Invalid> {
        if self.bits > 8 {
            return Err(Invalid::new("bits", format!("levels have 8 bits, not {}; give 0 to 8", self.bits)));
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

impl ChangesLevels for Posterize {
    fn apply(&self, levels: &mut Levels, params: &[f64]) {
        if params[0] > 0.5 {
            posterize(levels, self.bits);
        }
    }
}

pub(super) fn posterize(levels: &mut Levels, bits: u32) {
    let kept = (0xff00u32 >> bits.min(8)) as u8;
    levels.image().iter_mut().for_each(|level| *level &= kept);
}
