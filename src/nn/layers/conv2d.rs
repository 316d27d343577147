//! 2-D convolution, as `torch.nn.Conv2d`.

use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use tch::nn::{self, ModuleT};
use tch::{Device, Kind, Tensor};

use super::args::{
    Pair, agrees, argument, count, groups_divide, image, in_range, one_by_one, pair_in_range, size, sweep,
    too_large, yes,
};
use super::channels::{self, ChannelFlow, Kept};
use super::{Layer, LayerSpec, Param, ParamKind, Shape, ShapeError, TorchModule, init};
use crate::functional::channels_last;
use crate::libtorch::kernels::winograd;
use crate::libtorch::or_panic;
use crate::nn::layers::codegen::{Arg, Literal, tensor};
use crate::util::json_schema::Either;

/// `[C, H, W]` to `[out_channels, H', W']`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Conv2d {
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
    /// Padding on both sides.
    #[serde(default)]
    pub padding: Padding,
    /// Distance between the elements of the kernel.
    #[serde(default = "one_by_one")]
    pub dilation: Pair,
    /// Blocks of channels that are not connected with each other.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub groups: i64,
    /// Whether there is a learnable bias.
    #[serde(default = "yes")]
    pub bias: bool,
    /// What the padding shows.
    #[serde(default)]
    pub padding_mode: PaddingMode,
}

fn one() -> i64 {
    1
}

/// The schema of a padding in words.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "only its schema is used")]
enum PaddingWord {
    Same,
    Valid,
}

/// Padding on both sides, or `same` (the output is as large as the input) or `valid` (none).
#[derive(Clone, Copy, Debug, PartialEq, JsonSchema)]
#[schemars(with = "Either<Either<PaddingWord, i64>, [i64; 2]>")]
pub enum Padding {
    Same,
    Sides(Pair),
}

impl Default for Padding {
    fn default() -> Self {
        Self::Sides(Pair([0, 0]))
    }
}

impl<'de> Deserialize<'de> for Padding {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        match value.as_str() {
            Some("same") => Ok(Self::Same),
            Some("valid") => Ok(Self::default()),
            _ => Pair::deserialize(&value).map(Self::Sides).map_err(|_| {
                D::Error::custom(format!(
                    "expected an integer, [height, width], `same` or `valid`, got {value}"
                ))
            }),
        }
    }
}

impl Serialize for Padding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Same => serializer.serialize_str("same"),
            Self::Sides(pair) => pair.serialize(serializer),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PaddingMode {
    #[default]
    Zeros,
    Reflect,
    Replicate,
    Circular,
}

impl PaddingMode {
    /// The name in `torch.nn.Conv2d`.
    fn name(self) -> &'static str {
        match self {
            Self::Zeros => "zeros",
            other => other.functional(),
        }
    }

    /// The name in `torch.nn.functional.pad`.
    fn functional(self) -> &'static str {
        match self {
            Self::Zeros => "constant",
            Self::Reflect => "reflect",
            Self::Replicate => "replicate",
            Self::Circular => "circular",
        }
    }
}

impl Conv2d {
    /// `[(top, bottom), (left, right)]`; an odd total of `same` goes to the far side, as in PyTorch.
    fn sides(&self) -> [(i64, i64); 2] {
        match self.padding {
            Padding::Sides(Pair(pads)) => pads.map(|pad| (pad, pad)),
            Padding::Same => [0, 1].map(|axis| {
                let total = self.dilation.0[axis].saturating_mul(self.kernel_size.0[axis] - 1);
                (total / 2, total - total / 2)
            }),
        }
    }

    /// The padding that libtorch's convolution does by itself: zeros, as many on both sides.
    fn inner_padding(&self) -> Option<[i64; 2]> {
        let [rows, columns] = self.sides();
        let even = rows.0 == rows.1 && columns.0 == columns.1;
        (even && self.padding_mode == PaddingMode::Zeros).then_some([rows.0, columns.0])
    }

    /// The padding as `pad` takes it: left, right, top, bottom.
    fn outer_padding(&self) -> Vec<i64> {
        let [rows, columns] = self.sides();
        vec![columns.0, columns.1, rows.0, rows.1]
    }

    /// The convolution of `xs` by other weights than its own.
    pub(super) fn apply(&self, xs: &Tensor, ws: &Tensor, bs: Option<&Tensor>) -> Tensor {
        let (xs, padding) = match self.inner_padding() {
            Some(padding) => (xs.shallow_clone(), padding),
            None => (xs.pad(self.outer_padding(), self.padding_mode.functional(), None), [0, 0]),
        };
        let (stride, dilation) = (self.stride.0, self.dilation.0);
        match self.groups {
            1 => convolve(&xs, ws, bs, stride, padding, dilation),
            groups => xs.conv2d(ws, bs, stride, padding, dilation, groups),
        }
    }

    /// Its module if it is a plain convolution: without a pad before it, and in one group.
    pub(super) fn plain(&self, path: &nn::Path, input: &[i64]) -> Option<ChannelsLast> {
        let padding = self.inner_padding().filter(|_| self.groups == 1)?;
        Some(self.channels_last(path, input, padding))
    }

    fn channels_last(&self, path: &nn::Path, input: &[i64], padding: [i64; 2]) -> ChannelsLast {
        let conv = self.conv(path, input);
        ChannelsLast { conv, stride: self.stride.0, padding, dilation: self.dilation.0 }
    }

    fn conv(&self, path: &nn::Path, input: &[i64]) -> nn::Conv2D {
        let config = nn::ConvConfigND {
            stride: self.stride.0,
            padding: self.inner_padding().unwrap_or([0, 0]),
            dilation: self.dilation.0,
            groups: self.groups,
            bias: self.bias,
            ws_init: nn::Init::Const(0.0),
            bs_init: nn::Init::Const(0.0),
            padding_mode: nn::PaddingMode::Zeros,
        };
        let conv = nn::conv(path, input[0], self.out_channels, self.kernel_size.0, config);
        init::reset_parameters(&conv.ws, conv.bs.as_ref());
        conv
    }

    /// Whether [`plain`](Self::plain) makes one.
    pub(crate) fn is_plain(&self) -> bool {
        self.inner_padding().is_some() && self.groups == 1
    }

    fn check(&self, [channels, height, width]: [i64; 3]) -> Result<(), ShapeError> {
        agrees("in_channels", self.in_channels, channels)?;
        in_range("out_channels", self.out_channels, 1)?;
        pair_in_range("kernel_size", self.kernel_size, 1)?;
        pair_in_range("stride", self.stride, 1)?;
        pair_in_range("dilation", self.dilation, 1)?;
        groups_divide(self.groups, channels, "input channels")?;
        groups_divide(self.groups, self.out_channels, "output channels")?;
        match self.padding {
            Padding::Sides(pads) => pair_in_range("padding", pads, 0)?,
            Padding::Same if self.stride.0 != [1, 1] => {
                return Err(argument("padding", "`same` wants stride 1; state the padding as a number"));
            }
            Padding::Same => {}
        }
        let limit = match self.padding_mode {
            PaddingMode::Zeros | PaddingMode::Replicate => i64::MAX,
            PaddingMode::Reflect => height.min(width) - 1,
            PaddingMode::Circular => height.min(width),
        };
        let widest = self.sides().into_iter().map(|(near, far)| near.max(far)).max().unwrap_or(0);
        if widest > limit {
            let mode = self.padding_mode.functional();
            return Err(argument(
                "padding",
                format!(
                    "{widest} is too much for padding_mode `{mode}` on a {height}x{width} input: at most {limit}"
                ),
            ));
        }
        Ok(())
    }
}

impl Layer for Conv2d {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let [channels, height, width] = image(input)?;
        self.check([channels, height, width])?;
        let pads = self.sides().map(|(near, far)| i128::from(near) + i128::from(far));
        let swept = |axis: usize, extent: i64| {
            sweep(extent, pads[axis], self.kernel_size.0[axis], self.dilation.0[axis], self.stride.0[axis])
        };
        match (swept(0, height), swept(1, width)) {
            (Some(h), Some(w)) => Ok(vec![self.out_channels, size(h), size(w)]),
            _ => {
                let padded = [i128::from(height) + pads[0], i128::from(width) + pads[1]];
                Err(too_large(self.kernel_size, self.dilation, padded))
            }
        }
    }

    fn params(&self, input: &[i64]) -> Vec<Param> {
        let [h, w] = self.kernel_size.0;
        let mut params =
            vec![Param::new("weight", [self.out_channels, input[0] / self.groups, h, w], ParamKind::Weight)];
        if self.bias {
            params.push(Param::new("bias", [self.out_channels], ParamKind::Bias));
        }
        params
    }

    fn multiply_adds(&self, input: &[i64], output: &[i64]) -> u64 {
        let [h, w] = self.kernel_size.0;
        count(&[output[0], output[1], output[2], input[0] / self.groups, h, w])
    }

    fn channel_flow(&self, input: &[i64]) -> ChannelFlow {
        let has_border = self.padding_mode == PaddingMode::Zeros && self.sides() != [(0, 0); 2];
        match self.groups {
            1 => ChannelFlow::Sum { output_dim: 0, input_dim: 1, is_uniform: !has_border },
            groups => ChannelFlow::blocks(input[0], self.out_channels, groups, Some("weight")),
        }
    }

    fn with_channels(&self, input: &[i64], kept: Kept) -> Option<LayerSpec> {
        // Blocks of a grouped convolution go as a whole.
        let groups = if self.groups == 1 { 1 } else { self.groups * channels::count(kept.inputs) / input[0] };
        let out_channels = channels::count(kept.outputs);
        Some(LayerSpec::Conv2d(Self { in_channels: None, out_channels, groups, ..self.clone() }))
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        let (stride, dilation, groups) = (self.stride.0, self.dilation.0, self.groups);
        let bias = tensor("bias", self.bias);
        let (pad, inner) = match self.inner_padding() {
            Some(inner) => (String::new(), inner),
            None => {
                let (pad, mode) = (self.outer_padding(), self.padding_mode.functional());
                (format!("x = torch.pad(x, {pad:?}, \"{mode}\")\n"), [0, 0])
            }
        };
        format!(
            "{pad}x = torch.conv2d(x, self.weight, {bias}, {stride:?}, {inner:?}, {dilation:?}, {groups})"
        )
    }

    fn torch_module(&self, input: &[i64]) -> TorchModule {
        let padding = match self.padding {
            Padding::Same => "same".literal(),
            Padding::Sides(pads) => pads.literal(),
        };
        let mut twin = TorchModule::new("nn.Conv2d")
            .with("in_channels", input[0])
            .with("out_channels", self.out_channels)
            .with("kernel_size", self.kernel_size)
            .or("stride", self.stride, one_by_one());
        twin.args.push(Arg { name: "padding", value: padding, default: Some("0".into()) });
        twin.or("dilation", self.dilation, one_by_one())
            .or("groups", self.groups, 1)
            .or("bias", self.bias, true)
            .or("padding_mode", self.padding_mode.name(), PaddingMode::Zeros.name())
    }

    fn build(&self, path: &nn::Path, input: &[i64]) -> Box<dyn ModuleT> {
        if let Some(plain) = self.plain(path, input) {
            return Box::new(plain);
        }
        if self.inner_padding().is_some() {
            return Box::new(self.conv(path, input));
        }
        let conv: Box<dyn ModuleT> = match self.groups {
            1 => Box::new(self.channels_last(path, input, [0, 0])),
            _ => Box::new(self.conv(path, input)),
        };
        Box::new(Padded { pad: self.outer_padding(), mode: self.padding_mode.functional(), conv })
    }
}

/// A convolution that takes channels-last inputs on the CPU: oneDNN is a third faster there, and batch norm,
/// activations and pooling keep the strides for the next one.
#[derive(Debug)]
pub(super) struct ChannelsLast {
    conv: nn::Conv2D,
    stride: [i64; 2],
    padding: [i64; 2],
    dilation: [i64; 2],
}

impl ChannelsLast {
    /// Each output channel of the weights multiplied by `scale` `[out_channels]`, and `shift` added to it.
    pub fn scaled(&self, xs: &Tensor, scale: &Tensor, shift: &Tensor) -> Tensor {
        let conv = &self.conv;
        let ws = &conv.ws * scale.view([-1, 1, 1, 1]);
        let bs = conv.bs.as_ref().map_or_else(|| shift.shallow_clone(), |bs| bs * scale + shift);
        self.convolve(xs, &ws, Some(&bs))
    }

    fn convolve(&self, xs: &Tensor, ws: &Tensor, bs: Option<&Tensor>) -> Tensor {
        convolve(xs, ws, bs, self.stride, self.padding, self.dilation)
    }
}

fn convolve(
    xs: &Tensor,
    ws: &Tensor,
    bs: Option<&Tensor>,
    stride: [i64; 2],
    padding: [i64; 2],
    dilation: [i64; 2],
) -> Tensor {
    let xs = ordered(xs);
    if stride == [1, 1]
        && dilation == [1, 1]
        && padding[0] == padding[1]
        && let Some(ys) = or_panic(winograd::conv2d(&xs, ws, bs, padding[0]))
    {
        return ys;
    }
    xs.conv2d(ws, bs, stride, padding, dilation, 1)
}

impl ModuleT for ChannelsLast {
    fn forward_t(&self, xs: &Tensor, _train: bool) -> Tensor {
        self.convolve(xs, &self.conv.ws, self.conv.bs.as_ref())
    }
}

/// float32 images on the CPU with their channels innermost.
fn ordered(xs: &Tensor) -> Tensor {
    if xs.device() != Device::Cpu || xs.kind() != Kind::Float || xs.stride()[1] == 1 {
        return xs.shallow_clone();
    }
    match xs.size().as_slice() {
        // Nothing moves, but libtorch takes the order of a single channel from its strides.
        &[_, 1, height, width] if !xs.requires_grad() => {
            xs.contiguous().as_strided(xs.size(), [height * width, 1, width, 1], None)
        }
        _ => channels_last(xs),
    }
}

/// A convolution that pads first: unequal sides, or anything but zeros.
#[derive(Debug)]
struct Padded {
    pad: Vec<i64>,
    mode: &'static str,
    conv: Box<dyn ModuleT>,
}

impl ModuleT for Padded {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        self.conv.forward_t(&xs.pad(&self.pad, self.mode, None), train)
    }
}
