//! Average pooling, as `torch.nn.AvgPool2d`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{Pair, in_range, one_by_one, yes, zero_by_zero};
use super::channels::ChannelFlow;
use super::max_pool2d::Window;
use super::{Layer, Shape, ShapeError, TorchModule};
use crate::nn::layers::codegen::Literal;

/// `[C, H, W]` to `[C, H', W']`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AvgPool2d {
    /// Size of the window.
    pub kernel_size: Pair,
    /// Step of the window; the kernel size when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stride: Option<Pair>,
    /// Zeros on both sides.
    #[serde(default = "zero_by_zero")]
    pub padding: Pair,
    /// Round the output size up.
    #[serde(default)]
    pub ceil_mode: bool,
    /// Whether the padding counts in the mean.
    #[serde(default = "yes")]
    pub count_include_pad: bool,
    /// Divide by this instead of the size of the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub divisor_override: Option<i64>,
}

impl AvgPool2d {
    fn window(&self) -> Window {
        Window {
            kernel_size: self.kernel_size,
            stride: self.stride.unwrap_or(self.kernel_size),
            padding: self.padding,
            dilation: one_by_one(),
            ceil_mode: self.ceil_mode,
        }
    }
}

impl Layer for AvgPool2d {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        if let Some(divisor) = self.divisor_override {
            in_range("divisor_override", divisor, 1)?;
        }
        self.window().output(input)
    }

    fn channel_flow(&self, input: &[i64]) -> ChannelFlow {
        ChannelFlow::each(input[0])
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        let w = self.window();
        let (kernel, stride, padding) = (w.kernel_size.0, w.stride.0, w.padding.0);
        let [ceil, count] = [w.ceil_mode, self.count_include_pad].map(|flag| flag.literal());
        let divisor = self.divisor_override.literal();
        format!("x = torch.avg_pool2d(x, {kernel:?}, {stride:?}, {padding:?}, {ceil}, {count}, {divisor})")
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        TorchModule::new("nn.AvgPool2d")
            .with("kernel_size", self.kernel_size)
            .or("stride", self.stride, None)
            .or("padding", self.padding, zero_by_zero())
            .or("ceil_mode", self.ceil_mode, false)
            .or("count_include_pad", self.count_include_pad, true)
            .or("divisor_override", self.divisor_override, None)
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Pool(self.clone()))
    }
}

#[derive(Debug)]
struct Pool(AvgPool2d);

impl Module for Pool {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let (spec, w) = (&self.0, self.0.window());
        xs.avg_pool2d(
            w.kernel_size.0,
            w.stride.0,
            w.padding.0,
            w.ceil_mode,
            spec.count_include_pad,
            spec.divisor_override,
        )
    }
}
