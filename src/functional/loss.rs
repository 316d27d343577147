//! Data losses: pure functions of outputs and targets, each a mean over the batch.

use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Kind, Reduction, Tensor};

use crate::functional::ssim;
use crate::libtorch::kernels::loss as fused;
use crate::libtorch::or_panic;
use crate::util::yaml::Invalid;

/// Cross-entropy of logits `[N, K]` against classes (int64 `[N]`) or probabilities (`[N, K]`, after mixup or
/// cutmix), as `torch.nn.CrossEntropyLoss(weight=…, label_smoothing=…)`. 0-dim.
pub fn cross_entropy(logits: &Tensor, ys: &Tensor, label_smoothing: f64, weights: Option<&Tensor>) -> Tensor {
    const IGNORE_NOTHING: i64 = -100;
    if weights.is_none()
        && let Some(loss) = or_panic(fused::cross_entropy(logits, ys, label_smoothing))
    {
        return loss;
    }
    logits.cross_entropy_loss(ys, weights, Reduction::Mean, IGNORE_NOTHING, label_smoothing)
}

/// The focal loss (Lin et al. 2017).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Focal {
    /// γ: 0 is the cross-entropy itself.
    #[schemars(range(min = 0))]
    pub gamma: f64,
    /// α, of several labels only, as of torchvision's `sigmoid_focal_loss`: the weight of samples with the class;
    /// those without it weigh 1 - α. 1 each when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub alpha: Option<f64>,
}

impl Default for Focal {
    fn default() -> Self {
        Self { gamma: 2.0, alpha: None }
    }
}

impl Focal {
    /// Refuses values out of range.
    pub fn validate(&self) -> Result<(), Invalid> {
        if !(self.gamma >= 0.0 && self.gamma.is_finite()) {
            return Err(Invalid::new("gamma", format!("{} is not 0 or more", self.gamma)));
        }
        match self.alpha {
            Some(alpha) if !(0.0..=1.0).contains(&alpha) => {
                Err(Invalid::new("alpha", format!("{alpha} is not in 0..=1")))
            }
            _ => Ok(()),
        }
    }

    /// Σ over classes of y·w·(1 - p)^γ·(-ln p), divided as [`cross_entropy`] divides: by the weights of the
    /// classes, or by the number of samples where targets are shares of classes. 0-dim.
    pub fn cross_entropy(
        &self,
        logits: &Tensor,
        ys: &Tensor,
        label_smoothing: f64,
        weights: Option<&Tensor>,
    ) -> Tensor {
        let logarithms = logits.log_softmax(1, None::<Kind>);
        let kind = logarithms.kind();
        let (samples, classes) = logits.size2().unwrap_or((1, 1));
        let hard = (ys.kind() == Kind::Int64).then_some(ys);
        let shares = match hard {
            Some(ys) => {
                Tensor::zeros([samples, classes], (kind, ys.device())).scatter_value(1, &ys.unsqueeze(1), 1.0)
            }
            None => ys.to_kind(kind),
        };
        let shares = match label_smoothing {
            0.0 => shares,
            smoothing => shares * (1.0 - smoothing) + smoothing / classes as f64,
        };
        let weighted = match weights {
            Some(weights) => shares * weights,
            None => shares,
        };
        let sum = (weighted * self.factor(&logarithms.exp()) * logarithms).sum(None::<Kind>).neg();
        match (hard, weights) {
            (Some(ys), Some(weights)) => sum / weights.index_select(0, ys).sum(None::<Kind>),
            _ => sum / samples as f64,
        }
    }

    /// (1 - p)^γ.
    fn factor(&self, p: &Tensor) -> Tensor {
        // Its slope is finite where p is 1 and γ below 1.
        const LEAST: f64 = 1e-8;
        let unlike: Tensor = 1.0 - p;
        unlike.clamp_min(LEAST).pow_tensor_scalar(self.gamma)
    }

    /// The mean over samples and labels of (1 - p)^γ·(-ln p), p the probability of what is, as torchvision's
    /// `sigmoid_focal_loss`; `pos_weight` as that of [`binary_cross_entropy`]. 0-dim.
    pub fn binary_cross_entropy(&self, logits: &Tensor, ys: &Tensor, pos_weight: Option<&Tensor>) -> Tensor {
        let each = logits.binary_cross_entropy_with_logits(ys, None, pos_weight, Reduction::None);
        let shares = logits.sigmoid();
        let mut each = each * self.factor(&(&shares * ys + (1.0 - &shares) * (1.0 - ys)));
        if let Some(alpha) = self.alpha {
            each *= ys * alpha + (1.0 - ys) * (1.0 - alpha);
        }
        each.mean(None::<Kind>)
    }
}

/// The mean over samples and labels of the cross-entropy of logits against zeros and ones (or shares), both
/// `[N, K]`, as `torch.nn.BCEWithLogitsLoss(pos_weight=…)`. 0-dim.
pub fn binary_cross_entropy(logits: &Tensor, ys: &Tensor, pos_weight: Option<&Tensor>) -> Tensor {
    logits.binary_cross_entropy_with_logits(ys, None, pos_weight, Reduction::Mean)
}

fn squared_error(outputs: &Tensor, ys: &Tensor, factor: f64) -> Tensor {
    or_panic(fused::squared_error(outputs, ys, factor))
        .unwrap_or_else(|| outputs.mse_loss(ys, Reduction::Mean) * factor)
}

/// Cross-entropy of logits `[N, K, H, W]` against classes int64 `[N, H, W]`, of which negative ones do not
/// count; `weights` `[K]` as those of `torch.nn.CrossEntropyLoss`. 0-dim.
pub fn pixel_cross_entropy(logits: &Tensor, ys: &Tensor, weights: Option<&Tensor>) -> Tensor {
    logits.cross_entropy_loss(&uncounted(ys), weights, Reduction::Mean, UNCOUNTED, 0.0)
}

/// The same before it is divided by the sum of the weights of the pixels that count.
pub fn pixel_cross_entropy_sum(logits: &Tensor, ys: &Tensor, weights: Option<&Tensor>) -> Tensor {
    logits.cross_entropy_loss(&uncounted(ys), weights, Reduction::Sum, UNCOUNTED, 0.0)
}

/// PyTorch's `ignore_index`.
const UNCOUNTED: i64 = -100;

fn uncounted(ys: &Tensor) -> Tensor {
    ys.where_self(&ys.ge(0), &Tensor::full([], UNCOUNTED, (Kind::Int64, ys.device())))
}

/// 1 − the mean over classes of soft Dice, 2·Σpt / Σ(p + t) over all pixels of the batch (Milletari et al.
/// 2016). Logits `[N, K, H, W]`, classes int64 `[N, H, W]`, of which negative ones do not count. 0-dim.
pub fn dice(logits: &Tensor, ys: &Tensor) -> Tensor {
    let [common, either] = dice_sums(logits, ys);
    dice_of(&common, &either)
}

/// The loss of the sums that [`dice_sums`] gives, or of those of several batches together.
pub fn dice_of(common: &Tensor, either: &Tensor) -> Tensor {
    const EPSILON: f64 = 1e-6;
    1.0 - ((common + EPSILON) / (either + EPSILON)).mean(None::<Kind>)
}

/// 2·Σpt and Σ(p + t) of each class, `[K]`, over the pixels of the batch that count.
pub fn dice_sums(logits: &Tensor, ys: &Tensor) -> [Tensor; 2] {
    let classes = logits.size()[1];
    let counted = ys.ge(0).unsqueeze(1).to_kind(logits.kind());
    let truth = ys.clamp_min(0).one_hot(classes).permute([0, 3, 1, 2]).to_kind(logits.kind()) * &counted;
    let shares = logits.softmax(1, logits.kind()) * counted;
    let over = |values: Tensor| values.sum_dim_intlist(&[0i64, 2, 3][..], false, logits.kind());
    [over(&shares * &truth) * 2.0, over(shares + truth)]
}

/// KL divergence of N(mean, exp(log_var)) from N(0, 1) in nats, per sample; `[N]`.
pub fn kl_from_standard_normal(mean: &Tensor, log_var: &Tensor) -> Tensor {
    let nats = (mean.square() + log_var.exp() - 1.0 - log_var) * 0.5;
    nats.flatten(1, -1).sum_dim_intlist(&[1i64][..], false, mean.kind())
}

/// The distribution of a pixel of which the decoder of a VAE outputs the mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Likelihood {
    /// Black or white: the output is the probability of white, so the network ends with a sigmoid.
    #[default]
    Bernoulli,
    /// A normal distribution; images are in [0, 1].
    Gaussian {
        /// Standard deviation.
        #[schemars(extend("exclusiveMinimum" = 0))]
        sigma: f64,
    },
}

impl Likelihood {
    /// −log p(`ys` | `outputs`) in nats, per sample; `[N]`.
    pub fn nats(&self, outputs: &Tensor, ys: &Tensor) -> Tensor {
        let (outputs, ys) = (outputs.flatten(1, -1), ys.flatten(1, -1));
        let nats = match *self {
            Self::Bernoulli => outputs.binary_cross_entropy::<Tensor>(&ys, None, Reduction::None),
            Self::Gaussian { sigma } => {
                let constant = sigma.ln() + 0.5 * std::f64::consts::TAU.ln();
                ((&outputs - ys) / sigma).square() * 0.5 + constant
            }
        };
        nats.sum_dim_intlist(&[1i64][..], false, outputs.kind())
    }
}

/// A loss ℓ(ŷ, y) between tensors of the same shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[schemars(transform = with_alias)]
pub enum RegressionLoss {
    /// Mean of (ŷ − y)², as `torch.nn.MSELoss`.
    #[default]
    Mse,
    /// Mean of ½(ŷ − y)² over samples and outputs: with one output as scikit-learn scales its linear models.
    HalfMse,
    /// Mean of |ŷ − y|, as `torch.nn.L1Loss`.
    #[serde(alias = "l1")]
    Mae,
    /// Quadratic below `delta`, linear above, as `torch.nn.HuberLoss` (Huber 1964).
    Huber {
        /// Where it becomes linear.
        #[schemars(extend("exclusiveMinimum" = 0))]
        delta: f64,
    },
    /// Mean of √((ŷ − y)² + ε²) (Charbonnier et al. 1994).
    Charbonnier {
        /// ε.
        #[serde(default = "thousandth")]
        #[schemars(extend("exclusiveMinimum" = 0))]
        eps: f64,
    },
    /// α·(1 − SSIM) + (1 − α)·mean |ŷ − y|, for images (Zhao et al. 2017, with one scale of SSIM).
    Ssim {
        /// α.
        #[serde(default = "mostly")]
        #[schemars(range(min = 0, max = 1))]
        alpha: f64,
    },
}

/// schemars leaves out aliases.
fn with_alias(schema: &mut Schema) {
    if let Some(Value::Array(losses)) = schema.get_mut("oneOf") {
        losses.push(json!({"const": "l1", "description": "The same as `mae`."}));
    }
}

fn thousandth() -> f64 {
    1e-3
}

fn mostly() -> f64 {
    0.84
}

impl RegressionLoss {
    /// Refuses values out of range; paths are relative to `loss`.
    pub fn validate(&self) -> Result<(), Invalid> {
        let check = |key: &str, value: f64, fine: bool, wanted: &str| match fine && value.is_finite() {
            true => Ok(()),
            false => Err(Invalid::new(key, format!("{value} is not {wanted}"))),
        };
        match *self {
            Self::Huber { delta } => check("huber.delta", delta, delta > 0.0, "a positive number"),
            Self::Charbonnier { eps } => check("charbonnier.eps", eps, eps > 0.0, "a positive number"),
            Self::Ssim { alpha } => check("ssim.alpha", alpha, (0.0..=1.0).contains(&alpha), "in 0..=1"),
            Self::Mse | Self::HalfMse | Self::Mae => Ok(()),
        }
    }

    /// The loss as a 0-dim tensor.
    pub fn of(&self, outputs: &Tensor, ys: &Tensor) -> Tensor {
        match *self {
            Self::Mse => squared_error(outputs, ys, 1.0),
            Self::HalfMse => squared_error(outputs, ys, 0.5),
            Self::Mae => outputs.l1_loss(ys, Reduction::Mean),
            Self::Huber { delta } => outputs.huber_loss(ys, Reduction::Mean, delta),
            Self::Charbonnier { eps } => ((outputs - ys).square() + eps * eps).sqrt().mean(None::<Kind>),
            Self::Ssim { alpha } => {
                let unlike = 1.0 - ssim(outputs, ys).mean(None::<Kind>);
                unlike * alpha + outputs.l1_loss(ys, Reduction::Mean) * (1.0 - alpha)
            }
        }
    }
}
