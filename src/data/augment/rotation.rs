//! Random rotations about the centre: torchvision's `RandomRotation` with bilinear interpolation.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::values::Range;
use super::{Augmentation, ChangesValues, Params};
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Rotates by an angle from `-degrees` to `degrees`, or from the given range; positive is counter-clockwise.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// The largest angle, or the range of angles, within -360 to 360 degrees.
    pub degrees: Range,
    /// The grey level of the corners that come into view (floating-point pictures get fill/255).
    #[serde(default)]
    pub fill: u8,
}

impl Augmentation for Rotation {
    fn validate(&self) -> Result<(), Invalid> {
        self.degrees.validate("degrees", 0.0, [-360.0, 360.0])
    }

    fn num_params(&self) -> usize {
        1
    }

    /// The angle in degrees.
    fn sample(&self, _: [usize; 2], rng: &mut CounterRng, params: &mut Vec<f64>) {
        params.push(self.degrees.sample(0.0, rng));
    }
}

impl ChangesValues for Rotation {
    fn apply(&self, xs: &Tensor, params: &Params) -> Tensor {
        let fill = f64::from(self.fill) / 255.0;
        let size = xs.size();
        let (height, width) = (size[2] as f64, size[3] as f64);
        let angle = params.tensor.select(1, 0).to_kind(Kind::Double).deg2rad();
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
