//! Histograms made flat: torchvision's `RandomEqualize`, with the rounding of Pillow's `ImageOps.equalize`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{chance, half, probability};
use super::{Augmentation, ChangesLevels, Levels};
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Equalises the histogram of each channel, with probability `p`.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Equalize {
    /// Probability.
    #[serde(default = "half")]
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
}

impl Augmentation for Equalize {
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

impl ChangesLevels for Equalize {
    fn apply(&self, levels: &mut Levels, params: &[f64]) {
        if params[0] > 0.5 {
            equalize(levels);
        }
    }
}

pub(super) fn equalize(levels: &mut Levels) {
    for plane in levels.planes() {
        let mut histogram = [0usize; 256];
        for &level in &*plane {
            histogram[usize::from(level)] += 1;
        }
        let brightest = histogram.iter().rposition(|&count| count > 0).unwrap_or(0);
        let step = (plane.len() - histogram[brightest]) / 255;
        if step == 0 {
            continue;
        }
        let mut darker = 0;
        let table = histogram.map(|count| {
            let level = ((darker + step / 2) / step).min(255) as u8;
            darker += count;
            level
        });
        for level in plane {
            *level = table[usize::from(*level)];
        }
    }
}
