//! Sharper or softer images: torchvision's `RandomAdjustSharpness`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{chance, half, probability};
use super::{Augmentation, ChangesLevels, Levels};
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Goes from a smoothed image (factor 0) over the image itself (1) to a sharper one (2 and more), with
/// probability `p`. The outermost pixels stay as they are.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdjustSharpness {
    /// How sharp, 0 or more.
    #[schemars(range(min = 0))]
    pub sharpness_factor: f64,
    /// Probability.
    #[serde(default = "half")]
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
}

impl Augmentation for AdjustSharpness {
    fn validate(&self) -> Result<(), Invalid> {
        if !(self.sharpness_factor >= 0.0 && self.sharpness_factor.is_finite()) {
            let message = format!("{} is out of range: at least 0", self.sharpness_factor);
            return Err(Invalid::new("sharpness_factor", message));
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

impl ChangesLevels for AdjustSharpness {
    fn apply(&self, levels: &mut Levels, params: &[f64]) {
        if params[0] > 0.5 {
            adjust_sharpness(levels, self.sharpness_factor);
        }
    }
}

/// Blends with the mean of 3 × 3 pixels in which the middle one counts five times.
pub(super) fn adjust_sharpness(levels: &mut Levels, factor: f64) {
    let [height, width] = [levels.height, levels.width];
    if height < 3 || width < 3 {
        return;
    }
    let rest = (1.0 - factor) as f32;
    for plane in levels.planes() {
        let before = plane.to_vec();
        for y in 1..height - 1 {
            let rows = [0, 1, 2].map(|row| &before[(y + row - 1) * width..][..width]);
            let out = &mut plane[y * width + 1..][..width - 2];
            for (x, out) in out.iter_mut().enumerate() {
                let sum: u32 =
                    rows.iter().flat_map(|row| &row[x..x + 3]).map(|&level| u32::from(level)).sum();
                let level = f32::from(*out);
                let smooth = ((sum + 4 * u32::from(*out)) as f32 / 13.0).round_ties_even();
                *out = (level + rest * (smooth - level)).clamp(0.0, 255.0) as u8;
            }
        }
    }
}
