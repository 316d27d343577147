//! How pictures of the validation and test sets become samples: torchvision's `Resize` and `CenterCrop`, as its
//! `ImageClassification` presets have them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::util::yaml::Invalid;

/// The shorter side to `resize` pixels, the proportions kept, antialiased as Pillow and torchvision's v2 do; then
/// the centre, of the size of the samples.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvalTransform {
    /// The shorter side in pixels, at least that of the samples; torchvision's 256 goes with samples of 224.
    #[schemars(range(min = 1, max = 8192))]
    pub resize: usize,
    /// The side of the centre, which is that of the samples: the source's `size`, and needs not be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub center_crop: Option<usize>,
    /// The filter that scales.
    #[serde(default)]
    pub interpolation: Interpolation,
}

/// As torchvision's `InterpolationMode`.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    #[default]
    Bilinear,
    Bicubic,
}

impl EvalTransform {
    /// Refuses what does not go with samples of `height × width`.
    pub fn validate(&self, [height, width]: [usize; 2]) -> Result<(), Invalid> {
        if let Some(side) = self.center_crop.filter(|side| [*side; 2] != [height, width]) {
            let message =
                format!("{side} is not the size of the samples, {height}×{width}: make the two equal");
            return Err(Invalid::new("center_crop", message));
        }
        if self.resize < height.max(width) || self.resize > 8192 {
            let message = format!(
                "must be from the size of the samples, {}, to 8192, not {}",
                height.max(width),
                self.resize
            );
            return Err(Invalid::new("resize", message));
        }
        Ok(())
    }
}
