//! Layer normalisation, as `torch.nn.LayerNorm` (Ba, Kiros and Hinton, 2016).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{argument, not_negative, same, shown, yes};
use super::{Layer, Param, ParamKind, Shape, ShapeError, TorchModule};
use crate::nn::layers::codegen::tensor;

/// Normalises the trailing dimensions of each sample.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LayerNorm {
    /// The trailing dimensions, as an integer or a list; the whole sample when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalized_shape: Option<Sizes>,
    /// Added to the variance.
    #[serde(default = "eps")]
    #[schemars(range(min = 0))]
    pub eps: f64,
    /// Whether there is a learnable scale (and shift) per element.
    #[serde(default = "yes")]
    pub elementwise_affine: bool,
    /// Whether there is a learnable shift.
    #[serde(default = "yes")]
    pub bias: bool,
}

/// One size, or a list of sizes.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "expected an integer or a list of integers")]
pub enum Sizes {
    One(i64),
    Many(Vec<i64>),
}

fn eps() -> f64 {
    1e-5
}

impl LayerNorm {
    fn shape(&self, input: &[i64]) -> Vec<i64> {
        match &self.normalized_shape {
            None => input.to_vec(),
            Some(Sizes::One(size)) => vec![*size],
            Some(Sizes::Many(sizes)) => sizes.clone(),
        }
    }
}

impl Layer for LayerNorm {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        not_negative("eps", self.eps)?;
        let shape = self.shape(input);
        if shape.is_empty() || !input.ends_with(&shape) {
            let (wanted, got) = (shown(&shape), shown(input));
            return Err(argument(
                "normalized_shape",
                format!(
                    "{wanted} is not how the input {got} ends; leave it out to normalise the whole sample"
                ),
            ));
        }
        same(input)
    }

    fn params(&self, input: &[i64]) -> Vec<Param> {
        let shape = self.shape(input);
        let mut params = Vec::new();
        if self.elementwise_affine {
            params.push(Param::new("weight", shape.clone(), ParamKind::Norm));
            if self.bias {
                params.push(Param::new("bias", shape, ParamKind::Bias));
            }
        }
        params
    }

    fn torchscript(&self, input: &[i64]) -> String {
        let weight = tensor("weight", self.elementwise_affine);
        let bias = tensor("bias", self.elementwise_affine && self.bias);
        format!("x = torch.layer_norm(x, {:?}, {weight}, {bias}, {:?}, True)", self.shape(input), self.eps)
    }

    fn torch_module(&self, input: &[i64]) -> TorchModule {
        TorchModule::new("nn.LayerNorm")
            .with("normalized_shape", self.shape(input).as_slice())
            .or("eps", self.eps, eps())
            .or("elementwise_affine", self.elementwise_affine, true)
            .or("bias", self.bias, true)
    }

    fn build(&self, path: &nn::Path, input: &[i64]) -> Box<dyn ModuleT> {
        let shape = self.shape(input);
        let weight = self.elementwise_affine.then(|| path.ones("weight", &shape));
        let bias = (self.elementwise_affine && self.bias).then(|| path.zeros("bias", &shape));
        Box::new(Norm { shape, weight, bias, eps: self.eps })
    }
}

/// tch's own has no scale without shift.
#[derive(Debug)]
struct Norm {
    shape: Vec<i64>,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
    eps: f64,
}

impl Module for Norm {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.layer_norm(&self.shape, self.weight.as_ref(), self.bias.as_ref(), self.eps, true)
    }
}
