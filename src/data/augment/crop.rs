//! Random crops of the padded picture: torchvision's `RandomCrop`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::Size;
use super::{Augmentation, MovesPixels, PixelMap, image_sides, with_sides};
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Pads by `padding` pixels on every side, then cuts a rectangle at a random place.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Crop {
    /// Pixels added on every side first.
    #[serde(default)]
    pub padding: usize,
    /// The size that is cut out; the picture's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// The grey level of constant padding (floating-point pictures get fill/255). The padding of masks is
    /// ignored in loss and metrics.
    #[serde(default)]
    pub fill: u8,
    /// What the padding shows.
    #[serde(default)]
    pub padding_mode: PaddingMode,
}

/// What the padding shows.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PaddingMode {
    /// The level `fill`.
    #[default]
    Constant,
    /// The outermost pixel.
    Edge,
    /// The mirror image, the outermost pixel not repeated.
    Reflect,
    /// The mirror image, the outermost pixel repeated.
    Symmetric,
}

impl PaddingMode {
    /// Where position `at` of a line of `len` pixels comes from, for a padding that [`Crop`] allows there;
    /// None for the fill.
    fn source(self, at: i64, len: i64) -> Option<i64> {
        if (0..len).contains(&at) {
            return Some(at);
        }
        match self {
            PaddingMode::Constant => None,
            PaddingMode::Edge => Some(at.clamp(0, len - 1)),
            PaddingMode::Reflect => Some(if at < 0 { -at } else { 2 * (len - 1) - at }),
            PaddingMode::Symmetric => Some(if at < 0 { -at - 1 } else { 2 * len - 1 - at }),
        }
    }
}

impl Augmentation for Crop {
    fn validate(&self) -> Result<(), Invalid> {
        if let Some(size) = self.size {
            size.validate("size")?;
        }
        if self.padding == 0 && self.size.is_none() {
            return Err(Invalid::new("", "neither pads nor cuts; give `padding` or `size`"));
        }
        if self.fill != 0 && self.padding_mode != PaddingMode::Constant {
            return Err(Invalid::new(
                "fill",
                "only the constant padding mode has a fill; leave one of them out",
            ));
        }
        Ok(())
    }

    fn output_shape(&self, input: &[i64]) -> Result<Vec<i64>, String> {
        let [height, width] = image_sides(input)?;
        let sides = self.output_sides([height, width]);
        for (cut, side) in sides.into_iter().zip([height, width]) {
            let padded = side + 2 * self.padding;
            if cut > padded {
                return Err(format!("cannot cut {cut} pixels from {side} padded to {padded}; lower `size`"));
            }
            let most = match self.padding_mode {
                PaddingMode::Reflect => side.saturating_sub(1),
                PaddingMode::Symmetric => side,
                PaddingMode::Constant | PaddingMode::Edge => usize::MAX,
            };
            if self.padding > most {
                let padding = self.padding;
                return Err(format!(
                    "a side of {side} pixels cannot be mirrored by {padding}; lower `padding`"
                ));
            }
        }
        Ok(with_sides(input, sides))
    }

    fn num_params(&self) -> usize {
        2
    }

    /// Row and column of the upper left corner, counted from the picture's own: from `-padding`.
    fn sample(&self, sides: [usize; 2], rng: &mut CounterRng, params: &mut Vec<f64>) {
        for (side, cut) in sides.into_iter().zip(self.output_sides(sides)) {
            // `output_shape` has checked the sizes.
            let places = (side + 2 * self.padding).saturating_sub(cut) + 1;
            params.push(rng.below(places as u64) as f64 - self.padding as f64);
        }
    }
}

impl MovesPixels for Crop {
    fn move_pixels(&self, map: &mut PixelMap, params: &[f64]) {
        let sides = self.output_sides([map.down.len(), map.across.len()]);
        let corner = [params[0] as i64, params[1] as i64];
        map.crop(corner, sides, self.fill, |at, len| self.padding_mode.source(at, len));
    }
}

impl Crop {
    /// Height and width of what is cut from a picture of these sides.
    fn output_sides(&self, sides: [usize; 2]) -> [usize; 2] {
        self.size.map_or(sides, Size::sides)
    }
}
