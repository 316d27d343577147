//! 2-D transposed convolution, as `torch.nn.ConvTranspose2d`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{
    Pair, agrees, argument, count, groups_divide, image, in_range, one_by_one, pair_in_range, shown, size,
    yes, zero_by_zero,
};
use super::channels::{self, ChannelFlow, Kept};
use super::{Layer, LayerSpec, Param, ParamKind, Shape, ShapeError, TorchModule, init};
use crate::nn::layers::codegen::tensor;

/// `[C, H, W]` to
/// `[out_channels, (H-1)·stride - 2·padding + dilation·(kernel_size-1) + output_padding + 1, …]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConvTranspose2d {
    /// Inferred from the input; checked when given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_channels: Option<i64>,
    /// Channels of the output.
    #[schemars(range(min = 1))]
    pub out_channels: i64,
    /// Size of the kernel.
    pub kernel_size: Pair,
    /// Stride.
    #[serde(default = "one_by_one")]
    pub stride: Pair,
    /// Reduces the output by so many pixels on both sides.
    #[serde(default = "zero_by_zero")]
    pub padding: Pair,
    /// Enlarges the output by so many pixels on one side.
    #[serde(default = "zero_by_zero")]
    pub output_padding: Pair,
    /// Blocks of channels that are not connected with each other.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub groups: i64,
    /// Whether there is a learnable bias.
    #[serde(default = "yes")]
    pub bias: bool,
    /// Distance between the elements of the kernel.
    #[serde(default = "one_by_one")]
    pub dilation: Pair,
}

fn one() -> i64 {
    1
}

impl ConvTranspose2d {
    /// The transposed convolution of `xs` by other weights than its own.
    pub(super) fn apply(&self, xs: &Tensor, ws: &Tensor, bs: Option<&Tensor>) -> Tensor {
        let &Self { stride, padding, output_padding, groups, dilation, .. } = self;
        xs.conv_transpose2d(ws, bs, stride.0, padding.0, output_padding.0, groups, dilation.0)
    }

    fn extent(&self, axis: usize, input: i64) -> i128 {
        let wide = |pair: Pair| i128::from(pair.0[axis]);
        (i128::from(input) - 1) * wide(self.stride) - 2 * wide(self.padding)
            + wide(self.dilation) * (wide(self.kernel_size) - 1)
            + wide(self.output_padding)
            + 1
    }
}

impl Layer for ConvTranspose2d {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let [channels, height, width] = image(input)?;
        agrees("in_channels", self.in_channels, channels)?;
        in_range("out_channels", self.out_channels, 1)?;
        pair_in_range("kernel_size", self.kernel_size, 1)?;
        pair_in_range("stride", self.stride, 1)?;
        pair_in_range("padding", self.padding, 0)?;
        pair_in_range("output_padding", self.output_padding, 0)?;
        pair_in_range("dilation", self.dilation, 1)?;
        groups_divide(self.groups, channels, "input channels")?;
        groups_divide(self.groups, self.out_channels, "output channels")?;
        for axis in [0, 1] {
            let (extra, most) = (self.output_padding.0[axis], self.stride.0[axis].max(self.dilation.0[axis]));
            if extra >= most {
                return Err(argument(
                    "output_padding",
                    format!("{extra} must be smaller than the stride or the dilation, that is below {most}"),
                ));
            }
        }
        let (h, w) = (self.extent(0, height), self.extent(1, width));
        if h < 1 || w < 1 {
            return Err(argument(
                "padding",
                format!("leaves nothing of the {height}x{width} input: {h}x{w}"),
            ));
        }
        Ok(vec![self.out_channels, size(h), size(w)])
    }

    fn params(&self, input: &[i64]) -> Vec<Param> {
        let [h, w] = self.kernel_size.0;
        let weight = [input[0], self.out_channels / self.groups, h, w];
        let mut params = vec![Param::new("weight", weight, ParamKind::Weight)];
        if self.bias {
            params.push(Param::new("bias", [self.out_channels], ParamKind::Bias));
        }
        params
    }

    fn multiply_adds(&self, input: &[i64], _output: &[i64]) -> u64 {
        let [h, w] = self.kernel_size.0;
        count(&[input[0], input[1], input[2], self.out_channels / self.groups, h, w])
    }

    fn channel_flow(&self, _input: &[i64]) -> ChannelFlow {
        match self.groups {
            // At the border fewer pixels add up.
            1 => ChannelFlow::Sum { output_dim: 1, input_dim: 0, is_uniform: false },
            _ => ChannelFlow::Opaque,
        }
    }

    fn with_channels(&self, _input: &[i64], kept: Kept) -> Option<LayerSpec> {
        let out_channels = channels::count(kept.outputs);
        Some(LayerSpec::ConvTranspose2d(Self { in_channels: None, out_channels, ..self.clone() }))
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        let [stride, padding, output_padding, dilation] =
            [self.stride, self.padding, self.output_padding, self.dilation].map(|pair| shown(&pair.0));
        let (bias, groups) = (tensor("bias", self.bias), self.groups);
        format!(
            "x = torch.conv_transpose2d(x, self.weight, {bias}, {stride}, {padding}, {output_padding}, {groups}, {dilation})"
        )
    }

    fn torch_module(&self, input: &[i64]) -> TorchModule {
        TorchModule::new("nn.ConvTranspose2d")
            .with("in_channels", input[0])
            .with("out_channels", self.out_channels)
            .with("kernel_size", self.kernel_size)
            .or("stride", self.stride, one_by_one())
            .or("padding", self.padding, zero_by_zero())
            .or("output_padding", self.output_padding, zero_by_zero())
            .or("groups", self.groups, 1)
            .or("bias", self.bias, true)
            .or("dilation", self.dilation, one_by_one())
    }

    fn build(&self, path: &nn::Path, input: &[i64]) -> Box<dyn ModuleT> {
        let [h, w] = self.kernel_size.0;
        let zeros = nn::Init::Const(0.0);
        let weight = path.var("weight", &[input[0], self.out_channels / self.groups, h, w], zeros);
        let bias = self.bias.then(|| path.var("bias", &[self.out_channels], zeros));
        init::reset_parameters(&weight, bias.as_ref());
        Box::new(Transposed { spec: self.clone(), weight, bias })
    }
}

/// tch's own takes square windows only.
#[derive(Debug)]
struct Transposed {
    spec: ConvTranspose2d,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Module for Transposed {
    fn forward(&self, xs: &Tensor) -> Tensor {
        self.spec.apply(xs, &self.weight, self.bias.as_ref())
    }
}
