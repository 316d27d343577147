//! Upsampling, as `torch.nn.Upsample`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{Pair, argument, image, pair_in_range};
use super::{Layer, Shape, ShapeError, TorchModule};
use crate::nn::layers::codegen::Literal;

/// `[C, H, W]` to `[C, size]`, or to `[C, ⌊H·scale⌋, ⌊W·scale⌋]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upsample {
    /// Height and width of the output; give this or `scale_factor`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Pair>,
    /// The output as a multiple of the input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_factor: Option<Pair<f64>>,
    /// Interpolation.
    #[serde(default)]
    pub mode: Mode,
    /// For `bilinear`: whether the corner pixels' centres stay where they are.
    #[serde(default)]
    pub align_corners: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    #[default]
    Nearest,
    Bilinear,
}

impl Layer for Upsample {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let [channels, height, width] = image(input)?;
        if self.align_corners && self.mode == Mode::Nearest {
            return Err(argument("align_corners", "goes with mode `bilinear` only"));
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
            (None, None) => Err(argument("scale_factor", "is missing: give scale_factor or size")),
            (Some(_), Some(_)) => Err(argument("size", "cannot go with scale_factor: leave one of them out")),
        }
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        let corners = self.align_corners.literal();
        let scales = self.scale_factor.map_or([1.0, 1.0], |scale| scale.0);
        match (self.mode, self.size) {
            (Mode::Nearest, Some(size)) => {
                format!("x = torch.upsample_nearest2d(x, {:?}, None, None)", size.0)
            }
            (Mode::Nearest, None) => format!("x = torch.upsample_nearest2d(x, None, {scales:?})"),
            (Mode::Bilinear, Some(size)) => {
                format!("x = torch.upsample_bilinear2d(x, {:?}, {corners}, None, None)", size.0)
            }
            (Mode::Bilinear, None) => {
                format!("x = torch.upsample_bilinear2d(x, None, {corners}, {scales:?})")
            }
        }
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        let mode = if self.mode == Mode::Nearest { "nearest" } else { "bilinear" };
        TorchModule::new("nn.Upsample")
            .or("size", self.size, None)
            .or("scale_factor", self.scale_factor, None)
            .or("mode", mode, "nearest")
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
        let spec = &self.0;
        let size = spec.size.map(|size| size.0);
        // By the scale, not by the size that follows from it: the two sample other places where they
        // disagree.
        let scales = spec.scale_factor.map_or([1.0, 1.0], |scale| scale.0);
        match (spec.mode, size) {
            (Mode::Nearest, Some(size)) => xs.upsample_nearest2d(size, None, None),
            (Mode::Nearest, None) => xs.upsample_nearest2d_vec(None::<&[i64]>, scales),
            (Mode::Bilinear, Some(size)) => xs.upsample_bilinear2d(size, spec.align_corners, None, None),
            (Mode::Bilinear, None) => xs.upsample_bilinear2d_vec(None::<&[i64]>, spec.align_corners, scales),
        }
    }
}
