//! Random rotations about the centre: torchvision's `RandomRotation` with bilinear interpolation.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::values::{Range, happens, is_one, one, probability};
use super::{Augmentation, ChangesValues, Params};
use crate::data::mask::IGNORED;
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
    /// Probability.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
}

impl Augmentation for Rotation {
    fn validate(&self) -> Result<(), Invalid> {
        self.degrees.validate("degrees", 0.0, [-360.0, 360.0])?;
        probability("p", self.p)
    }

    fn num_params(&self) -> usize {
        1
    }

    /// The angle in degrees.
    fn sample(&self, _: [usize; 2], rng: &mut CounterRng, params: &mut Vec<f64>) {
        let angle = self.degrees.sample(0.0, rng);
        params.push(if happens(self.p, rng) { angle } else { 0.0 });
    }
}

impl ChangesValues for Rotation {
    fn apply(&self, xs: &Tensor, params: &Params) -> Tensor {
        self.rotate(xs, params, f64::from(self.fill) / 255.0, 0)
    }

    fn apply_to_masks(&self, masks: &Tensor, params: &Params) -> Tensor {
        self.rotate(masks, params, f64::from(IGNORED) / 255.0, 1)
    }
}

impl Rotation {
    /// `interpolation` is libtorch's: 0 bilinear, 1 nearest.
    fn rotate(&self, xs: &Tensor, params: &Params, fill: f64, interpolation: i64) -> Tensor {
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
        (xs - fill).grid_sampler(&grid, interpolation, 0, false) + fill
    }
}
