//! Channels of several groups interleaved, as `torch.nn.ChannelShuffle` (Zhang et al., 2018).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{groups_divide, image, same};
use super::{Layer, Shape, ShapeError, TorchModule};

/// Takes one channel of each group in turn.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChannelShuffle {
    /// Number of groups; divides the channels.
    #[schemars(range(min = 1))]
    pub groups: i64,
}

impl Layer for ChannelShuffle {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let [channels, ..] = image(input)?;
        groups_divide(self.groups, channels, "channels")?;
        same(input)
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        format!("x = torch.channel_shuffle(x, {})", self.groups)
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        TorchModule::new("nn.ChannelShuffle").with("groups", self.groups)
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Shuffle(self.groups))
    }
}

#[derive(Debug)]
struct Shuffle(i64);

impl Module for Shuffle {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.channel_shuffle(self.0)
    }
}
