//! Group normalisation, as `torch.nn.GroupNorm` (Wu and He, 2018).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn::{self, ModuleT};

use super::args::{agrees, argument, in_range, not_negative, same, yes};
use super::{Layer, Param, ParamKind, Shape, ShapeError, TorchModule};
use crate::nn::layers::codegen::tensor;

/// Normalises groups of channels of `[C, ...]` within each sample.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupNorm {
    /// Number of groups; divides the channels.
    #[schemars(range(min = 1))]
    pub num_groups: i64,
    /// Inferred from the input; checked when given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_channels: Option<i64>,
    /// Added to the variance.
    #[serde(default = "eps")]
    #[schemars(range(min = 0))]
    pub eps: f64,
    /// Whether there is a learnable scale and shift per channel.
    #[serde(default = "yes")]
    pub affine: bool,
}

fn eps() -> f64 {
    1e-5
}

impl Layer for GroupNorm {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        agrees("num_channels", self.num_channels, input[0])?;
        not_negative("eps", self.eps)?;
        in_range("num_groups", self.num_groups, 1)?;
        if input[0] % self.num_groups != 0 {
            let message = format!("{} does not divide the {} channels", self.num_groups, input[0]);
            return Err(argument("num_groups", message));
        }
        same(input)
    }

    fn params(&self, input: &[i64]) -> Vec<Param> {
        if !self.affine {
            return Vec::new();
        }
        vec![
            Param::new("weight", [input[0]], ParamKind::Norm),
            Param::new("bias", [input[0]], ParamKind::Bias),
        ]
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        let [weight, bias] = ["weight", "bias"].map(|name| tensor(name, self.affine));
        format!("x = torch.group_norm(x, {}, {weight}, {bias}, {:?}, True)", self.num_groups, self.eps)
    }

    fn torch_module(&self, input: &[i64]) -> TorchModule {
        TorchModule::new("nn.GroupNorm")
            .with("num_groups", self.num_groups)
            .with("num_channels", input[0])
            .or("eps", self.eps, eps())
            .or("affine", self.affine, true)
    }

    fn build(&self, path: &nn::Path, input: &[i64]) -> Box<dyn ModuleT> {
        let config = nn::GroupNormConfig {
            cudnn_enabled: true,
            eps: self.eps,
            affine: self.affine,
            ws_init: nn::Init::Const(1.0),
            bs_init: nn::Init::Const(0.0),
        };
        Box::new(nn::group_norm(path, self.num_groups, input[0], config))
    }
}
