//! Pooling to a given size, as `torch.nn.AdaptiveAvgPool2d` and `AdaptiveMaxPool2d`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{Pair, image, pair_in_range};
use super::channels::ChannelFlow;
use super::{Layer, Shape, ShapeError, TorchModule};

/// `[C, H, W]` to `[C, output_size]`; 1 is global average pooling.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveAvgPool2d {
    /// Height and width of the output.
    pub output_size: Pair,
}

/// `[C, H, W]` to `[C, output_size]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveMaxPool2d {
    /// Height and width of the output.
    pub output_size: Pair,
}

fn output(output_size: Pair, input: &[i64]) -> Result<Shape, ShapeError> {
    let [channels, ..] = image(input)?;
    pair_in_range("output_size", output_size, 1)?;
    let [height, width] = output_size.0;
    Ok(vec![channels, height, width])
}

impl Layer for AdaptiveAvgPool2d {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        output(self.output_size, input)
    }

    fn channel_flow(&self, input: &[i64]) -> ChannelFlow {
        ChannelFlow::each(input[0])
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        format!("x = torch.adaptive_avg_pool2d(x, {:?})", self.output_size.0)
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        TorchModule::new("nn.AdaptiveAvgPool2d").with("output_size", self.output_size)
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Average(self.output_size.0))
    }
}

impl Layer for AdaptiveMaxPool2d {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        output(self.output_size, input)
    }

    fn channel_flow(&self, input: &[i64]) -> ChannelFlow {
        ChannelFlow::each(input[0])
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        format!("x = torch.adaptive_max_pool2d(x, {:?})[0]", self.output_size.0)
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        TorchModule::new("nn.AdaptiveMaxPool2d").with("output_size", self.output_size)
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Maximum(self.output_size.0))
    }
}

#[derive(Debug)]
struct Average([i64; 2]);

impl Module for Average {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.adaptive_avg_pool2d(self.0)
    }
}

#[derive(Debug)]
struct Maximum([i64; 2]);

impl Module for Maximum {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.adaptive_max_pool2d(self.0).0
    }
}
