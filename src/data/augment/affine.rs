//! Random rotation, shift, zoom and shear in one: torchvision's `RandomAffine`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{Range, chance, is_one, one, ordered, probability};
use super::warp::{Interpolation, Places, inverse_affine};
use super::{Augmentation, ChangesLevels, Levels};
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Rotates about the centre, shifts, zooms and shears, and keeps the size; masks and images that are targets
/// move with the image. A zoom alone is `{degrees: 0, scale: [0.8, 1.2]}`: above 1 the image grows.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Affine {
    /// The largest angle, or the range of angles, within -360 to 360 degrees; positive is clockwise.
    pub degrees: Range,
    /// The largest shift across and down, as shares of width and height.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub translate: Option<[f64; 2]>,
    /// Smallest and largest zoom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<[f64; 2]>,
    /// Degrees of shear along x: a number, `[low, high]`, or `[low, high, low, high]` for x and y.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shear: Option<Shear>,
    #[serde(default)]
    pub interpolation: Interpolation,
    /// The grey level of what comes into view; ignored in masks.
    #[serde(default)]
    pub fill: u8,
    /// Probability.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
}

/// Ranges of the shear along x and y.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
#[serde(untagged, expecting = "expected a number, a pair [low, high] or four numbers")]
pub enum Shear {
    AlongX(Range),
    Both([f64; 4]),
}

impl Shear {
    fn ranges(self) -> [Range; 2] {
        match self {
            Shear::AlongX(range) => [range, Range::Between([0.0, 0.0])],
            Shear::Both([a, b, c, d]) => [Range::Between([a, b]), Range::Between([c, d])],
        }
    }
}

impl Augmentation for Affine {
    fn validate(&self) -> Result<(), Invalid> {
        self.degrees.validate("degrees", 0.0, [-360.0, 360.0])?;
        if let Some(shift) = self.translate
            && !shift.iter().all(|share| (0.0..=1.0).contains(share))
        {
            return Err(Invalid::new("translate", "expected two shares from 0 to 1: [across, down]"));
        }
        if let Some(scale) = self.scale {
            ordered("scale", scale, f64::MIN_POSITIVE, f64::MAX)?;
        }
        for range in self.shear.into_iter().flat_map(Shear::ranges) {
            range.validate("shear", 0.0, [-89.0, 89.0])?;
        }
        probability("p", self.p)
    }

    fn num_params(&self) -> usize {
        7
    }

    /// Whether it happens, the angle, the shift across and down in pixels, the zoom, the two shears.
    fn sample(&self, [height, width]: [usize; 2], rng: &mut CounterRng, params: &mut Vec<f64>) {
        params.push(chance(self.p, rng));
        params.push(self.degrees.sample(0.0, rng));
        let [across, down] = self.translate.unwrap_or_default();
        for most in [across * width as f64, down * height as f64] {
            params.push(rng.between(-most, most).round_ties_even());
        }
        let [least, most] = self.scale.unwrap_or([1.0, 1.0]);
        params.push(rng.between(least, most));
        let shear = self.shear.map_or([Range::Around(0.0); 2], Shear::ranges);
        params.extend(shear.map(|range| range.sample(0.0, rng)));
    }
}

impl ChangesLevels for Affine {
    fn apply(&self, levels: &mut Levels, params: &[f64]) {
        let &[happens, angle, right, down, scale, shear_x, shear_y] = params else { return };
        if happens < 0.5 {
            return;
        }
        let matrix = inverse_affine([0.0, 0.0], angle, [right, down], scale, [shear_x, shear_y]);
        let places = Places::affine(matrix, [levels.height, levels.width]);
        places.warp(levels, self.interpolation, self.fill);
    }
}
