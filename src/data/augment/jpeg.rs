//! Traces of JPEG compression: torchvision's `JPEG`, level by level.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{chance, is_one, one, probability};
use super::{Augmentation, ChangesLevels, Levels, image_sides};
use crate::data::image::jpeg::compress;
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Compresses the image as JPEG and decompresses it, as libjpeg does: grey, or chroma at half the resolution.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Jpeg {
    /// JPEG quality from 1 to 100, or the range `[low, high]` it is drawn from.
    pub quality: Quality,
    /// Probability.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
}

/// A whole number, or a range.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[serde(untagged, expecting = "expected a whole number or a pair [low, high]")]
pub enum Quality {
    Fixed(u8),
    Between([u8; 2]),
}

impl Quality {
    fn bounds(self) -> [u8; 2] {
        match self {
            Quality::Fixed(quality) => [quality, quality],
            Quality::Between(bounds) => bounds,
        }
    }
}

impl Augmentation for Jpeg {
    fn validate(&self) -> Result<(), Invalid> {
        let [low, high] = self.quality.bounds();
        if !(1 <= low && low <= high && high <= 100) {
            return Err(Invalid::new("quality", "must be ordered and lie within 1 to 100"));
        }
        probability("p", self.p)
    }

    fn output_shape(&self, input: &[i64]) -> Result<Vec<i64>, String> {
        image_sides(input)?;
        match input[0] {
            1 | 3 => Ok(input.to_vec()),
            channels => Err(format!("JPEG knows grey and RGB images, not {channels} channels; remove it")),
        }
    }

    fn num_params(&self) -> usize {
        2
    }

    /// Whether it happens, and the quality.
    fn sample(&self, _: [usize; 2], rng: &mut CounterRng, params: &mut Vec<f64>) {
        params.push(chance(self.p, rng));
        let [low, high] = self.quality.bounds().map(u64::from);
        params.push((low + rng.below(high - low + 1)) as f64);
    }
}

impl ChangesLevels for Jpeg {
    fn apply(&self, levels: &mut Levels, params: &[f64]) {
        if params[0] > 0.5 {
            let sides = [levels.height, levels.width];
            compress(levels.image(), sides, params[1] as u32);
        }
    }
}
