//! The shortcut without parameters of the CIFAR ResNets (option A of He et al., 2016): every second pixel, and zero
//! channels on both sides.

use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{argument, image, in_range, size};
use super::{Layer, Misfit, Shape};

/// `[C, H, W]` to `[out_channels, ⌈H/stride⌉, ⌈W/stride⌉]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SubsamplePad {
    pub out_channels: i64,
    #[serde(default = "two")]
    pub stride: i64,
}

fn two() -> i64 {
    2
}

impl Layer for SubsamplePad {
    fn output(&self, input: &[i64]) -> Result<Shape, Misfit> {
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
