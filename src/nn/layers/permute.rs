//! Dimensions in another order, as `torchvision.ops.Permute`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{argument, shown};
use super::{Layer, Shape, ShapeError, TorchModule};

/// `[C, H, W]` to `[H, W, C]` by `dims: [0, 2, 3, 1]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Permute {
    /// The dimensions in their new order; the batch is 0 and stays the first.
    pub dims: Vec<i64>,
}

const DEFINITION: &str = "\
class Permute(nn.Module):
    \"\"\"The dimensions in the order `dims`.\"\"\"

    def __init__(self, dims):
        super().__init__()
        self.dims = dims

    def forward(self, x):
        return torch.permute(x, self.dims)
";

impl Layer for Permute {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let all: Vec<i64> = (0..=input.len() as i64).collect();
        let mut sorted = self.dims.clone();
        sorted.sort_unstable();
        if sorted != all || self.dims[0] != 0 {
            let (dims, all, got) = (shown(&self.dims), shown(&all), shown(input));
            let message =
                format!("{dims} is no order of {all}, the dimensions of {got} behind the batch, 0 first");
            return Err(argument("dims", message));
        }
        Ok(self.dims[1..].iter().map(|dim| input[*dim as usize - 1]).collect())
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        format!("x = torch.permute(x, {})", shown(&self.dims))
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        TorchModule::defined("Permute", DEFINITION).with("dims", self.dims.as_slice())
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Order(self.dims.clone()))
    }
}

#[derive(Debug)]
struct Order(Vec<i64>);

impl Module for Order {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.permute(&self.0)
    }
}
