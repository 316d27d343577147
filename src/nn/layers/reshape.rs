//! Other views of the same values: `reshape` of a whole sample, and `torch.nn.Unflatten` of one dimension.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{argument, in_range, shown, size};
use super::flatten::axis;
use super::{Layer, Shape, ShapeError, TorchModule};
use crate::nn::layers::codegen::Arg;

/// The sample in another shape; one size may be -1, which is inferred.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reshape {
    /// The shape of the output without the batch dimension.
    pub shape: Vec<i64>,
}

/// Splits the dimension `dim` (the batch is 0) into several; one size may be -1, which is inferred.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Unflatten {
    /// The dimension that is split.
    #[serde(default = "first")]
    pub dim: i64,
    /// The sizes it is split into.
    pub unflattened_size: Vec<i64>,
}

fn first() -> i64 {
    1
}

/// `sizes` with its -1 replaced so that they hold `total` values.
fn fit(name: &'static str, sizes: &[i64], total: i128) -> Result<Shape, ShapeError> {
    if sizes.is_empty() || sizes.len() > 8 {
        return Err(argument(name, format!("has {} sizes: expected 1 to 8", sizes.len())));
    }
    let open = sizes.iter().filter(|size| **size == -1).count();
    if open > 1 {
        return Err(argument(name, "only one size can be -1"));
    }
    sizes.iter().filter(|size| **size != -1).try_for_each(|size| in_range(name, *size, 1))?;
    let known = sizes
        .iter()
        .filter(|size| **size != -1)
        .fold(1i128, |product, size| product.saturating_mul((*size).into()));
    if total % known != 0 || (open == 0 && known != total) {
        return Err(argument(
            name,
            format!("{} does not hold the {total} values that come in", shown(sizes)),
        ));
    }
    Ok(sizes.iter().map(|extent| if *extent == -1 { size(total / known) } else { *extent }).collect())
}

const RESHAPE: &str = "\
class Reshape(nn.Module):
    \"\"\"Each sample in another shape.\"\"\"

    def __init__(self, shape):
        super().__init__()
        self.shape = list(shape)

    def forward(self, x):
        return x.reshape([x.size(0)] + self.shape)
";

impl Layer for Reshape {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let total = input.iter().fold(1i128, |product, extent| product.saturating_mul((*extent).into()));
        fit("shape", &self.shape, total)
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        let sizes: Vec<_> = self.shape.iter().map(i64::to_string).collect();
        format!("x = torch.reshape(x, [x.size(0), {}])", sizes.join(", "))
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        TorchModule::defined("Reshape", RESHAPE).with("shape", self.shape.as_slice())
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(View(self.shape.clone()))
    }
}

impl Layer for Unflatten {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let at = axis("dim", self.dim, input)?;
        let split = fit("unflattened_size", &self.unflattened_size, input[at].into())?;
        Ok([&input[..at], &split, &input[at + 1..]].concat())
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        format!("x = torch.unflatten(x, {}, {:?})", self.dim, self.unflattened_size)
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        // torch.nn wants a tuple here.
        let sizes: Vec<_> = self.unflattened_size.iter().map(|size| format!("{size},")).collect();
        let mut twin = TorchModule::new("nn.Unflatten").with("dim", self.dim);
        let value = format!("({})", sizes.join(" "));
        twin.args.push(Arg { name: "unflattened_size", value, default: None });
        twin
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Split { dim: self.dim, sizes: self.unflattened_size.clone() })
    }
}

#[derive(Debug)]
struct View(Vec<i64>);

impl Module for View {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let batch = xs.size().first().copied().unwrap_or(1);
        xs.reshape([&[batch], self.0.as_slice()].concat())
    }
}

#[derive(Debug)]
struct Split {
    dim: i64,
    sizes: Vec<i64>,
}

impl Module for Split {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.unflatten(self.dim, &self.sizes)
    }
}
