//! Layer normalisation, as `torch.nn.LayerNorm` (Ba, Kiros and Hinton, 2016), and over the channels of images, as
//! torchvision's `LayerNorm2d` (Liu et al., 2022).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{agrees, argument, image, not_negative, same, shown, yes};
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

/// Normalises the channels of `[C, H, W]` at each pixel by itself.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LayerNorm2d {
    /// The channels: inferred from the input; checked when given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalized_shape: Option<i64>,
    /// Added to the variance.
    #[serde(default = "eps")]
    #[schemars(range(min = 0))]
    pub eps: f64,
    /// Whether there is a learnable scale (and shift) per channel.
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

    fn norm(&self, path: &nn::Path, input: &[i64]) -> Norm {
        let shape = self.shape(input);
        let weight = self.elementwise_affine.then(|| path.ones("weight", &shape));
        let bias = (self.elementwise_affine && self.bias).then(|| path.zeros("bias", &shape));
        Norm { shape, weight, bias, eps: self.eps }
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
        Box::new(self.norm(path, input))
    }
}

const DEFINITION: &str = "\
class LayerNorm2d(nn.LayerNorm):
    \"\"\"Normalises the channels at each pixel by itself.\"\"\"

    def forward(self, x):
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)
";

impl LayerNorm2d {
    /// What it is between the two permutations.
    fn inner(&self) -> LayerNorm {
        let &Self { eps, elementwise_affine, bias, .. } = self;
        LayerNorm { normalized_shape: None, eps, elementwise_affine, bias }
    }
}

impl Layer for LayerNorm2d {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let [channels, ..] = image(input)?;
        agrees("normalized_shape", self.normalized_shape, channels)?;
        not_negative("eps", self.eps)?;
        same(input)
    }

    fn params(&self, input: &[i64]) -> Vec<Param> {
        self.inner().params(&input[..1])
    }

    fn torchscript(&self, input: &[i64]) -> String {
        let inner = self.inner().torchscript(&input[..1]);
        format!("x = torch.permute(x, [0, 2, 3, 1])\n{inner}\nx = torch.permute(x, [0, 3, 1, 2])")
    }

    fn torch_module(&self, input: &[i64]) -> TorchModule {
        TorchModule::defined("LayerNorm2d", DEFINITION)
            .with("normalized_shape", input[0])
            .or("eps", self.eps, eps())
            .or("elementwise_affine", self.elementwise_affine, true)
            .or("bias", self.bias, true)
    }

    fn build(&self, path: &nn::Path, input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Norm2d(self.inner().norm(path, &input[..1])))
    }
}

#[derive(Debug)]
struct Norm2d(Norm);

impl Module for Norm2d {
    fn forward(&self, xs: &Tensor) -> Tensor {
        self.0.forward(&xs.permute([0, 2, 3, 1])).permute([0, 3, 1, 2])
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
