//! Random rotations about the centre: torchvision's `RandomRotation` with bilinear interpolation.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::values::Range;
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Rotates by an angle from `-degrees` to `degrees`, or from the given range; positive is counter-clockwise.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    pub degrees: Range,
    /// The level of the corners that come into view, 0 to 255 (floating-point pictures get fill/255).
    #[serde(default)]
    pub fill: u8,
}

impl Rotation {
    pub fn validate(&self) -> Result<(), Invalid> {
        self.degrees.validate("degrees", 0.0, [-360.0, 360.0])
    }

    /// The angle in degrees.
    pub fn draw(&self, draw: &mut CounterRng) -> [f64; 1] {
        [self.degrees.draw(0.0, draw)]
    }

    /// `xs` `[B, C, H, W]` floating point, `params` `[B, 1]`; `fill` in the units of `xs`.
    pub fn apply(&self, xs: &Tensor, params: &Tensor, fill: f64) -> Tensor {
        let size = xs.size();
        let (height, width) = (size[2] as f64, size[3] as f64);
        let angle = params.select(1, 0).to_kind(Kind::Double).deg2rad();
        let (cos, sin) = (angle.cos(), angle.sin());
        let zero = cos.zeros_like();
        // From output to input, in coordinates that run from -1 to 1 along each side.
        let theta = Tensor::stack(
            &[&cos, &(&sin * (-height / width)), &zero, &(&sin * (width / height)), &cos, &zero],
            1,
        );
        let grid = Tensor::affine_grid_generator(&theta.view([-1, 2, 3]).to_kind(xs.kind()), size, false);
        // Outside the picture the sampler reads 0.
        (xs - fill).grid_sampler(&grid, 0, 0, false) + fill
    }
}
