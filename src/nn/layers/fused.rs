//! A batch norm run together with its neighbours: the convolution before it, the addition and the ReLU after
//! it.

use tch::nn::{self, ModuleT};
use tch::{Device, Kind, Tensor};

use super::batch_norm::Norm;
use super::conv2d::ChannelsLast;
use super::{LayerSpec, Switch};
use crate::libtorch;

/// From so many pixels of a batch on it costs next to nothing to scale the weights anew.
const PIXELS: i64 = 1024;

#[derive(Debug)]
pub(crate) struct FusedConvBn {
    conv: Option<ChannelsLast>,
    norm: Norm,
    switch: Switch,
}

impl FusedConvBn {
    /// Of a batch norm, and of the convolution before it where there is one; each with its path and its
    /// input. None where they are something else.
    pub fn new(
        conv: Option<(&LayerSpec, &nn::Path, &[i64])>,
        (norm, path, input): (&LayerSpec, &nn::Path, &[i64]),
    ) -> Option<Self> {
        let LayerSpec::BatchNorm2d(norm) = norm else { return None };
        let conv = match conv {
            Some((LayerSpec::Conv2d(conv), path, input)) => Some(conv.plain(path, input)?),
            Some(_) => return None,
            None => None,
        };
        Some(Self { conv, norm: norm.norm(path, input), switch: Switch::default() })
    }

    /// Freezes the norm.
    pub fn switch(&self) -> Switch {
        self.switch.clone()
    }

    /// `relu(norm(conv(xs)) + addend)`, as asked for. Evaluation folds the norm into the convolution's
    /// weights.
    pub fn forward(&self, xs: &Tensor, addend: Option<&Tensor>, relu: bool, train: bool) -> Tensor {
        let train = train && !self.switch.is_frozen();
        let Some(conv) = &self.conv else { return self.norm.forward(xs, addend, relu, train) };
        let folds = !train && !libtorch::is_recording() && pays(xs);
        let Some((scale, shift)) = folds.then(|| self.norm.line()).flatten() else {
            return self.norm.forward(&conv.forward_t(xs, train), addend, relu, train);
        };
        let mut ys = conv.scaled(xs, &scale, &shift);
        if let Some(addend) = addend {
            ys += addend;
        }
        if relu { ys.relu_() } else { ys }
    }
}

fn pays(xs: &Tensor) -> bool {
    let size = xs.size();
    let pixels = size[0] * size[2..].iter().product::<i64>();
    xs.device() == Device::Cpu && xs.kind() == Kind::Float && pixels >= PIXELS
}

/// The batch norm, and the ReLU after it where there is one.
#[derive(Debug)]
pub(crate) struct Normed {
    pub joint: FusedConvBn,
    pub relu: bool,
}

impl ModuleT for Normed {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        self.joint.forward(xs, None, self.relu, train)
    }
}
