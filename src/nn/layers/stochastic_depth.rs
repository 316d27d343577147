//! Branches of residuals that are left out at random, as `torchvision.ops.StochasticDepth` (Huang et al.,
//! 2016).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, ModuleT};

use super::args::{same, share};
use super::channels::ChannelFlow;
use super::{Layer, Shape, ShapeError, TorchModule};

/// Zeroes samples, or the whole batch, with probability `p` in training, and divides the others by `1 - p`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StochasticDepth {
    /// Probability.
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
    /// What is zeroed at once.
    #[serde(default)]
    pub mode: Mode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Each sample by itself.
    #[default]
    Row,
    /// All samples or none.
    Batch,
}

const DEFINITION: &str = "\
class StochasticDepth(nn.Module):
    \"\"\"Zeroes samples (`row`) or the whole batch (`batch`) with probability `p` in training.\"\"\"

    def __init__(self, p, mode):
        super().__init__()
        self.p, self.mode = p, mode

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        size = [x.size(0) if self.mode == \"row\" else 1] + [1] * (x.dim() - 1)
        noise = torch.empty(size, dtype=x.dtype, device=x.device).bernoulli_(1 - self.p)
        return x * (noise.div_(1 - self.p) if self.p < 1 else noise)
";

impl Layer for StochasticDepth {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        share("p", self.p)?;
        same(input)
    }

    fn channel_flow(&self, input: &[i64]) -> ChannelFlow {
        ChannelFlow::each(input[0])
    }

    fn torchscript(&self, input: &[i64]) -> String {
        if self.p == 0.0 {
            return String::new();
        }
        let (rows, survival) = (if self.mode == Mode::Row { "x.size(0)" } else { "1" }, 1.0 - self.p);
        let divided = if survival > 0.0 { format!("    noise.div_({survival:?})\n") } else { String::new() };
        format!(
            "\
if self.training:
    noise = torch.empty([{rows}{}], dtype=x.dtype, device=x.device)
    noise.bernoulli_({survival:?})
{divided}    x = x * noise",
            ", 1".repeat(input.len())
        )
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        let mode = if self.mode == Mode::Row { "row" } else { "batch" };
        TorchModule::defined("StochasticDepth", DEFINITION).with("p", self.p).with("mode", mode)
    }

    fn is_random(&self) -> bool {
        self.p > 0.0
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Survival { rate: 1.0 - self.p, mode: self.mode })
    }
}

#[derive(Debug)]
struct Survival {
    rate: f64,
    mode: Mode,
}

impl ModuleT for Survival {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        if !train || self.rate == 1.0 {
            return xs.shallow_clone();
        }
        let mut size = vec![1; xs.dim()];
        if self.mode == Mode::Row {
            size[0] = xs.size()[0];
        }
        // Drawn and divided as torchvision does: equal seeds give equal bits.
        let mut noise = Tensor::empty(size, (xs.kind(), xs.device())).bernoulli_float_(self.rate);
        if self.rate > 0.0 {
            let _ = noise.g_div_scalar_(self.rate);
        }
        xs * noise
    }
}
