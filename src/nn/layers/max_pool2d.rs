//! Max pooling, as `torch.nn.MaxPool2d`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{Pair, argument, image, one_by_one, pair_in_range, shown, size, too_large, zero_by_zero};
use super::channels::ChannelFlow;
use super::{Layer, Shape, ShapeError, TorchModule};
use crate::nn::layers::codegen::Literal;

/// `[C, H, W]` to `[C, H', W']`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MaxPool2d {
    /// Size of the window.
    pub kernel_size: Pair,
    /// Step of the window; the kernel size when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stride: Option<Pair>,
    /// Negative infinity on both sides.
    #[serde(default = "zero_by_zero")]
    pub padding: Pair,
    /// Distance between the elements of the window.
    #[serde(default = "one_by_one")]
    pub dilation: Pair,
    /// Round the output size up.
    #[serde(default)]
    pub ceil_mode: bool,
}

/// The window of a pooling layer: PyTorch's rule for both max and average.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub kernel_size: Pair,
    pub stride: Pair,
    pub padding: Pair,
    pub dilation: Pair,
    pub ceil_mode: bool,
}

impl Window {
    pub fn output(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let [channels, height, width] = image(input)?;
        pair_in_range("kernel_size", self.kernel_size, 1)?;
        pair_in_range("stride", self.stride, 1)?;
        pair_in_range("padding", self.padding, 0)?;
        pair_in_range("dilation", self.dilation, 1)?;
        for axis in [0, 1] {
            let (pad, kernel) = (self.padding.0[axis], self.kernel_size.0[axis]);
            if pad > kernel / 2 {
                let message = format!("{pad} is more than half of the kernel size, {kernel}");
                return Err(argument("padding", message));
            }
        }
        match (self.extent(0, height), self.extent(1, width)) {
            (Some(h), Some(w)) => Ok(vec![channels, size(h), size(w)]),
            _ => {
                let padded =
                    |axis: usize, extent: i64| i128::from(extent) + 2 * i128::from(self.padding.0[axis]);
                Err(too_large(self.kernel_size, self.dilation, [padded(0, height), padded(1, width)]))
            }
        }
    }

    fn extent(&self, axis: usize, input: i64) -> Option<i128> {
        let wide = |pair: Pair| i128::from(pair.0[axis]);
        let (stride, padding, input) = (wide(self.stride), wide(self.padding), i128::from(input));
        let free = input + 2 * padding - wide(self.dilation) * (wide(self.kernel_size) - 1) - 1;
        let round = if self.ceil_mode { stride - 1 } else { 0 };
        let mut out = (free + round).div_euclid(stride) + 1;
        // The last window must start inside the image or its near padding.
        if self.ceil_mode && (out - 1) * stride >= input + padding {
            out -= 1;
        }
        (out >= 1).then_some(out)
    }
}

impl MaxPool2d {
    fn window(&self) -> Window {
        Window {
            kernel_size: self.kernel_size,
            stride: self.stride.unwrap_or(self.kernel_size),
            padding: self.padding,
            dilation: self.dilation,
            ceil_mode: self.ceil_mode,
        }
    }
}

impl Layer for MaxPool2d {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        self.window().output(input)
    }

    fn channel_flow(&self, input: &[i64]) -> ChannelFlow {
        ChannelFlow::each(input[0])
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        let w = self.window();
        let [kernel, stride, padding, dilation] =
            [w.kernel_size, w.stride, w.padding, w.dilation].map(|pair| shown(&pair.0));
        let ceil = w.ceil_mode.literal();
        format!("x = torch.max_pool2d(x, {kernel}, {stride}, {padding}, {dilation}, {ceil})")
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        TorchModule::new("nn.MaxPool2d")
            .with("kernel_size", self.kernel_size)
            .or("stride", self.stride, None)
            .or("padding", self.padding, zero_by_zero())
            .or("dilation", self.dilation, one_by_one())
            .or("ceil_mode", self.ceil_mode, false)
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Pool(self.window()))
    }
}

#[derive(Debug)]
struct Pool(Window);

impl Module for Pool {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let w = &self.0;
        xs.max_pool2d(w.kernel_size.0, w.stride.0, w.padding.0, w.dilation.0, w.ceil_mode)
    }
}
