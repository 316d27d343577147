//! The bottleneck of a compressing autoencoder: whole numbers, which noise of ±½ stands for in training
//! (Ballé et al. 2017).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, ModuleT};

use super::args::same;
use super::{Layer, Shape, ShapeError, TorchModule};

/// Rounds to whole numbers from −128 to 127; in training adds uniform noise in [−½, ½) instead.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Quantize {}

const DEFINITION: &str = "\
class Quantize(nn.Module):
    \"\"\"Rounds to whole numbers from -128 to 127; in training adds uniform noise in [-0.5, 0.5) instead.\"\"\"

    def forward(self, x):
        return x + (torch.rand_like(x) - 0.5) if self.training else x.round().clamp(-128.0, 127.0)
";

/// The code that a decoder sees of `xs`.
pub(crate) fn quantize(xs: &Tensor, train: bool) -> Tensor {
    if train { xs + (xs.rand_like() - 0.5) } else { xs.round().clamp(-128.0, 127.0) }
}

impl Layer for Quantize {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        same(input)
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        "x = (x + (torch.rand_like(x) - 0.5)) if self.training else torch.clamp(torch.round(x), -128.0, 127.0)".into()
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        TorchModule::defined("Quantize", DEFINITION)
    }

    fn is_random(&self) -> bool {
        true
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Rounding)
    }
}

#[derive(Debug)]
struct Rounding;

impl ModuleT for Rounding {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        quantize(xs, train)
    }
}
