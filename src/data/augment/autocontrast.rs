//! Contrast stretched to the full range: torchvision's `RandomAutocontrast`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{chance, half, probability};
use super::{Augmentation, ChangesLevels, Levels};
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Stretches each channel so that its darkest pixel is black and its brightest white, with probability `p`.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Autocontrast {
    /// Probability.
    #[serde(default = "half")]
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
}

impl Augmentation for Autocontrast {
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

impl ChangesLevels for Autocontrast {
    fn apply(&self, levels: &mut Levels, params: &[f64]) {
        if params[0] > 0.5 {
            autocontrast(levels);
        }
    }
}

pub(super) fn autocontrast(levels: &mut Levels) {
    for plane in levels.planes() {
        let (least, most) =
            plane.iter().fold((255, 0), |(least, most), &level| (level.min(least), level.max(most)));
        if least >= most {
            continue;
        }
        let unit = f32::from(most - least) * (1.0f64 / 255.0) as f32;
        for level in plane {
            *level = (f32::from(*level - least) / unit).clamp(0.0, 255.0) as u8;
        }
    }
}
