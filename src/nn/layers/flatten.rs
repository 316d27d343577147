//! Flattening, as `torch.nn.Flatten`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{argument, shown, size};
use super::channels::ChannelFlow;
use super::{Layer, Shape, ShapeError, TorchModule};

/// Joins the dimensions from `start_dim` to `end_dim`, counted with the batch as 0.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Flatten {
    /// The first dimension that is joined; the batch is 0.
    #[serde(default = "first")]
    pub start_dim: i64,
    /// The last dimension that is joined; -1 is the last of all.
    #[serde(default = "last")]
    pub end_dim: i64,
}

fn first() -> i64 {
    1
}

fn last() -> i64 {
    -1
}

/// A dimension counted with the batch as 0, or from the end, as an index into a shape without the batch.
pub(super) fn axis(name: &'static str, dim: i64, input: &[i64]) -> Result<usize, ShapeError> {
    let rank = input.len() as i64;
    let index = if dim < 0 { dim.saturating_add(rank) } else { dim - 1 };
    if (0..rank).contains(&index) {
        return Ok(index as usize);
    }
    let got = shown(input);
    Err(argument(
        name,
        format!("{dim} is no dimension of {got}: 1 is the first (0 is the batch), -1 the last"),
    ))
}

impl Layer for Flatten {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let (start, end) = (axis("start_dim", self.start_dim, input)?, axis("end_dim", self.end_dim, input)?);
        if start > end {
            return Err(argument(
                "start_dim",
                format!("{} comes after end_dim, {}", self.start_dim, self.end_dim),
            ));
        }
        let joined =
            input[start..=end].iter().fold(1i128, |product, extent| product.saturating_mul((*extent).into()));
        Ok([&input[..start], &[size(joined)], &input[end + 1..]].concat())
    }

    fn channel_flow(&self, input: &[i64]) -> ChannelFlow {
        let joined = match [self.start_dim, self.end_dim].map(|dim| axis("", dim, input)) {
            [Ok(0), Ok(end)] => input[1..=end].iter().product::<i64>(),
            _ => 1,
        };
        ChannelFlow::map(input[0] * joined, |output| output / joined as usize)
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        format!("x = torch.flatten(x, {}, {})", self.start_dim, self.end_dim)
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        TorchModule::new("nn.Flatten").or("start_dim", self.start_dim, first()).or(
            "end_dim",
            self.end_dim,
            last(),
        )
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Join { start: self.start_dim, end: self.end_dim })
    }
}

#[derive(Debug)]
struct Join {
    start: i64,
    end: i64,
}

impl Module for Join {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.flatten(self.start, self.end)
    }
}
