//! Instance normalisation, as `torch.nn.InstanceNorm2d` (Ulyanov, Vedaldi and Lempitsky, 2016).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, ModuleT};

use super::args::{agrees, image, not_negative, same, share};
use super::batch_norm::{self, RunningStats};
use super::{Layer, Param, Shape, ShapeError, TorchModule};
use crate::nn::layers::codegen::tensor;

/// Normalises each channel of each sample `[C, H, W]` over the image.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InstanceNorm2d {
    /// Inferred from the input; checked when given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_features: Option<i64>,
    /// Added to the variance.
    #[serde(default = "eps")]
    #[schemars(range(min = 0))]
    pub eps: f64,
    /// The weight of the batch in the running statistics.
    #[serde(default = "momentum")]
    #[schemars(range(min = 0, max = 1))]
    pub momentum: f64,
    /// Whether there is a learnable scale and shift per channel.
    #[serde(default)]
    pub affine: bool,
    /// Whether evaluation normalises by statistics that training averages, rather than by the image's own.
    #[serde(default)]
    pub track_running_stats: bool,
}

fn eps() -> f64 {
    1e-5
}

fn momentum() -> f64 {
    0.1
}

impl Layer for InstanceNorm2d {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let [channels, height, width] = image(input)?;
        agrees("num_features", self.num_features, channels)?;
        not_negative("eps", self.eps)?;
        share("momentum", self.momentum)?;
        if height * width == 1 {
            let remedy = "one value has no variance; pool less before it".into();
            return Err(ShapeError::Input { wants: "more than one pixel".into(), remedy });
        }
        same(input)
    }

    fn params(&self, input: &[i64]) -> Vec<Param> {
        // As in PyTorch, nothing counts with `num_batches_tracked`.
        batch_norm::params(input[0], self.affine, self.track_running_stats)
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        let [weight, bias] = ["weight", "bias"].map(|name| tensor(name, self.affine));
        let [mean, var] = ["running_mean", "running_var"].map(|name| tensor(name, self.track_running_stats));
        let own = if self.track_running_stats { "self.training" } else { "True" };
        let (momentum, eps) = (self.momentum, self.eps);
        format!(
            "x = torch.instance_norm(x, {weight}, {bias}, {mean}, {var}, {own}, {momentum:?}, {eps:?}, True)"
        )
    }

    fn torch_module(&self, input: &[i64]) -> TorchModule {
        TorchModule::new("nn.InstanceNorm2d")
            .with("num_features", input[0])
            .or("eps", self.eps, eps())
            .or("momentum", self.momentum, momentum())
            .or("affine", self.affine, false)
            .or("track_running_stats", self.track_running_stats, false)
    }

    fn build(&self, path: &nn::Path, input: &[i64]) -> Box<dyn ModuleT> {
        let features = [input[0]];
        let affine = self.affine.then(|| [path.ones("weight", &features), path.zeros("bias", &features)]);
        let running = self.track_running_stats.then(|| RunningStats::new(path, input[0]));
        Box::new(Norm { affine, running, momentum: self.momentum, eps: self.eps })
    }
}

#[derive(Debug)]
struct Norm {
    /// Scale and shift.
    affine: Option<[Tensor; 2]>,
    running: Option<RunningStats>,
    momentum: f64,
    eps: f64,
}

impl ModuleT for Norm {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        let (affine, running) = (self.affine.as_ref(), self.running.as_ref());
        xs.instance_norm(
            affine.map(|[weight, _]| weight),
            affine.map(|[_, bias]| bias),
            running.map(|running| &running.mean),
            running.map(|running| &running.var),
            train || self.running.is_none(),
            self.momentum,
            self.eps,
            true,
        )
    }
}
