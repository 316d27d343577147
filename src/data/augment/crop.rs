//! Random crops of the padded picture: torchvision's `RandomCrop`.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::values::Size;
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Pads by `padding` pixels on every side, then cuts a rectangle at a random place.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Crop {
    #[serde(default)]
    pub padding: usize,
    /// The size of what is cut; the picture's own where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// The level of constant padding, 0 to 255 (floating-point pictures get fill/255); masks are ignored
    /// there.
    #[serde(default)]
    pub fill: u8,
    #[serde(default)]
    pub padding_mode: PaddingMode,
}

/// What the padding shows.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// Where position `at` of a line of `len` pixels comes from, for a padding that [`Crop::output`] allowed;
    /// None for the fill.
    pub fn source(self, at: i64, len: i64) -> Option<i64> {
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

    /// The same for a tensor of positions; the fill's positions come out as any valid ones.
    fn sources(self, at: &Tensor, len: i64) -> Tensor {
        match self {
            PaddingMode::Constant | PaddingMode::Edge => at.clamp(0, len - 1),
            PaddingMode::Reflect => (len - 1) - ((len - 1) - at.abs()).abs(),
            PaddingMode::Symmetric => {
                let mirrored = at.maximum(&(-at - 1));
                mirrored.minimum(&((2 * len - 1) - &mirrored))
            }
        }
    }
}

impl Crop {
    pub fn validate(&self) -> Result<(), Invalid> {
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

    /// The height and width of what is cut from a picture of `height` × `width`.
    pub fn output(&self, height: usize, width: usize) -> Result<[usize; 2], String> {
        let sides = self.size.map_or([height, width], Size::sides);
        for (cut, side) in sides.into_iter().zip([height, width]) {
            let padded = side + 2 * self.padding;
            if cut > padded {
                return Err(format!("cannot cut {cut} pixels from {side} padded to {padded}; lower `size`"));
            }
            let room = match self.padding_mode {
                PaddingMode::Reflect => side.saturating_sub(1),
                PaddingMode::Symmetric => side,
                PaddingMode::Constant | PaddingMode::Edge => usize::MAX,
            };
            if self.padding > room {
                let padding = self.padding;
                return Err(format!(
                    "a side of {side} pixels cannot be mirrored by {padding}; lower `padding`"
                ));
            }
        }
        Ok(sides)
    }

    /// Row and column of the upper left corner, counted from the picture's own: from `-padding`.
    pub fn draw(&self, [height, width]: [usize; 2], draw: &mut CounterRng) -> [f64; 2] {
        // The sizes were checked by `output` when the loader was made.
        let sides = self.size.map_or([height, width], Size::sides);
        let mut corner = |side: usize, cut: usize| {
            let places = (side + 2 * self.padding).saturating_sub(cut) + 1;
            draw.below(places as u64) as f64 - self.padding as f64
        };
        [corner(height, sides[0]), corner(width, sides[1])]
    }

    /// `xs` `[B, C, H, W]`, `params` `[B, 2]`; `fill`, and that of the last channel where it is a target, in
    /// the units of `xs`.
    pub fn apply(&self, xs: &Tensor, params: &Tensor, fill: f64, target: Option<f64>) -> Tensor {
        let size = xs.size();
        let (batch, channels, height, width) = (size[0], size[1], size[2], size[3]);
        let [cut_height, cut_width] =
            self.size.map_or([height, width], |size| size.sides().map(|side| side as i64));
        let options = (Kind::Int64, xs.device());
        let places = |column: i64, cut: i64| {
            params.select(1, column).to_kind(Kind::Int64).view([batch, 1]) + Tensor::arange(cut, options)
        };
        let (rows, columns) = (places(0, cut_height), places(1, cut_width));
        let index = [
            Some(Tensor::arange(batch, options).view([batch, 1, 1, 1])),
            Some(Tensor::arange(channels, options).view([1, channels, 1, 1])),
            Some(self.padding_mode.sources(&rows, height).view([batch, 1, cut_height, 1])),
            Some(self.padding_mode.sources(&columns, width).view([batch, 1, 1, cut_width])),
        ];
        let cut = xs.index(&index);
        if self.padding == 0 || self.padding_mode != PaddingMode::Constant {
            return cut;
        }
        let outside = |at: &Tensor, len: i64| at.lt(0).logical_or(&at.ge(len));
        let rows = outside(&rows, height).view([batch, 1, cut_height, 1]);
        let columns = outside(&columns, width).view([batch, 1, 1, cut_width]);
        let outside = rows.logical_or(&columns);
        let cut = cut.masked_fill(&outside, fill);
        if let Some(fill) = target {
            let _ = cut.narrow(1, channels - 1, 1).masked_fill_(&outside, fill);
        }
        cut
    }
}
