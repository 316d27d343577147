//! Padding of images, as `torch.nn.ReflectionPad2d`, `ReplicationPad2d` and `ZeroPad2d`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module, ModuleT};

use super::args::{MAX, argument, image, size};
use super::codegen::Arg;
use super::{Layer, Shape, ShapeError, TorchModule};

/// Pads by the image mirrored at its border pixels.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReflectionPad2d {
    /// Pixels on all sides, or `[left, right, top, bottom]`; each less than the image is wide or high.
    pub padding: Sides,
}

/// Pads by the pixels of the border.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplicationPad2d {
    /// Pixels on all sides, or `[left, right, top, bottom]`.
    pub padding: Sides,
}

/// Pads by zeros.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ZeroPad2d {
    /// Pixels on all sides, or `[left, right, top, bottom]`; negative ones are cut off.
    pub padding: Sides,
}

/// One number for all sides, or left, right, top, bottom.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "expected an integer or [left, right, top, bottom]")]
pub enum Sides {
    All(i64),
    Each([i64; 4]),
}

impl Sides {
    fn each(self) -> [i64; 4] {
        match self {
            Self::All(pad) => [pad; 4],
            Self::Each(pads) => pads,
        }
    }

    /// The padded shape; each pad from `least` up, and below the side where it is `mirrored`.
    fn padded(self, input: &[i64], least: i64, mirrored: bool) -> Result<Shape, ShapeError> {
        let [channels, height, width] = image(input)?;
        let pads = self.each();
        for (pad, extent) in pads.into_iter().zip([width, width, height, height]) {
            let most = if mirrored { extent - 1 } else { MAX };
            if !(least..=most).contains(&pad) {
                let message =
                    format!("{pad} is out of range for a {height}x{width} input: expected {least} to {most}");
                return Err(argument("padding", message));
            }
        }
        let [left, right, top, bottom] = pads.map(i128::from);
        let (h, w) = (i128::from(height) + top + bottom, i128::from(width) + left + right);
        // Cut before it is padded: what is cut off must be there.
        let cut = |extent: i64, near: i128, far: i128| i128::from(extent) + near.min(0) + far.min(0);
        if cut(height, top, bottom) < 1 || cut(width, left, right) < 1 {
            return Err(argument("padding", format!("cuts off all of the {height}x{width} input")));
        }
        Ok(vec![channels, size(h), size(w)])
    }

    fn twin(self, class: &'static str) -> TorchModule {
        let value = match self {
            Self::All(pad) => pad.to_string(),
            Self::Each([left, right, top, bottom]) => format!("({left}, {right}, {top}, {bottom})"),
        };
        let mut twin = TorchModule::new(class);
        twin.args.push(Arg { name: "padding", value, default: None });
        twin
    }
}

impl Layer for ReflectionPad2d {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        self.padding.padded(input, 0, true)
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        format!("x = torch.pad(x, {:?}, \"reflect\")", self.padding.each())
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        self.padding.twin("nn.ReflectionPad2d")
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Pad { pads: self.padding.each(), by: |xs, pads| xs.reflection_pad2d(pads) })
    }
}

impl Layer for ReplicationPad2d {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        self.padding.padded(input, 0, false)
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        format!("x = torch.pad(x, {:?}, \"replicate\")", self.padding.each())
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        self.padding.twin("nn.ReplicationPad2d")
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Pad { pads: self.padding.each(), by: |xs, pads| xs.replication_pad2d(pads) })
    }
}

impl Layer for ZeroPad2d {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        self.padding.padded(input, -MAX, false)
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        format!("x = torch.constant_pad_nd(x, {:?})", self.padding.each())
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        self.padding.twin("nn.ZeroPad2d")
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Pad { pads: self.padding.each(), by: |xs, pads| xs.constant_pad_nd(pads) })
    }
}

#[derive(Debug)]
struct Pad {
    pads: [i64; 4],
    by: fn(&Tensor, [i64; 4]) -> Tensor,
}

impl Module for Pad {
    fn forward(&self, xs: &Tensor) -> Tensor {
        (self.by)(xs, self.pads)
    }
}
