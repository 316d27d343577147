//! Batch normalisation, as `torch.nn.BatchNorm1d` and `BatchNorm2d` (Ioffe and Szegedy, 2015).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn::{self, ModuleT};
use tch::{Device, Kind, Tensor, no_grad};

use super::args::{agrees, image, not_negative, same, share, yes};
use super::channels::{ChannelFlow, Kept};
use super::{Layer, LayerSpec, Param, ParamKind, Shape, ShapeError, TorchModule};
use crate::libtorch::kernels::batch_norm::{self, Channels};
use crate::libtorch::or_panic;
use crate::nn::layers::codegen::tensor;

/// Normalises each channel of `[C, H, W]` over the batch and the image.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchNorm2d {
    /// Inferred from the input; checked when given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_features: Option<i64>,
    /// Added to the variance.
    #[serde(default = "eps")]
    #[schemars(range(min = 0))]
    pub eps: f64,
    /// The weight of the batch in the running statistics; null averages all batches alike.
    #[serde(default = "momentum")]
    #[schemars(range(min = 0, max = 1))]
    pub momentum: Option<f64>,
    /// Whether there is a learnable scale and shift per channel.
    #[serde(default = "yes")]
    pub affine: bool,
    /// Whether evaluation normalises by statistics that training averages, rather than by the batch's own.
    #[serde(default = "yes")]
    pub track_running_stats: bool,
}

/// Normalises each feature of `[F]`, or each channel of `[C, L]`, over the batch.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct BatchNorm1d(BatchNorm2d);

fn eps() -> f64 {
    1e-5
}

fn momentum() -> Option<f64> {
    Some(0.1)
}

impl BatchNorm2d {
    fn check(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        agrees("num_features", self.num_features, input[0])?;
        not_negative("eps", self.eps)?;
        self.momentum.map_or(Ok(()), |momentum| share("momentum", momentum))?;
        same(input)
    }

    fn twin_of(&self, class: &'static str, input: &[i64]) -> TorchModule {
        TorchModule::new(class)
            .with("num_features", input[0])
            .or("eps", self.eps, eps())
            .or("momentum", self.momentum, momentum())
            .or("affine", self.affine, true)
            .or("track_running_stats", self.track_running_stats, true)
    }

    pub(super) fn norm(&self, path: &nn::Path, input: &[i64]) -> Norm {
        Norm::new(path, input[0], self)
    }
}

/// The tensors of a norm of `channels`, in PyTorch's order.
pub(super) fn params(channels: i64, affine: bool, track_running_stats: bool) -> Vec<Param> {
    let features = [channels];
    let mut params = Vec::new();
    if affine {
        params.push(Param::new("weight", features, ParamKind::Norm));
        params.push(Param::new("bias", features, ParamKind::Bias));
    }
    if track_running_stats {
        params.push(Param::new("running_mean", features, ParamKind::Buffer));
        params.push(Param::new("running_var", features, ParamKind::Buffer));
        params.push(Param::new("num_batches_tracked", [], ParamKind::Buffer));
    }
    params
}

impl Layer for BatchNorm2d {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        image(input)?;
        self.check(input)
    }

    fn params(&self, input: &[i64]) -> Vec<Param> {
        params(input[0], self.affine, self.track_running_stats)
    }

    fn min_batch(&self, input: &[i64]) -> i64 {
        // A variance wants two values.
        if input[1..].iter().all(|extent| *extent == 1) { 2 } else { 1 }
    }

    fn channel_flow(&self, input: &[i64]) -> ChannelFlow {
        ChannelFlow::scaled(input[0], self.affine.then_some("weight"))
    }

    fn with_channels(&self, _input: &[i64], _kept: Kept) -> Option<LayerSpec> {
        Some(LayerSpec::BatchNorm2d(Self { num_features: None, ..self.clone() }))
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        let [weight, bias] = ["weight", "bias"].map(|name| tensor(name, self.affine));
        let eps = self.eps;
        if !self.track_running_stats {
            return format!(
                "x = torch.batch_norm(x, {weight}, {bias}, None, None, True, 0.0, {eps:?}, True)"
            );
        }
        let momentum = match self.momentum {
            Some(momentum) => format!("{momentum:?}"),
            None => "1.0 / float(self.num_batches_tracked) if self.training else 0.0".into(),
        };
        format!(
            "\
if self.training:
    self.num_batches_tracked.add_(1)
if self.training and x.numel() == x.size(1):
    x = torch.batch_norm(x, {weight}, {bias}, None, None, True, 0.0, {eps:?}, False)
else:
    x = torch.batch_norm(x, {weight}, {bias}, self.running_mean, self.running_var, self.training, {momentum}, {eps:?}, True)"
        )
    }

    fn torch_module(&self, input: &[i64]) -> TorchModule {
        self.twin_of("nn.BatchNorm2d", input)
    }

    fn build(&self, path: &nn::Path, input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(self.norm(path, input))
    }
}

impl Layer for BatchNorm1d {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        if !matches!(input.len(), 1 | 2) {
            let remedy = "use `batch_norm2d` for images, or put `flatten` before it";
            return Err(ShapeError::Input { wants: "[F]".into(), remedy: remedy.into() });
        }
        self.0.check(input)
    }

    fn params(&self, input: &[i64]) -> Vec<Param> {
        self.0.params(input)
    }

    fn min_batch(&self, input: &[i64]) -> i64 {
        self.0.min_batch(input)
    }

    fn channel_flow(&self, input: &[i64]) -> ChannelFlow {
        self.0.channel_flow(input)
    }

    fn with_channels(&self, _input: &[i64], _kept: Kept) -> Option<LayerSpec> {
        Some(LayerSpec::BatchNorm1d(Self(BatchNorm2d { num_features: None, ..self.0.clone() })))
    }

    fn torchscript(&self, input: &[i64]) -> String {
        self.0.torchscript(input)
    }

    fn torch_module(&self, input: &[i64]) -> TorchModule {
        self.0.twin_of("nn.BatchNorm1d", input)
    }

    fn build(&self, path: &nn::Path, input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(self.0.norm(path, input))
    }
}

/// Mean and variance `[C]` that training averages, and the number of batches that went into them.
#[derive(Debug)]
pub(super) struct RunningStats {
    pub mean: Tensor,
    pub var: Tensor,
    batches: Tensor,
}

impl RunningStats {
    pub fn new(path: &nn::Path, channels: i64) -> Self {
        let options = (path.kind(), path.device());
        Self {
            mean: path.add("running_mean", Tensor::zeros([channels], options), false),
            var: path.add("running_var", Tensor::ones([channels], options), false),
            batches: path.add(
                "num_batches_tracked",
                Tensor::zeros([0i64; 0], (Kind::Int64, path.device())),
                false,
            ),
        }
    }
}

/// Batch norm, with the addition and the ReLU that may follow it.
#[derive(Debug)]
pub(super) struct Norm {
    /// Scale and shift.
    affine: Option<[Tensor; 2]>,
    running: Option<RunningStats>,
    eps: f64,
    momentum: Option<f64>,
}

impl Norm {
    fn new(path: &nn::Path, channels: i64, spec: &BatchNorm2d) -> Self {
        let affine = spec.affine.then(|| [path.ones("weight", &[channels]), path.zeros("bias", &[channels])]);
        let running = spec.track_running_stats.then(|| RunningStats::new(path, channels));
        Self { affine, running, eps: spec.eps, momentum: spec.momentum }
    }

    /// `relu(norm(xs) + addend)`, both as asked for.
    pub fn forward(&self, xs: &Tensor, addend: Option<&Tensor>, relu: bool, train: bool) -> Tensor {
        if train && let Some(running) = &self.running {
            no_grad(|| {
                let _ = running.batches.shallow_clone().g_add_scalar_(1);
            });
            if xs.device() == Device::Cpu
                && let Some(ys) = self.fused(xs, addend, running, relu)
            {
                return ys;
            }
        }
        let ys = self.normalised(xs, train);
        let mut ys = match addend {
            Some(addend) => ys + addend,
            None => ys,
        };
        // In place: no gradient before it needs what it overwrites.
        if relu { ys.relu_() } else { ys }
    }

    /// What evaluation multiplies each channel by, and what it adds then, `[C]` each; None where it takes the
    /// statistics of the batch.
    pub fn line(&self) -> Option<(Tensor, Tensor)> {
        let running = self.running.as_ref()?;
        let inverse = (&running.var + self.eps).rsqrt();
        let scale = self.weight().map_or_else(|| inverse.shallow_clone(), |weight| weight * &inverse);
        let shift = -&running.mean * &scale;
        let shift = self.bias().map_or_else(|| shift.shallow_clone(), |bias| bias + &shift);
        Some((scale, shift))
    }

    fn weight(&self) -> Option<&Tensor> {
        self.affine.as_ref().map(|[weight, _]| weight)
    }

    fn bias(&self) -> Option<&Tensor> {
        self.affine.as_ref().map(|[_, bias]| bias)
    }

    /// The weight of the batch in the running statistics: its share in all batches where there is no
    /// momentum.
    fn momentum(&self, running: &RunningStats) -> f64 {
        self.momentum.unwrap_or_else(|| 1.0 / running.batches.int64_value(&[]) as f64)
    }

    /// As [`normalised`](Self::normalised) in training, the running statistics a mean of all batches alike: by their number
    /// on the device, which nothing waits for.
    fn averaged(&self, xs: &Tensor, running: &RunningStats) -> Tensor {
        let [mean, var] = [&running.mean, &running.var].map(Tensor::zeros_like);
        let (weight, bias) = (self.weight(), self.bias());
        let ys = Tensor::batch_norm(xs, weight, bias, Some(&mean), Some(&var), true, 1.0, self.eps, true);
        no_grad(|| {
            let share = running.batches.to_kind(mean.kind()).reciprocal();
            for (running, batch) in [(&running.mean, mean), (&running.var, var)] {
                let _ = running.shallow_clone().g_add_(&((batch - running) * &share));
            }
        });
        ys
    }

    fn fused(
        &self,
        xs: &Tensor,
        addend: Option<&Tensor>,
        running: &RunningStats,
        relu: bool,
    ) -> Option<Tensor> {
        let channels = Channels {
            weight: self.weight(),
            bias: self.bias(),
            running_mean: &running.mean,
            running_var: &running.var,
            momentum: self.momentum(running),
            eps: self.eps,
        };
        or_panic(batch_norm::batch_norm(xs, addend, &channels, relu))
    }

    fn normalised(&self, xs: &Tensor, train: bool) -> Tensor {
        let size = xs.size();
        let values: i64 =
            size.iter().enumerate().filter(|(axis, _)| *axis != 1).map(|(_, extent)| extent).product();
        // One value has no variance; it must not put NaN into the running statistics.
        let running = self.running.as_ref().filter(|_| !train || values > 1);
        if let (Some(running), true, None, true) = (running, train, self.momentum, xs.device() != Device::Cpu)
        {
            return self.averaged(xs, running);
        }
        let momentum = running.filter(|_| train).map_or(0.0, |running| self.momentum(running));
        let (mean, var) = (running.map(|running| &running.mean), running.map(|running| &running.var));
        let own = train || running.is_none();
        Tensor::batch_norm(xs, self.weight(), self.bias(), mean, var, own, momentum, self.eps, true)
    }
}

impl ModuleT for Norm {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        self.forward(xs, None, false, train)
    }
}
