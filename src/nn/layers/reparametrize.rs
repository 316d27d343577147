//! The bottleneck of a variational autoencoder: a draw from the distribution that the encoder describes
//! (Kingma & Welling 2014).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, ModuleT};

use super::args::shown;
use super::{Layer, Shape, ShapeError, TorchModule};

/// Means and log-variances `[2·Z, …]` to `[Z, …]`: a normal draw in training, the means in evaluation.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reparametrize {}

const DEFINITION: &str = "\
class Reparametrize(nn.Module):
    \"\"\"Means and log-variances to a normal draw in training, to the means in evaluation.\"\"\"

    def forward(self, x):
        mean, log_var = x.chunk(2, 1)
        return mean + torch.exp(0.5 * log_var) * torch.randn_like(mean) if self.training else mean
";

/// The means and the log-variances of `xs` `[N, 2·Z, …]`.
pub(crate) fn moments(xs: &Tensor) -> (Tensor, Tensor) {
    let half = xs.size().get(1).map_or(0, |width| width / 2);
    (xs.narrow(1, 0, half), xs.narrow(1, half, half))
}

/// A normal draw of the code that `xs` `[N, 2·Z, …]` describes.
pub(crate) fn draw(xs: &Tensor) -> Tensor {
    let (mean, log_var) = moments(xs);
    &mean + (log_var * 0.5).exp() * mean.randn_like()
}

impl Layer for Reparametrize {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        match input {
            [width, rest @ ..] if width % 2 == 0 => Ok([&[width / 2], rest].concat()),
            _ => Err(ShapeError::Input {
                wants: "as many means as log-variances, one behind the other".into(),
                remedy: format!("{} is odd; `concat` two layers of the same width", shown(input)),
            }),
        }
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        "mean, log_var = torch.chunk(x, 2, 1)\n\
         x = (mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)) if self.training else mean"
            .into()
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        TorchModule::defined("Reparametrize", DEFINITION)
    }

    fn is_random(&self) -> bool {
        true
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Drawing)
    }
}

#[derive(Debug)]
struct Drawing;

impl ModuleT for Drawing {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        if train { draw(xs) } else { moments(xs).0 }
    }
}
