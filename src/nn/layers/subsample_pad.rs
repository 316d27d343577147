//! The shortcut without parameters of the CIFAR ResNets (option A of He et al., 2016): every second pixel,
//! and zero channels on both sides.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{argument, image, in_range, size};
use super::{Layer, Shape, ShapeError, TorchModule};

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
}

fn two() -> i64 {
    2
}

const DEFINITION: &str = "\
class SubsamplePad(nn.Module):
    \"\"\"Every `stride`-th pixel, and `channels` zero channels before and behind the others.\"\"\"

    def __init__(self, channels, stride=2):
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x):
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.channels, self.channels))
";

impl Layer for SubsamplePad {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let [channels, height, width] = image(input)?;
        in_range("out_channels", self.out_channels, 1)?;
        in_range("stride", self.stride, 1)?;
        let more = self.out_channels - channels;
        if more < 0 || more % 2 != 0 {
            let message = format!(
                "{} must exceed the {channels} input channels by an even number: half goes to each side",
                self.out_channels
            );
            return Err(argument("out_channels", message));
        }
        let kept = |extent: i64| size((i128::from(extent) - 1) / i128::from(self.stride) + 1);
        Ok(vec![self.out_channels, kept(height), kept(width)])
    }

    fn torchscript(&self, input: &[i64]) -> String {
        let (stride, pad) = (self.stride, (self.out_channels - input[0]) / 2);
        format!("x = torch.constant_pad_nd(x[:, :, ::{stride}, ::{stride}], [0, 0, 0, 0, {pad}, {pad}])")
    }

    fn torch_module(&self, input: &[i64]) -> TorchModule {
        TorchModule::defined("SubsamplePad", DEFINITION)
            .with("channels", (self.out_channels - input[0]) / 2)
            .or("stride", self.stride, two())
    }

    fn build(&self, _path: &nn::Path, input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Subsample { stride: self.stride, pad: (self.out_channels - input[0]) / 2 })
    }
}

#[derive(Debug)]
struct Subsample {
    stride: i64,
    pad: i64,
}

impl Module for Subsample {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let kept = xs.slice(2, None, None, self.stride).slice(3, None, None, self.stride);
        kept.constant_pad_nd([0, 0, 0, 0, self.pad, self.pad])
    }
}
