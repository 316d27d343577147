//! CutMix: Yun et al. 2019, "CutMix: Regularization strategy to train strong classifiers with localizable
//! features"; torchvision's `CutMix`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::mixing::{beta, check_alpha, check_when, partners, weighted};
use super::values::{is_one, one};
use super::{Augmentation, MixWhen, Mixes};
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// A rectangle of each picture is replaced by its partner's, of the area 1 - λ before it is cut off at the
/// border; the targets mix by the area that was replaced. λ ~ Beta(alpha, alpha) and the place are drawn once
/// per batch.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cutmix {
    /// Both parameters of the Beta distribution.
    #[serde(default = "default_alpha")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub alpha: f64,
    /// Share of the batches that are mixed, of those whose turn it is where there are several mixtures.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
    /// From this epoch on nothing is mixed (timm's `mixup_off_epoch`); never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub off_epoch: Option<u64>,
}

fn default_alpha() -> f64 {
    1.0
}

impl Augmentation for Cutmix {
    fn validate(&self) -> Result<(), Invalid> {
        check_alpha(self.alpha)?;
        check_when(self.when())
    }

    fn num_params(&self) -> usize {
        0
    }

    fn sample(&self, _: [usize; 2], _: &mut CounterRng, _: &mut Vec<f64>) {}
}

impl Mixes for Cutmix {
    fn mix(&self, xs: &Tensor, ys: &Tensor, rng: &mut CounterRng) -> (Tensor, Tensor) {
        let lambda = beta(self.alpha, rng);
        let partners = partners(xs, rng);
        let side = 0.5 * (1.0 - lambda).sqrt();
        let mut span = |len: i64| {
            let centre = rng.below(len as u64) as i64;
            let half = (side * len as f64) as i64;
            let first = (centre - half).max(0);
            (first, (centre + half).min(len) - first)
        };
        let (height, width) = (xs.size()[2], xs.size()[3]);
        let ((top, rows), (left, columns)) = (span(height), span(width));
        let window = |xs: &Tensor| xs.narrow(2, top, rows).narrow(3, left, columns);
        let out = xs.copy();
        window(&out).copy_(&window(xs).index_select(0, &partners));
        let kept = 1.0 - (rows * columns) as f64 / (height * width) as f64;
        (out, weighted(ys, &ys.index_select(0, &partners), kept))
    }

    fn when(&self) -> MixWhen {
        MixWhen { p: self.p, off_epoch: self.off_epoch }
    }
}
