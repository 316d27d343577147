//! Channels to pixels and back, as `torch.nn.PixelShuffle` and `PixelUnshuffle` (Shi et al., 2016).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{argument, image, in_range, size};
use super::channels::ChannelFlow;
use super::{Layer, Shape, ShapeError, TorchModule};

/// `[C·r², H, W]` to `[C, H·r, W·r]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PixelShuffle {
    /// The factor r.
    #[schemars(range(min = 1))]
    pub upscale_factor: i64,
}

/// `[C, H·r, W·r]` to `[C·r², H, W]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PixelUnshuffle {
    /// The factor r.
    #[schemars(range(min = 1))]
    pub downscale_factor: i64,
}

impl Layer for PixelShuffle {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let [channels, height, width] = image(input)?;
        let factor = self.upscale_factor;
        in_range("upscale_factor", factor, 1)?;
        if channels % (factor * factor) != 0 {
            let message = format!("{factor} does not fit: its square must divide the {channels} channels");
            return Err(argument("upscale_factor", message));
        }
        let grown = |extent: i64| size(i128::from(extent) * i128::from(factor));
        Ok(vec![channels / (factor * factor), grown(height), grown(width)])
    }

    fn channel_flow(&self, input: &[i64]) -> ChannelFlow {
        let outputs = input[0] / self.upscale_factor.pow(2);
        ChannelFlow::blocks(input[0], outputs, outputs, None)
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        format!("x = torch.pixel_shuffle(x, {})", self.upscale_factor)
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        TorchModule::new("nn.PixelShuffle").with("upscale_factor", self.upscale_factor)
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Shuffle(self.upscale_factor))
    }
}

impl Layer for PixelUnshuffle {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let [channels, height, width] = image(input)?;
        let factor = self.downscale_factor;
        in_range("downscale_factor", factor, 1)?;
        if height % factor != 0 || width % factor != 0 {
            let message = format!("{factor} does not divide the {height}x{width} input");
            return Err(argument("downscale_factor", message));
        }
        Ok(vec![size(i128::from(channels) * i128::from(factor * factor)), height / factor, width / factor])
    }

    fn channel_flow(&self, input: &[i64]) -> ChannelFlow {
        ChannelFlow::blocks(input[0], input[0] * self.downscale_factor.pow(2), input[0], None)
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        format!("x = torch.pixel_unshuffle(x, {})", self.downscale_factor)
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        TorchModule::new("nn.PixelUnshuffle").with("downscale_factor", self.downscale_factor)
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Unshuffle(self.downscale_factor))
    }
}

#[derive(Debug)]
struct Shuffle(i64);

impl Module for Shuffle {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.pixel_shuffle(self.0)
    }
}

#[derive(Debug)]
struct Unshuffle(i64);

impl Module for Unshuffle {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.pixel_unshuffle(self.0)
    }
}
