//! Low resolution: the image shrunk by bicubic as MATLAB's `imresize` does it, to be enlarged again.
//!
//! Sides that the scale does not divide lose their last rows and columns first (`modcrop`). Nothing is
//! rounded or clamped: bicubic's small overshoot stays.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::Degradation;
use crate::functional::bicubic;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml::Invalid;

/// Reduction by MATLAB's bicubic `imresize`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SuperResolution {
    /// The factor by which the image is reduced.
    #[schemars(range(min = 2, max = 8))]
    pub scale: i64,
    /// What the network sees.
    #[serde(default)]
    pub input: Input,
}

/// What the network sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// The small image enlarged to its old size by bicubic, for SRCNN (Dong et al. 2014) and VDSR (Kim et al.
    /// 2016).
    #[default]
    Upscaled,
    /// The small image, which the network enlarges, as ESPCN does (Shi et al. 2016).
    Small,
}

impl Degradation for SuperResolution {
    fn validate(&self) -> Result<(), Invalid> {
        match self.scale {
            2..=8 => Ok(()),
            scale => Err(Invalid::new("scale", format!("{scale} is not a whole number from 2 to 8"))),
        }
    }

    fn check(&self, [_, height, width]: [i64; 3]) -> Result<()> {
        if height.min(width) < self.scale {
            let message =
                format!("super_resolution by {} leaves nothing of {height}x{width} images", self.scale);
            return Err(fail(ExitCode::Usage, message + "; use larger ones"));
        }
        Ok(())
    }

    fn apply(&self, images: &Tensor, _train: bool) -> Result<Tensor> {
        let images = bicubic::crop_to_multiple(images, self.scale);
        let size = images.size();
        Ok(self.present(bicubic::resize(&images, size[2] / self.scale, size[3] / self.scale)))
    }

    fn present(&self, images: Tensor) -> Tensor {
        match self.input {
            Input::Upscaled => {
                let size = images.size();
                bicubic::resize(&images, size[2] * self.scale, size[3] * self.scale)
            }
            Input::Small => images,
        }
    }

    fn scale(&self) -> i64 {
        self.scale
    }

    fn output(&self, [channels, height, width]: [i64; 3]) -> [i64; 3] {
        let small = [height / self.scale, width / self.scale];
        let factor = if self.input == Input::Small { 1 } else { self.scale };
        [channels, small[0] * factor, small[1] * factor]
    }
}
