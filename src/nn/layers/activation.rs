//! Layers that are pure functions of their input, without parameters; arguments as in `torch.nn`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn::{self, Module, ModuleT};
use tch::{Kind, Tensor};

use super::args::{argument, same, shown};
use super::channels::ChannelFlow;
use super::{Layer, Shape, ShapeError, TorchModule};
use crate::nn::layers::codegen::Literal;

/// Keeps the shape of its input.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Activation {
    /// `torch.nn.Identity`.
    Identity {},
    /// `torch.nn.ReLU`: max(0, x).
    Relu {},
    /// `torch.nn.ReLU6`: min(max(0, x), 6).
    Relu6 {},
    /// `torch.nn.LeakyReLU`.
    LeakyRelu {
        /// Slope for negative inputs.
        #[serde(default = "slope")]
        negative_slope: f64,
    },
    /// `torch.nn.ELU`: α·(exp(x) − 1) for negative inputs.
    Elu {
        /// α.
        #[serde(default = "unit")]
        alpha: f64,
    },
    /// `torch.nn.SELU`.
    Selu {},
    /// `torch.nn.GELU`.
    Gelu {
        /// Exact, or the approximation by tanh.
        #[serde(default)]
        approximate: Approximate,
    },
    /// `torch.nn.SiLU`: x·sigmoid(x).
    Silu {},
    /// `torch.nn.Mish`.
    Mish {},
    /// `torch.nn.Sigmoid`.
    Sigmoid {},
    /// `torch.nn.Tanh`.
    Tanh {},
    /// `torch.nn.Softplus`: log(1 + exp(βx))/β.
    Softplus {
        /// β.
        #[serde(default = "unit")]
        beta: f64,
    },
    /// `torch.nn.Hardswish`.
    Hardswish {},
    /// `torch.nn.Hardsigmoid`.
    Hardsigmoid {},
    /// `torch.nn.Hardtanh`: x limited to an interval.
    Hardtanh {
        /// The smallest output.
        #[serde(default = "minus_unit")]
        min_val: f64,
        /// The largest output.
        #[serde(default = "unit")]
        max_val: f64,
    },
    /// `torch.nn.Softmax`.
    Softmax {
        /// The dimension that sums to 1; the batch is 0.
        #[serde(default = "channels")]
        dim: i64,
    },
    /// `torch.nn.LogSoftmax`.
    LogSoftmax {
        /// The dimension whose exponentials sum to 1; the batch is 0.
        #[serde(default = "channels")]
        dim: i64,
    },
}

/// How GELU is computed.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Approximate {
    #[default]
    None,
    Tanh,
}

impl Approximate {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tanh => "tanh",
        }
    }
}

fn slope() -> f64 {
    0.01
}

fn unit() -> f64 {
    1.0
}

fn minus_unit() -> f64 {
    -1.0
}

fn channels() -> i64 {
    1
}

impl Activation {
    pub(super) const KINDS: &[&str] = &[
        "elu",
        "gelu",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "identity",
        "leaky_relu",
        "log_softmax",
        "mish",
        "relu",
        "relu6",
        "selu",
        "sigmoid",
        "silu",
        "softmax",
        "softplus",
        "tanh",
    ];

    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Identity {} => "identity",
            Self::Relu {} => "relu",
            Self::Relu6 {} => "relu6",
            Self::LeakyRelu { .. } => "leaky_relu",
            Self::Elu { .. } => "elu",
            Self::Selu {} => "selu",
            Self::Gelu { .. } => "gelu",
            Self::Silu {} => "silu",
            Self::Mish {} => "mish",
            Self::Sigmoid {} => "sigmoid",
            Self::Tanh {} => "tanh",
            Self::Softplus { .. } => "softplus",
            Self::Hardswish {} => "hardswish",
            Self::Hardsigmoid {} => "hardsigmoid",
            Self::Hardtanh { .. } => "hardtanh",
            Self::Softmax { .. } => "softmax",
            Self::LogSoftmax { .. } => "log_softmax",
        }
    }
}

impl Layer for Activation {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let finite = |name, value: f64| match value.is_finite() {
            true => Ok(()),
            false => Err(argument(name, format!("{value} is not a finite number"))),
        };
        match *self {
            Self::LeakyRelu { negative_slope } => finite("negative_slope", negative_slope)?,
            Self::Elu { alpha } => finite("alpha", alpha)?,
            Self::Softplus { beta } if !(beta > 0.0 && beta.is_finite()) => {
                return Err(argument(
                    "beta",
                    format!("{beta} is out of range: expected a finite number above 0"),
                ));
            }
            Self::Hardtanh { min_val, max_val } => {
                finite("min_val", min_val)?;
                finite("max_val", max_val)?;
                if min_val >= max_val {
                    return Err(argument("max_val", format!("{max_val} must be above min_val, {min_val}")));
                }
            }
            Self::Softmax { dim } | Self::LogSoftmax { dim } => {
                let rank = input.len() as i64;
                if !(1..=rank).contains(&dim) && dim != -1 {
                    let got = shown(input);
                    let message = format!(
                        "{dim} is no dimension of {got}: 1 is the first (0 is the batch), -1 the last"
                    );
                    return Err(argument("dim", message));
                }
            }
            _ => {}
        }
        same(input)
    }

    fn channel_flow(&self, input: &[i64]) -> ChannelFlow {
        match self {
            Self::Softmax { .. } | Self::LogSoftmax { .. } => ChannelFlow::Opaque,
            _ => ChannelFlow::each(input[0]),
        }
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        match *self {
            Self::Identity {} => String::new(),
            Self::LeakyRelu { negative_slope } => format!("x = torch.leaky_relu(x, {negative_slope:?})"),
            Self::Elu { alpha } => format!("x = torch.elu(x, {alpha:?})"),
            Self::Gelu { approximate } => {
                format!("x = torch.gelu(x, approximate={})", approximate.name().literal())
            }
            Self::Softplus { beta } => format!("x = torch.softplus(x, {beta:?})"),
            Self::Hardtanh { min_val, max_val } => format!("x = torch.clamp(x, {min_val:?}, {max_val:?})"),
            Self::Softmax { dim } => format!("x = torch.softmax(x, {dim})"),
            Self::LogSoftmax { dim } => format!("x = torch.log_softmax(x, {dim})"),
            // The others are called alike here and there, and have no arguments.
            _ => format!("x = torch.{}(x)", self.kind()),
        }
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        match *self {
            Self::Identity {} => TorchModule::new("nn.Identity"),
            Self::Relu {} => TorchModule::new("nn.ReLU"),
            Self::Relu6 {} => TorchModule::new("nn.ReLU6"),
            Self::LeakyRelu { negative_slope } => {
                TorchModule::new("nn.LeakyReLU").or("negative_slope", negative_slope, slope())
            }
            Self::Elu { alpha } => TorchModule::new("nn.ELU").or("alpha", alpha, unit()),
            Self::Selu {} => TorchModule::new("nn.SELU"),
            Self::Gelu { approximate } => {
                TorchModule::new("nn.GELU").or("approximate", approximate.name(), Approximate::None.name())
            }
            Self::Silu {} => TorchModule::new("nn.SiLU"),
            Self::Mish {} => TorchModule::new("nn.Mish"),
            Self::Sigmoid {} => TorchModule::new("nn.Sigmoid"),
            Self::Tanh {} => TorchModule::new("nn.Tanh"),
            Self::Softplus { beta } => TorchModule::new("nn.Softplus").or("beta", beta, unit()),
            Self::Hardswish {} => TorchModule::new("nn.Hardswish"),
            Self::Hardsigmoid {} => TorchModule::new("nn.Hardsigmoid"),
            Self::Hardtanh { min_val, max_val } => TorchModule::new("nn.Hardtanh")
                .or("min_val", min_val, minus_unit())
                .or("max_val", max_val, unit()),
            Self::Softmax { dim } => TorchModule::new("nn.Softmax").with("dim", dim),
            Self::LogSoftmax { dim } => TorchModule::new("nn.LogSoftmax").with("dim", dim),
        }
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(*self)
    }
}

impl Module for Activation {
    fn forward(&self, xs: &Tensor) -> Tensor {
        match *self {
            Self::Identity {} => xs.shallow_clone(),
            Self::Relu {} => xs.relu(),
            Self::Relu6 {} => xs.relu6(),
            // tch binds PyTorch's default only; prelu with a constant is the same function.
            Self::LeakyRelu { negative_slope } if negative_slope == slope() => xs.leaky_relu(),
            Self::LeakyRelu { negative_slope } => {
                xs.prelu(&Tensor::full([1], negative_slope, (xs.kind(), xs.device())))
            }
            Self::Elu { alpha: 1.0 } => xs.elu(),
            Self::Elu { alpha } => xs.clamp_min(0.0) + xs.clamp_max(0.0).expm1() * alpha,
            Self::Selu {} => xs.selu(),
            Self::Gelu { approximate: Approximate::None } => xs.gelu("none"),
            Self::Gelu { approximate: Approximate::Tanh } => xs.gelu("tanh"),
            Self::Silu {} => xs.silu(),
            Self::Mish {} => xs.mish(),
            Self::Sigmoid {} => xs.sigmoid(),
            Self::Tanh {} => xs.tanh(),
            Self::Softplus { beta: 1.0 } => xs.softplus(),
            Self::Softplus { beta } => (xs * beta).softplus() / beta,
            Self::Hardswish {} => xs.hardswish(),
            Self::Hardsigmoid {} => xs.hardsigmoid(),
            Self::Hardtanh { min_val, max_val } => xs.clamp(min_val, max_val),
            Self::Softmax { dim } => xs.softmax(dim, None::<Kind>),
            Self::LogSoftmax { dim } => xs.log_softmax(dim, None::<Kind>),
        }
    }
}
