//! Mirror images: torchvision's `RandomHorizontalFlip` and `RandomVerticalFlip`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{half, probability};
use super::{Augmentation, MovesPixels, PixelMap};
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Each axis that is named is flipped with probability `p`, independently of the other.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Flip {
    /// Flip left to right.
    #[serde(default)]
    pub horizontal: bool,
    /// Flip top to bottom.
    #[serde(default)]
    pub vertical: bool,
    /// Probability of each flip.
    #[serde(default = "half")]
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
}

impl Augmentation for Flip {
    fn validate(&self) -> Result<(), Invalid> {
        if !(self.horizontal || self.vertical) {
            return Err(Invalid::new("", "flips nothing; say `horizontal: true` or `vertical: true`"));
        }
        probability("p", self.p)
    }

    fn num_params(&self) -> usize {
        2
    }

    /// 1 or 0 for left to right, 1 or 0 for top to bottom.
    fn sample(&self, _: [usize; 2], rng: &mut CounterRng, params: &mut Vec<f64>) {
        // Both are drawn in any case, so that adding one axis leaves the other's draws alone.
        let (horizontal, vertical) = (rng.uniform() < self.p, rng.uniform() < self.p);
        params.extend([f64::from(horizontal && self.horizontal), f64::from(vertical && self.vertical)]);
    }
}

impl MovesPixels for Flip {
    fn move_pixels(&self, map: &mut PixelMap, params: &[f64]) {
        if params[0] > 0.5 {
            map.flip_horizontal();
        }
        if params[1] > 0.5 {
            map.flip_vertical();
        }
    }
}
