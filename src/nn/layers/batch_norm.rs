//! Batch normalisation, as `torch.nn.BatchNorm1d` and `BatchNorm2d` (Ioffe and Szegedy, 2015).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn::{self, ModuleT};
use tch::{Kind, Tensor, no_grad};

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
    /// The weight of the batch in the running statistics.
    #[serde(default = "momentum")]
    #[schemars(range(min = 0, max = 1))]
    pub momentum: f64,
    /// Whether there is a learnable scale and shift per channel.
    #[serde(default = "yes")]
    pub affine: bool,
}

/// Normalises each feature of `[F]`, or each channel of `[C, L]`, over the batch.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct BatchNorm1d(BatchNorm2d);

fn eps() -> f64 {
    1e-5
}

fn momentum() -> f64 {
    0.1
}

impl BatchNorm2d {
    fn check(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        agrees("num_features", self.num_features, input[0])?;
        not_negative("eps", self.eps)?;
        share("momentum", self.momentum)?;
        same(input)
    }

    fn twin_of(&self, class: &'static str, input: &[i64]) -> TorchModule {
        TorchModule::new(class)
            .with("num_features", input[0])
            .or("eps", self.eps, eps())
            .or("momentum", self.momentum, momentum())
            .or("affine", self.affine, true)
    }

    pub(super) fn norm(&self, path: &nn::Path, input: &[i64]) -> Norm {
        Norm::new(nn::batch_norm2d(path, input[0], self.config()), path, self)
    }

    fn config(&self) -> nn::BatchNormConfig {
        nn::BatchNormConfig {
            cudnn_enabled: true,
            eps: self.eps,
            momentum: self.momentum,
            affine: self.affine,
            ws_init: nn::Init::Const(1.0),
            bs_init: nn::Init::Const(0.0),
        }
    }
}

impl Layer for BatchNorm2d {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        image(input)?;
        self.check(input)
    }

    fn params(&self, input: &[i64]) -> Vec<Param> {
        let features = [input[0]];
        let mut params = Vec::new();
        if self.affine {
            params.push(Param::new("weight", features, ParamKind::Norm));
            params.push(Param::new("bias", features, ParamKind::Bias));
        }
        params.push(Param::new("running_mean", features, ParamKind::Buffer));
        params.push(Param::new("running_var", features, ParamKind::Buffer));
        params.push(Param::new("num_batches_tracked", [], ParamKind::Buffer));
        params
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
        let (eps, momentum) = (self.eps, self.momentum);
        format!(
            "\
if self.training:
    self.num_batches_tracked.add_(1)
if self.training and x.numel() == x.size(1):
    x = torch.batch_norm(x, {weight}, {bias}, None, None, True, 0.0, {eps:?}, False)
else:
    x = torch.batch_norm(x, {weight}, {bias}, self.running_mean, self.running_var, self.training, {momentum:?}, {eps:?}, True)"
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
        Box::new(Norm::new(nn::batch_norm1d(path, input[0], self.0.config()), path, &self.0))
    }
}

/// tch's batch norm with the `num_batches_tracked` that it lacks, and with the addition and the ReLU that may
/// follow it.
#[derive(Debug)]
pub(super) struct Norm {
    norm: nn::BatchNorm,
    batches: Tensor,
    eps: f64,
    momentum: f64,
}

impl Norm {
    fn new(mut norm: nn::BatchNorm, path: &nn::Path, spec: &BatchNorm2d) -> Self {
        // tch makes the statistics in fp32 whatever the store's kind; set_data reaches the store's own
        // handles.
        for statistics in [&mut norm.running_mean, &mut norm.running_var] {
            let converted = statistics.to_kind(path.kind());
            statistics.set_data(&converted);
        }
        let zero = Tensor::zeros([0i64; 0], (Kind::Int64, path.device()));
        let batches = path.add("num_batches_tracked", zero, false);
        Self { norm, batches, eps: spec.eps, momentum: spec.momentum }
    }

    /// `relu(norm(xs) + addend)`, both as asked for.
    pub fn forward(&self, xs: &Tensor, addend: Option<&Tensor>, relu: bool, train: bool) -> Tensor {
        if train {
            no_grad(|| {
                let _ = self.batches.shallow_clone().g_add_scalar_(1);
            });
            if let Some(ys) = self.fused(xs, addend, relu) {
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

    /// What evaluation multiplies each channel by, and what it adds then, `[C]` each.
    pub fn line(&self) -> (Tensor, Tensor) {
        let inverse = (&self.norm.running_var + self.eps).rsqrt();
        let scale = self.norm.ws.as_ref().map_or_else(|| inverse.shallow_clone(), |ws| ws * &inverse);
        let shift = -&self.norm.running_mean * &scale;
        let shift = self.norm.bs.as_ref().map_or_else(|| shift.shallow_clone(), |bs| bs + &shift);
        (scale, shift)
    }

    fn fused(&self, xs: &Tensor, addend: Option<&Tensor>, relu: bool) -> Option<Tensor> {
        let channels = Channels {
            weight: self.norm.ws.as_ref(),
            bias: self.norm.bs.as_ref(),
            running_mean: &self.norm.running_mean,
            running_var: &self.norm.running_var,
            momentum: self.momentum,
            eps: self.eps,
        };
        or_panic(batch_norm::batch_norm(xs, addend, &channels, relu))
    }

    fn normalised(&self, xs: &Tensor, train: bool) -> Tensor {
        let size = xs.size();
        let values: i64 =
            size.iter().enumerate().filter(|(axis, _)| *axis != 1).map(|(_, extent)| extent).product();
        if train && values == 1 {
            // One value has no variance; it must not put NaN into the running statistics.
            let none = None::<&Tensor>;
            let (ws, bs) = (self.norm.ws.as_ref(), self.norm.bs.as_ref());
            return Tensor::batch_norm(xs, ws, bs, none, none, true, 0.0, self.eps, false);
        }
        self.norm.forward_t(xs, train)
    }
}

impl ModuleT for Norm {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        self.forward(xs, None, false, train)
    }
}
