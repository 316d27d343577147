//! Data losses: pure functions of outputs and targets, each a mean over the batch.

use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};

/// Cross-entropy of logits `[N, K]` against classes (int64 `[N]`) or probabilities (`[N, K]`, after mixup or
/// cutmix), as `torch.nn.CrossEntropyLoss(label_smoothing=…)`. 0-dim.
pub fn cross_entropy(logits: &Tensor, ys: &Tensor, label_smoothing: f64) -> Tensor {
    const IGNORE_NOTHING: i64 = -100;
    logits.cross_entropy_loss::<Tensor>(ys, None, Reduction::Mean, IGNORE_NOTHING, label_smoothing)
}

/// What regression minimises; `outputs` and `ys` have the same shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RegressionLoss {
    /// Mean of (ŷ − y)², as `torch.nn.MSELoss`.
    #[default]
    Mse,
    /// Mean of ½(ŷ − y)², as scikit-learn scales its linear models.
    HalfMse,
    /// Mean of |ŷ − y|, as `torch.nn.L1Loss`.
    Mae,
    /// Quadratic below `delta`, linear above, as `torch.nn.HuberLoss` (Huber 1964).
    Huber { delta: f64 },
    /// Mean of √((ŷ − y)² + ε²), ε = 10⁻³ (Charbonnier et al. 1994).
    Charbonnier,
}

impl RegressionLoss {
    /// The loss as a 0-dim tensor.
    pub fn of(&self, outputs: &Tensor, ys: &Tensor) -> Tensor {
        match *self {
            Self::Mse => outputs.mse_loss(ys, Reduction::Mean),
            Self::HalfMse => outputs.mse_loss(ys, Reduction::Mean) * 0.5,
            Self::Mae => outputs.l1_loss(ys, Reduction::Mean),
            Self::Huber { delta } => outputs.huber_loss(ys, Reduction::Mean, delta),
            Self::Charbonnier => ((outputs - ys).square() + 1e-6).sqrt().mean(None::<Kind>),
        }
    }
}
