//! A factor: a number, as in residual scaling (Szegedy et al., 2016), or a learned tensor, as ConvNeXt's layer
//! scale (Touvron et al., 2021) and NAFNet's β and γ (Chen et al., 2022).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{argument, in_range, same, shown};
use super::channels::{self, ChannelFlow, Kept};
use super::{Arg, Layer, LayerSpec, Param, ParamKind, Shape, ShapeError, TorchModule, init};

/// Multiplies by a number (`value`), or by a learned tensor (`parameter`).
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// The number; give this or `parameter`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// The name of the learned tensor, such as `layer_scale`. It belongs to the module around the layer
    /// where the layer's own name begins with `_`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// The shape of the learned tensor, which must broadcast to `[N, C, H, W]`: `[C, 1, 1]` (when absent),
    /// `[1, C, 1, 1]`, `[1]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shape: Option<Vec<i64>>,
    /// What the learned tensor begins with.
    #[serde(default = "unit")]
    pub init: f64,
}

fn unit() -> f64 {
    1.0
}

const DEFINITION: &str = "\
class Scale(nn.Module):
    \"\"\"Multiplies by a number.\"\"\"

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return x * self.value
";

impl Scale {
    /// The shape of the learned tensor.
    fn shape(&self, input: &[i64]) -> Vec<i64> {
        self.shape.clone().unwrap_or_else(|| {
            let ones = input.iter().skip(1).map(|_| 1);
            input.iter().take(1).copied().chain(ones).collect()
        })
    }

    /// The dimension of a given shape that counts the channels, where it is the only one of several values.
    fn channel_dim(&self, input: &[i64]) -> Option<usize> {
        let shape = self.shape.as_ref()?;
        let dim = shape.len().checked_sub(input.len())?;
        let is_only = (0..shape.len()).all(|other| other == dim || shape[other] == 1);
        (is_only && shape[dim] == input[0]).then_some(dim)
    }

    fn check_shape(&self, input: &[i64]) -> Result<(), ShapeError> {
        let shape = self.shape(input);
        let trailing = match shape.as_slice() {
            [1, rest @ ..] if rest.len() == input.len() => rest,
            all => all,
        };
        let is_within = trailing.len() <= input.len();
        let fits = |(size, extent): (&i64, &i64)| *size == 1 || size == extent;
        if is_within && trailing.iter().rev().zip(input.iter().rev()).all(fits) {
            return shape.iter().try_for_each(|size| in_range("shape", *size, 1));
        }
        let (shape, input) = (shown(&shape), shown(input));
        Err(argument(
            "shape",
            format!(
                "{shape} does not broadcast to the samples, {input}: each size must be 1 or theirs, counted from the last"
            ),
        ))
    }
}

impl Layer for Scale {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let finite = |name, value: f64| match value.is_finite() {
            true => Ok(()),
            false => Err(argument(name, format!("{value} is not a finite number"))),
        };
        match (self.value, &self.parameter) {
            (Some(value), None) => {
                finite("value", value)?;
                if self.shape.is_some() {
                    return Err(argument("shape", "goes with `parameter` only: a number has none"));
                }
            }
            (None, Some(name)) => {
                let is_word = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
                if !is_word || !name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_') {
                    let message =
                        format!("`{name}` is no name: expected letters, digits and `_`, a digit not first");
                    return Err(argument("parameter", message));
                }
                finite("init", self.init)?;
                self.check_shape(input)?;
            }
            (None, None) => {
                return Err(argument(
                    "value",
                    "is missing: give the number, or the name of a learned `parameter`",
                ));
            }
            (Some(_), Some(_)) => {
                return Err(argument(
                    "value",
                    "cannot go with `parameter`, which begins with `init`: leave one of them out",
                ));
            }
        }
        same(input)
    }

    fn params(&self, input: &[i64]) -> Vec<Param> {
        let parameter = self.parameter.iter();
        parameter.map(|name| Param::new(name, self.shape(input), ParamKind::Norm)).collect()
    }

    fn is_bare_parameter(&self) -> bool {
        self.parameter.is_some()
    }

    fn channel_flow(&self, input: &[i64]) -> ChannelFlow {
        match (&self.parameter, &self.shape) {
            (Some(name), None) => ChannelFlow::scaled(input[0], Some(name)),
            (Some(_), Some(shape))
                if self.channel_dim(input).is_none() && shape.iter().any(|size| *size > 1) =>
            {
                ChannelFlow::Opaque
            }
            _ => ChannelFlow::each(input[0]),
        }
    }

    fn with_channels(&self, input: &[i64], kept: Kept) -> Option<LayerSpec> {
        let dim = self.channel_dim(input)?;
        let mut shape = self.shape(input);
        shape[dim] = channels::count(kept.outputs);
        Some(LayerSpec::Scale(Self { shape: Some(shape), ..self.clone() }))
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        match &self.parameter {
            Some(name) => format!("x = x * self.{name}"),
            None => format!("x = x * {:?}", self.value.unwrap_or(1.0)),
        }
    }

    fn torch_module(&self, input: &[i64]) -> TorchModule {
        if self.parameter.is_none() {
            return TorchModule::defined("Scale", DEFINITION).with("value", self.value.unwrap_or(1.0));
        }
        let sizes: Vec<_> = self.shape(input).iter().map(|size| format!("{size},")).collect();
        let size = match sizes.as_slice() {
            [one] => format!("({one})"),
            sizes => format!("({})", sizes.join(" ").trim_end_matches(',')),
        };
        let mut twin = TorchModule::new("torch.full").within("nn.Parameter", "");
        twin.args.push(Arg { name: "size", value: size, default: None });
        twin.with("fill_value", self.init)
    }

    fn build(&self, path: &nn::Path, input: &[i64]) -> Box<dyn ModuleT> {
        let Some(name) = &self.parameter else {
            return Box::new(Factor::Number(self.value.unwrap_or(1.0)));
        };
        let tensor = path.var(name, &self.shape(input), nn::Init::Const(0.0));
        init::fill(&tensor, |drawn| {
            let _ = drawn.fill_(self.init);
        });
        Box::new(Factor::Learned(tensor))
    }
}

#[derive(Debug)]
enum Factor {
    Number(f64),
    Learned(Tensor),
}

impl Module for Factor {
    fn forward(&self, xs: &Tensor) -> Tensor {
        match self {
            Self::Number(value) => xs * *value,
            Self::Learned(tensor) => xs * tensor,
        }
    }
}
