//! The shortcut without parameters of the CIFAR ResNets (option A of He et al., 2016): every second pixel,
//! and zero channels on both sides.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{argument, image, in_range, size};
use super::channels::{self, ChannelFlow, Kept};
use super::{Layer, LayerSpec, Shape, ShapeError, TorchModule};

/// `[C, H, W]` to `[out_channels, ⌈H/stride⌉, ⌈W/stride⌉]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SubsamplePad {
    /// Channels of the output; the new ones are 0.
    #[schemars(range(min = 1))]
    pub out_channels: i64,
    /// Every so many pixels one is kept.
    #[serde(default = "two")]
    #[schemars(range(min = 1))]
    pub stride: i64,
    /// How many of the new channels come before the others; half of them when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub before: Option<i64>,
}

impl SubsamplePad {
    /// Zero channels before and behind those of the input.
    fn sides(&self, input: &[i64]) -> [i64; 2] {
        let more = self.out_channels - input[0];
        let before = self.before.unwrap_or(more / 2);
        [before, more - before]
    }
}

fn two() -> i64 {
    2
}

const DEFINITION: &str = "\
class SubsamplePad(nn.Module):
    \"\"\"Every `stride`-th pixel, and zero channels before and behind the others.\"\"\"

    def __init__(self, before, behind, stride=2):
        super().__init__()
        self.before, self.behind, self.stride = before, behind, stride

    def forward(self, x):
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.behind))
";

impl Layer for SubsamplePad {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let [channels, height, width] = image(input)?;
        in_range("out_channels", self.out_channels, 1)?;
        in_range("stride", self.stride, 1)?;
        let more = self.out_channels - channels;
        match self.before {
            _ if more < 0 => {
                let message = format!("{} is less than the {channels} input channels", self.out_channels);
                return Err(argument("out_channels", message));
            }
            None if more % 2 != 0 => {
                let message = format!(
                    "{} must exceed the {channels} input channels by an even number, half for each side; or say \
                     how many come `before`",
                    self.out_channels
                );
                return Err(argument("out_channels", message));
            }
            Some(before) if !(0..=more).contains(&before) => {
                return Err(argument("before", format!("{before} is out of range: expected 0 to {more}")));
            }
            _ => {}
        }
        let kept = |extent: i64| size((i128::from(extent) - 1) / i128::from(self.stride) + 1);
        Ok(vec![self.out_channels, kept(height), kept(width)])
    }

    fn channel_flow(&self, input: &[i64]) -> ChannelFlow {
        let (before, channels) = (self.sides(input)[0], input[0]);
        let source =
            |output: i64| (0..channels).contains(&(output - before)).then_some((output - before) as usize);
        let sources = (0..self.out_channels).map(|output| source(output).into_iter().collect()).collect();
        ChannelFlow::Tied { sources, scale: None }
    }

    fn with_channels(&self, input: &[i64], kept: Kept) -> Option<LayerSpec> {
        let [before, out_channels] = [self.sides(input)[0] as usize, kept.outputs.len()]
            .map(|end| channels::count(&kept.outputs[..end]));
        Some(LayerSpec::SubsamplePad(Self { out_channels, before: Some(before), ..self.clone() }))
    }

    fn torchscript(&self, input: &[i64]) -> String {
        let (stride, [before, behind]) = (self.stride, self.sides(input));
        format!(
            "x = torch.constant_pad_nd(x[:, :, ::{stride}, ::{stride}], [0, 0, 0, 0, {before}, {behind}])"
        )
    }

    fn torch_module(&self, input: &[i64]) -> TorchModule {
        let [before, behind] = self.sides(input);
        TorchModule::defined("SubsamplePad", DEFINITION).with("before", before).with("behind", behind).or(
            "stride",
            self.stride,
            two(),
        )
    }

    fn build(&self, _path: &nn::Path, input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Subsample { stride: self.stride, sides: self.sides(input) })
    }
}

#[derive(Debug)]
struct Subsample {
    stride: i64,
    sides: [i64; 2],
}

impl Module for Subsample {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let kept = xs.slice(2, None, None, self.stride).slice(3, None, None, self.stride);
        kept.constant_pad_nd([0, 0, 0, 0, self.sides[0], self.sides[1]])
    }
}
