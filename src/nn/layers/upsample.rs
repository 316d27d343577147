//! Upsampling, as `torch.nn.Upsample`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{Pair, argument, image, pair_in_range, shown};
use super::channels::ChannelFlow;
use super::{Layer, Shape, ShapeError, TorchModule};
use crate::nn::layers::codegen::Literal;

/// `[C, H, W]` to `[C, size]`, to `[C, ⌊H·scale⌋, ⌊W·scale⌋]`, or to the sides of another tensor.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upsample {
    /// Height and width of the output; give this, `scale_factor` or `like`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Pair>,
    /// The output as a multiple of the input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_factor: Option<Pair<f64>>,
    /// `input` for the height and width of what comes into the list or mapping of layers that it is in: at the
    /// top, the network's input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub like: Option<Like>,
    /// Interpolation.
    #[serde(default)]
    pub mode: Mode,
    /// For `bilinear` and `bicubic`: whether the corner pixels' centres stay where they are.
    #[serde(default)]
    pub align_corners: bool,
    /// For `bilinear` and `bicubic`: whether an image that becomes smaller is filtered before, as
    /// `torch.nn.functional.interpolate` does it.
    #[serde(default)]
    pub antialias: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    #[default]
    Nearest,
    Bilinear,
    Bicubic,
}

/// What an output is as high and wide as.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Like {
    Input,
}

const ANTIALIASED: &str = "\
class AntialiasedUpsample(nn.Upsample):
    \"\"\"Filters images that become smaller.\"\"\"

    def forward(self, x):
        return F.interpolate(x, self.size, self.scale_factor, self.mode, self.align_corners, antialias=True)
";

impl Upsample {
    fn check_options(&self) -> Result<(), ShapeError> {
        for (name, is_set) in [("align_corners", self.align_corners), ("antialias", self.antialias)] {
            if is_set && self.mode == Mode::Nearest {
                return Err(argument(name, "goes with mode `bilinear` and `bicubic` only"));
            }
        }
        Ok(())
    }

    /// The shape rule of `like`: `[C, H, W]` and the shape `[D, h, w]` that it is to be like to `[C, h, w]`.
    pub fn like_shape(&self, input: &[i64], like: &[i64]) -> Result<Shape, ShapeError> {
        let [channels, ..] = image(input)?;
        self.check_options()?;
        if self.size.is_some() || self.scale_factor.is_some() {
            return Err(argument("like", "cannot go with size or scale_factor: leave them out"));
        }
        match like {
            &[_, height, width] => Ok(vec![channels, height, width]),
            other => {
                let message = format!("what comes into this list of layers, {}, is no image", shown(other));
                Err(argument("like", message))
            }
        }
    }

    /// `xs` `[N, C, H, W]` with the height and width of `like` `[N, D, h, w]`.
    pub fn resize_like(&self, xs: &Tensor, like: &Tensor) -> Tensor {
        match like.size().as_slice() {
            &[_, _, height, width] => self.resize(xs, Some([height, width])),
            _ => xs.shallow_clone(),
        }
    }

    /// By the scale, not by the size that follows from it, where no size is given: the two sample other places
    /// where they disagree.
    fn resize(&self, xs: &Tensor, size: Option<[i64; 2]>) -> Tensor {
        let scales = self.scale_factor.map_or([1.0, 1.0], |scale| scale.0);
        let (corners, none) = (self.align_corners, None::<&[i64]>);
        match (self.mode, self.antialias, size) {
            (Mode::Nearest, _, Some(size)) => xs.upsample_nearest2d(size, None, None),
            (Mode::Nearest, _, None) => xs.upsample_nearest2d_vec(none, scales),
            (Mode::Bilinear, false, Some(size)) => xs.upsample_bilinear2d(size, corners, None, None),
            (Mode::Bilinear, false, None) => xs.upsample_bilinear2d_vec(none, corners, scales),
            (Mode::Bilinear, true, Some(size)) => {
                xs.internal_upsample_bilinear2d_aa(size, corners, None, None)
            }
            (Mode::Bilinear, true, None) => xs.internal_upsample_bilinear2d_aa_vec(none, corners, scales),
            (Mode::Bicubic, false, Some(size)) => xs.upsample_bicubic2d(size, corners, None, None),
            (Mode::Bicubic, false, None) => xs.upsample_bicubic2d_vec(none, corners, scales),
            (Mode::Bicubic, true, Some(size)) => xs.internal_upsample_bicubic2d_aa(size, corners, None, None),
            (Mode::Bicubic, true, None) => xs.internal_upsample_bicubic2d_aa_vec(none, corners, scales),
        }
    }

    /// The operator of `bilinear` and `bicubic`.
    fn operator(&self) -> String {
        let (before, after) = if self.antialias { ("_", "_aa") } else { ("", "") };
        format!("torch.{before}upsample_{}2d{after}", self.mode.word())
    }

    /// A line of TorchScript that brings `x` to `size`, an expression of a list of two integers.
    pub fn torchscript_to(&self, size: &str) -> String {
        match self.mode {
            Mode::Nearest => format!("x = torch.upsample_nearest2d(x, {size}, None, None)"),
            _ => {
                format!("x = {}(x, {size}, {}, None, None)", self.operator(), self.align_corners.literal())
            }
        }
    }

    /// The same in Python.
    pub fn python_to(&self, size: &str) -> String {
        let corners = match self.mode {
            Mode::Nearest => String::new(),
            _ => format!(", align_corners={}", self.align_corners.literal()),
        };
        let antialias = if self.antialias { ", antialias=True" } else { "" };
        format!("x = F.interpolate(x, size={size}, mode={}{corners}{antialias})", self.mode.word().literal())
    }
}

impl Mode {
    fn word(self) -> &'static str {
        match self {
            Self::Nearest => "nearest",
            Self::Bilinear => "bilinear",
            Self::Bicubic => "bicubic",
        }
    }
}

impl Layer for Upsample {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let [channels, height, width] = image(input)?;
        self.check_options()?;
        if self.like.is_some() {
            // Any other place of it is a node of its own.
            let message =
                "wants layers before it in its list or mapping: their output is resized to its input";
            return Err(argument("like", message));
        }
        match (self.size, self.scale_factor) {
            (Some(size), None) => {
                pair_in_range("size", size, 1)?;
                Ok(vec![channels, size.0[0], size.0[1]])
            }
            (None, Some(Pair(scales))) => {
                if let Some(scale) = scales.iter().find(|scale| !(**scale > 0.0 && scale.is_finite())) {
                    let message = format!("{scale} is out of range: expected a finite number above 0");
                    return Err(argument("scale_factor", message));
                }
                // A float beyond i64 comes out as i64::MAX.
                let [h, w] = [(height, scales[0]), (width, scales[1])]
                    .map(|(extent, scale)| (extent as f64 * scale).floor() as i64);
                if h < 1 || w < 1 {
                    return Err(argument(
                        "scale_factor",
                        format!("leaves nothing of the {height}x{width} input"),
                    ));
                }
                Ok(vec![channels, h, w])
            }
            (None, None) => Err(argument("scale_factor", "is missing: give scale_factor, size or like")),
            (Some(_), Some(_)) => Err(argument("size", "cannot go with scale_factor: leave one of them out")),
        }
    }

    fn channel_flow(&self, input: &[i64]) -> ChannelFlow {
        ChannelFlow::each(input[0])
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        let corners = self.align_corners.literal();
        let scales = self.scale_factor.map_or([1.0, 1.0], |scale| scale.0);
        match (self.mode, self.size) {
            (_, Some(size)) => self.torchscript_to(&format!("{:?}", size.0)),
            (Mode::Nearest, None) => format!("x = torch.upsample_nearest2d(x, None, {scales:?})"),
            (_, None) => format!("x = {}(x, None, {corners}, {scales:?})", self.operator()),
        }
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        let twin = match self.antialias {
            true => TorchModule::defined("AntialiasedUpsample", ANTIALIASED),
            false => TorchModule::new("nn.Upsample"),
        };
        twin.or("size", self.size, None)
            .or("scale_factor", self.scale_factor, None)
            .or("mode", self.mode.word(), "nearest")
            .or("align_corners", self.align_corners.then_some(true), None)
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Resize(self.clone()))
    }
}

#[derive(Debug)]
struct Resize(Upsample);

impl Module for Resize {
    fn forward(&self, xs: &Tensor) -> Tensor {
        self.0.resize(xs, self.0.size.map(|size| size.0))
    }
}
