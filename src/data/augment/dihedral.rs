//! The eight flips and quarter turns of a square, each as likely as the others.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::util::rng::CounterRng;

/// One of the eight symmetries of the square, drawn for every sample. For patches and textures, where up is
/// no direction.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Dihedral {}

impl Dihedral {
    /// 1 or 0 each: transposed, then mirrored left to right, then top to bottom.
    pub fn draw(&self, draw: &mut CounterRng) -> [f64; 3] {
        let bits = draw.bits();
        [0, 1, 2].map(|bit| (bits >> (63 - bit) & 1) as f64)
    }

    /// `xs` `[B, C, S, S]`, `params` `[B, 3]`.
    pub fn apply(&self, xs: &Tensor, params: &Tensor) -> Tensor {
        let drawn = |column: i64| params.select(1, column).gt(0.5).view([-1, 1, 1, 1]);
        let xs = xs.transpose(2, 3).where_self(&drawn(0), xs);
        let xs = xs.flip([3]).where_self(&drawn(1), &xs);
        xs.flip([2]).where_self(&drawn(2), &xs)
    }
}
