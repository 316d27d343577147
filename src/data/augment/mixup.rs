//! Mixup: Zhang et al. 2018, "mixup: beyond empirical risk minimization"; torchvision's `MixUp`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::mixing::{beta, check_alpha, check_when, partners, weighted};
use super::values::{is_one, one};
use super::{Augmentation, MixWhen, Mixes};
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Each sample becomes λ of itself and 1 - λ of a partner, λ ~ Beta(alpha, alpha) drawn once per batch.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mixup {
    /// Both parameters of the Beta distribution.
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

impl Augmentation for Mixup {
    fn validate(&self) -> Result<(), Invalid> {
        check_alpha(self.alpha)?;
        check_when(self.when())
    }

    fn output_shape(&self, input: &[i64]) -> Result<Vec<i64>, String> {
        Ok(input.to_vec())
    }

    fn num_params(&self) -> usize {
        0
    }

    fn sample(&self, _: [usize; 2], _: &mut CounterRng, _: &mut Vec<f64>) {}
}

impl Mixes for Mixup {
    fn mix(&self, xs: &Tensor, ys: &Tensor, rng: &mut CounterRng) -> (Tensor, Tensor) {
        let lambda = beta(self.alpha, rng);
        let partners = partners(xs, rng);
        let (other_xs, other_ys) = (xs.index_select(0, &partners), ys.index_select(0, &partners));
        (weighted(xs, &other_xs, lambda), weighted(ys, &other_ys, lambda))
    }

    fn when(&self) -> MixWhen {
        MixWhen { p: self.p, off_epoch: self.off_epoch }
    }
}
