//! Some of the channels, by their numbers or as `torch.chunk` counts them, for networks that treat them apart.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{argument, image, in_range};
use super::channels::{self, ChannelFlow, Kept};
use super::flatten::axis;
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

/// One of the parts into which `torch.chunk` cuts a dimension: equal ones where it divides.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Chunk {
    /// Number of parts; the last may be smaller, or missing.
    #[schemars(range(min = 1))]
    pub chunks: i64,
    /// Which of them, from 0.
    #[schemars(range(min = 0))]
    pub index: i64,
    /// The dimension; the batch is 0, -1 is the last.
    #[serde(default = "first")]
    pub dim: i64,
}

fn first() -> i64 {
    1
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

const CHUNK: &str = "\
class Chunk(nn.Module):
    \"\"\"One of the `chunks` parts of a dimension.\"\"\"

    def __init__(self, chunks, index, dim=1):
        super().__init__()
        self.chunks, self.index, self.dim = chunks, index, dim

    def forward(self, x):
        return x.chunk(self.chunks, self.dim)[self.index]
";

impl Layer for Chunk {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let at = axis("dim", self.dim, input)?;
        in_range("chunks", self.chunks, 1)?;
        in_range("index", self.index, 0)?;
        let extent = input[at];
        let each = extent / self.chunks + i64::from(extent % self.chunks != 0);
        let parts = extent / each + i64::from(extent % each != 0);
        if self.index >= parts {
            let message = format!(
                "{} is out of range: {extent} in {} parts has 0 to {}",
                self.index,
                self.chunks,
                parts - 1
            );
            return Err(argument("index", message));
        }
        let mut output = input.to_vec();
        output[at] = each.min(extent - self.index * each);
        Ok(output)
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        format!("x = torch.chunk(x, {}, {})[{}]", self.chunks, self.dim, self.index)
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        TorchModule::defined("Chunk", CHUNK).with("chunks", self.chunks).with("index", self.index).or(
            "dim",
            self.dim,
            first(),
        )
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Part(self.clone()))
    }
}

#[derive(Debug)]
struct Part(Chunk);

impl Module for Part {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let &Chunk { chunks, index, dim } = &self.0;
        xs.chunk(chunks, dim).swap_remove(index as usize)
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
