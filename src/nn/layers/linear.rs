//! Fully connected layer, as `torch.nn.Linear`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{agrees, count, in_range, same, yes};
use super::channels::{self, ChannelFlow, Kept};
use super::{Layer, LayerSpec, Param, ParamKind, Shape, ShapeError, TorchModule, init};
use crate::libtorch::{kernels, or_panic};
use crate::nn::layers::codegen::tensor;

/// `[F]` to `[out_features]`; with `in_features` also `[…, F]` to `[…, out_features]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Linear {
    /// Inferred from the input `[F]`; checked when given. Input of more dimensions, as behind a `permute`, wants it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_features: Option<i64>,
    /// Features of the output.
    #[schemars(range(min = 1))]
    pub out_features: i64,
    /// Whether there is a learnable bias.
    #[serde(default = "yes")]
    pub bias: bool,
}

/// The last dimension.
fn features(input: &[i64]) -> i64 {
    input.last().copied().unwrap_or(1)
}

impl Layer for Linear {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let Some((&features, before)) = input.split_last() else { return same(input) };
        if !before.is_empty() && self.in_features.is_none() {
            // Not inferred: a forgotten `flatten` would be another network.
            let remedy = format!(
                "put `flatten` before it, or say `in_features: {features}` for the last dimension alone"
            );
            return Err(ShapeError::Input { wants: "[F]".into(), remedy });
        }
        agrees("in_features", self.in_features, features)?;
        in_range("out_features", self.out_features, 1)?;
        Ok([before, &[self.out_features]].concat())
    }

    fn params(&self, input: &[i64]) -> Vec<Param> {
        let mut params = vec![Param::new("weight", [self.out_features, features(input)], ParamKind::Weight)];
        if self.bias {
            params.push(Param::new("bias", [self.out_features], ParamKind::Bias));
        }
        params
    }

    fn multiply_adds(&self, input: &[i64], output: &[i64]) -> u64 {
        count(&[&[features(input)], output].concat())
    }

    fn channel_flow(&self, input: &[i64]) -> ChannelFlow {
        match input {
            [_] => ChannelFlow::Sum { output_dim: 0, input_dim: 1, is_uniform: true },
            _ => ChannelFlow::Opaque,
        }
    }

    fn with_channels(&self, _input: &[i64], kept: Kept) -> Option<LayerSpec> {
        let out_features = channels::count(kept.outputs);
        Some(LayerSpec::Linear(Self { in_features: None, out_features, ..self.clone() }))
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        format!("x = torch.linear(x, self.weight, {})", tensor("bias", self.bias))
    }

    fn torch_module(&self, input: &[i64]) -> TorchModule {
        TorchModule::new("nn.Linear")
            .with("in_features", features(input))
            .with("out_features", self.out_features)
            .or("bias", self.bias, true)
    }

    fn build(&self, path: &nn::Path, input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(self.build_with_relu(path, input, false))
    }
}

impl Linear {
    /// The linear map of `xs` by weights `[out_features, in_features]`.
    pub(super) fn apply(xs: &Tensor, ws: &Tensor, bs: Option<&Tensor>) -> Tensor {
        or_panic(kernels::linear::linear(xs, ws, bs, false)).unwrap_or_else(|| xs.linear(ws, bs))
    }

    /// With the ReLU after it, where there is one.
    pub(crate) fn build_with_relu(&self, path: &nn::Path, input: &[i64], relu: bool) -> LinearRelu {
        let zeros = nn::Init::Const(0.0);
        let config = nn::LinearConfig { ws_init: zeros, bs_init: Some(zeros), bias: self.bias };
        let linear = nn::linear(path, features(input), self.out_features, config);
        init::reset_parameters(&linear.ws, linear.bs.as_ref());
        LinearRelu { linear, relu }
    }
}

#[derive(Debug)]
pub(crate) struct LinearRelu {
    linear: nn::Linear,
    relu: bool,
}

impl Module for LinearRelu {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let nn::Linear { ws, bs } = &self.linear;
        if let Some(ys) = or_panic(kernels::linear::linear(xs, ws, bs.as_ref(), self.relu)) {
            return ys;
        }
        let mut ys = self.linear.forward(xs);
        // In place: no gradient needs what it overwrites.
        if self.relu { ys.relu_() } else { ys }
    }
}
