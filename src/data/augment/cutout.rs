//! Cutout: DeVries and Taylor 2017, "Improved regularization of convolutional neural networks with cutout".

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::values::{Size, probability};
use crate::libtorch::memory::Number;
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Blanks a square whose centre is anywhere in the picture, with probability `p`. It works on normalised
/// pictures, so that the blank is the mean colour, as in the paper; the square is cut off at the border.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Cutout {
    /// The side of the square in pixels, or [height, width].
    pub size: Size,
    #[serde(default = "one")]
    pub p: f64,
}

fn one() -> f64 {
    1.0
}

impl Cutout {
    pub fn validate(&self) -> Result<(), Invalid> {
        self.size.validate("size")?;
        probability("p", self.p)
    }

    /// First and last + 1 of the rows, then of the columns; an empty rectangle where nothing is blanked.
    pub fn draw(&self, sides: [usize; 2], draw: &mut CounterRng) -> [f64; 4] {
        let blank = draw.uniform() < self.p;
        let mut rectangle = [0.0; 4];
        for (axis, (side, cut)) in sides.into_iter().zip(self.size.sides()).enumerate() {
            let centre = draw.below(side as u64) as usize;
            let first = centre.saturating_sub(cut / 2);
            let end = (centre + cut - cut / 2).min(side);
            if blank {
                rectangle[2 * axis] = first as f64;
                rectangle[2 * axis + 1] = end as f64;
            }
        }
        rectangle
    }

    /// `xs` `[B, C, H, W]`, `params` `[B, 4]`.
    pub fn apply(&self, xs: &Tensor, params: &Tensor) -> Tensor {
        let size = xs.size();
        let within = |column: i64, len: i64| {
            let at = Tensor::arange(len, (Kind::Double, xs.device())).view([1, len]);
            let first = params.narrow(1, column, 1).to_kind(Kind::Double);
            let end = params.narrow(1, column + 1, 1).to_kind(Kind::Double);
            at.ge_tensor(&first).logical_and(&at.lt_tensor(&end))
        };
        let rows = within(0, size[2]).view([-1, 1, size[2], 1]);
        let columns = within(2, size[3]).view([-1, 1, 1, size[3]]);
        xs.masked_fill(&rows.logical_and(&columns), 0.0)
    }

    /// The same for one picture of `height` × `width` planes in memory.
    pub fn blank<T: Number>(&self, planes: &mut [T], [height, width]: [usize; 2], params: &[f64]) {
        let &[top, bottom, left, right] = params else { return };
        if left >= right {
            return;
        }
        for plane in planes.chunks_exact_mut(height * width) {
            for row in plane.chunks_exact_mut(width).take(bottom as usize).skip(top as usize) {
                row[left as usize..right as usize].fill(T::ZERO);
            }
        }
    }
}
