//! Mirror images: torchvision's `RandomHorizontalFlip` and `RandomVerticalFlip`.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::values::probability;
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Each axis that is named is flipped with probability `p`, independently of the other.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Flip {
    #[serde(default)]
    pub horizontal: bool,
    #[serde(default)]
    pub vertical: bool,
    #[serde(default = "half")]
    pub p: f64,
}

fn half() -> f64 {
    0.5
}

impl Flip {
    pub fn validate(&self) -> Result<(), Invalid> {
        if !(self.horizontal || self.vertical) {
            return Err(Invalid::new("", "flips nothing; say `horizontal: true` or `vertical: true`"));
        }
        probability("p", self.p)
    }

    /// 1 or 0 for left to right, 1 or 0 for top to bottom.
    pub fn draw(&self, draw: &mut CounterRng) -> [f64; 2] {
        // Both are drawn whatever is asked for, so that adding one axis leaves the other's draws alone.
        let (horizontal, vertical) = (draw.uniform() < self.p, draw.uniform() < self.p);
        [f64::from(horizontal && self.horizontal), f64::from(vertical && self.vertical)]
    }

    /// `xs` `[B, C, H, W]`, `params` `[B, 2]`.
    pub fn apply(&self, xs: &Tensor, params: &Tensor) -> Tensor {
        let mut xs = xs.shallow_clone();
        for (column, axis, wanted) in [(0, 3, self.horizontal), (1, 2, self.vertical)] {
            if wanted {
                let flipped = params.select(1, column).gt(0.5).view([-1, 1, 1, 1]);
                xs = xs.flip([axis]).where_self(&flipped, &xs);
            }
        }
        xs
    }
}
