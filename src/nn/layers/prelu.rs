//! Leaky ReLU with a learned slope, as `torch.nn.PReLU` (He et al., 2015).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{argument, same};
use super::channels::{self, ChannelFlow, Kept};
use super::{Layer, LayerSpec, Param, ParamKind, Shape, ShapeError, TorchModule};

/// One slope for all, or one per channel.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Prelu {
    /// 1 for all channels, or the number of channels.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub num_parameters: i64,
    /// Initial slope.
    #[serde(default = "quarter")]
    pub init: f64,
}

fn one() -> i64 {
    1
}

fn quarter() -> f64 {
    0.25
}

impl Layer for Prelu {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let channels = input[0];
        if self.num_parameters != 1 && self.num_parameters != channels {
            let message =
                format!("{} is neither 1 nor the {channels} channels of the input", self.num_parameters);
            return Err(argument("num_parameters", message));
        }
        if !self.init.is_finite() {
            return Err(argument("init", format!("{} is not a finite number", self.init)));
        }
        same(input)
    }

    fn params(&self, _input: &[i64]) -> Vec<Param> {
        vec![Param::new("weight", [self.num_parameters], ParamKind::Norm)]
    }

    fn channel_flow(&self, input: &[i64]) -> ChannelFlow {
        ChannelFlow::each(input[0])
    }

    fn with_channels(&self, _input: &[i64], kept: Kept) -> Option<LayerSpec> {
        let num_parameters = if self.num_parameters == 1 { 1 } else { channels::count(kept.outputs) };
        Some(LayerSpec::Prelu(Self { num_parameters, ..self.clone() }))
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        "x = torch.prelu(x, self.weight)".into()
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        TorchModule::new("nn.PReLU").or("num_parameters", self.num_parameters, one()).or(
            "init",
            self.init,
            quarter(),
        )
    }

    fn build(&self, path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Slope(path.var("weight", &[self.num_parameters], nn::Init::Const(self.init))))
    }
}

#[derive(Debug)]
struct Slope(Tensor);

impl Module for Slope {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.prelu(&self.0)
    }
}
