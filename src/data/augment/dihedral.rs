//! The eight flips and quarter turns of a square, each as likely as the others.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Augmentation, MovesPixels, PixelMap, image_sides};
use crate::util::rng::CounterRng;

/// One of the eight symmetries of the square, drawn for every sample. For patches and textures, where up is
/// no direction.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dihedral {}

impl Augmentation for Dihedral {
    fn output_shape(&self, input: &[i64]) -> Result<Vec<i64>, String> {
        let [height, width] = image_sides(input)?;
        if height != width {
            return Err("quarter turns need squares; crop to one, or use `flip`".into());
        }
        Ok(input.to_vec())
    }

    fn num_params(&self) -> usize {
        3
    }

    /// 1 or 0 each: transposed, then mirrored left to right, then top to bottom.
    fn sample(&self, _: [usize; 2], rng: &mut CounterRng, params: &mut Vec<f64>) {
        let bits = rng.bits();
        params.extend([0, 1, 2].map(|bit| (bits >> (63 - bit) & 1) as f64));
    }
}

impl MovesPixels for Dihedral {
    fn move_pixels(&self, map: &mut PixelMap, params: &[f64]) {
        if params[0] > 0.5 {
            map.transpose();
        }
        if params[1] > 0.5 {
            map.flip_horizontal();
        }
        if params[2] > 0.5 {
            map.flip_vertical();
        }
    }
}
