//! Channels of several groups interleaved, as `torch.nn.ChannelShuffle` (Zhang et al., 2018).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{groups_divide, image, same};
use super::channels::ChannelFlow;
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

    /// The channels at one place of all groups are removed together: the groups stay equal.
    fn channel_flow(&self, input: &[i64]) -> ChannelFlow {
        let (groups, size) = (self.groups as usize, (input[0] / self.groups) as usize);
        // Output `place * groups + group` is input `group * size + place`; it comes first among its sources.
        let sources = |output: usize| {
            let (place, group) = (output / groups, output % groups);
            (0..groups).map(|turn| (group + turn) % groups * size + place).collect()
        };
        ChannelFlow::Tied { sources: (0..input[0] as usize).map(sources).collect(), scale: None }
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
