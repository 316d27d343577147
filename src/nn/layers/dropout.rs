//! Dropout of single values and of whole channels, as `torch.nn.Dropout` and `Dropout2d` (Srivastava et al.,
//! 2014).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, ModuleT};

use super::args::{image, same, share};
use super::channels::ChannelFlow;
use super::{Layer, Shape, ShapeError, TorchModule};

/// Zeroes values with probability `p` in training.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dropout {
    /// Probability.
    #[serde(default = "half")]
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
}

/// Zeroes channels of `[C, H, W]` with probability `p` in training.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dropout2d {
    /// Probability.
    #[serde(default = "half")]
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
}

fn half() -> f64 {
    0.5
}

impl Layer for Dropout {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        share("p", self.p)?;
        same(input)
    }

    fn channel_flow(&self, input: &[i64]) -> ChannelFlow {
        ChannelFlow::each(input[0])
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        format!("x = torch.dropout(x, {:?}, self.training)", self.p)
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        TorchModule::new("nn.Dropout").with("p", self.p)
    }

    fn is_random(&self) -> bool {
        self.p > 0.0
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Drop { p: self.p, channels: false })
    }
}

impl Layer for Dropout2d {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        image(input)?;
        share("p", self.p)?;
        same(input)
    }

    fn channel_flow(&self, input: &[i64]) -> ChannelFlow {
        ChannelFlow::each(input[0])
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        format!("x = torch.feature_dropout(x, {:?}, self.training)", self.p)
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        TorchModule::new("nn.Dropout2d").with("p", self.p)
    }

    fn is_random(&self) -> bool {
        self.p > 0.0
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Drop { p: self.p, channels: true })
    }
}

#[derive(Debug)]
struct Drop {
    p: f64,
    channels: bool,
}

impl ModuleT for Drop {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        if self.channels { xs.feature_dropout(self.p, train) } else { xs.dropout(self.p, train) }
    }
}
