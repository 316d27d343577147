//! Some of the channels, for networks that treat them apart.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{argument, image, in_range};
use super::channels::{self, ChannelFlow, Kept};
use super::{Layer, LayerSpec, Shape, ShapeError, TorchModule};

/// The channels from `start` up to `end`, `end` not included, of `[C, H, W]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SliceChannels {
    /// The first channel.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub start: i64,
    /// The channel after the last one.
    #[schemars(range(min = 1))]
    pub end: i64,
}

const DEFINITION: &str = "\
class SliceChannels(nn.Module):
    \"\"\"The channels from `start` up to `end`.\"\"\"

    def __init__(self, start, end):
        super().__init__()
        self.start, self.end = start, end

    def forward(self, x):
        return x[:, self.start : self.end]
";

impl Layer for SliceChannels {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let [channels, height, width] = image(input)?;
        in_range("start", self.start, 0)?;
        if self.end <= self.start || self.end > channels {
            let message = format!("{} is out of range: expected {} to {channels}", self.end, self.start + 1);
            return Err(argument("end", message));
        }
        Ok(vec![self.end - self.start, height, width])
    }

    fn channel_flow(&self, _input: &[i64]) -> ChannelFlow {
        ChannelFlow::map(self.end - self.start, |output| output + self.start as usize)
    }

    fn with_channels(&self, _input: &[i64], kept: Kept) -> Option<LayerSpec> {
        let [start, end] = [self.start, self.end].map(|end| channels::count(&kept.inputs[..end as usize]));
        Some(LayerSpec::SliceChannels(Self { start, end }))
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        format!("x = x[:, {}:{}]", self.start, self.end)
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        TorchModule::defined("SliceChannels", DEFINITION).with("start", self.start).with("end", self.end)
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Slice { start: self.start, length: self.end - self.start })
    }
}

#[derive(Debug)]
struct Slice {
    start: i64,
    length: i64,
}

impl Module for Slice {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.narrow(1, self.start, self.length)
    }
}
