//! Cutout: DeVries and Taylor 2017, "Improved regularization of convolutional neural networks with cutout".

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{Size, one, probability};
use super::{Augmentation, Erased, Erases, Fill};
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Blanks a square whose centre is anywhere in the picture, with probability `p`. It works on normalised
/// pictures, so that the blank is the mean colour, as in the paper; the square is cut off at the border.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cutout {
    /// The side of the square in pixels, or [height, width].
    pub size: Size,
    /// Probability.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
}

impl Augmentation for Cutout {
    fn validate(&self) -> Result<(), Invalid> {
        self.size.validate("size")?;
        probability("p", self.p)
    }

    fn num_params(&self) -> usize {
        4
    }

    /// First and last + 1 of the rows, then of the columns; an empty rectangle where nothing is blanked.
    fn sample(&self, sides: [usize; 2], rng: &mut CounterRng, params: &mut Vec<f64>) {
        let blank = rng.uniform() < self.p;
        for (side, cut) in sides.into_iter().zip(self.size.sides()) {
            let centre = rng.below(side as u64) as usize;
            let first = centre.saturating_sub(cut / 2);
            let end = (centre + cut - cut / 2).min(side);
            params.extend(if blank { [first as f64, end as f64] } else { [0.0, 0.0] });
        }
    }
}

impl Erases for Cutout {
    fn erased(&self, params: &[f64]) -> Erased {
        let rectangle = [params[0], params[1], params[2], params[3]].map(|edge| edge as usize);
        Erased { rectangle, fill: Fill::Value(0.0) }
    }
}
