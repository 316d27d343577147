//! What mixtures of samples share: λ, the partners, and targets that can be mixed.

use tch::{Kind, Tensor};

use super::MixWhen;
use super::values::probability;
use crate::libtorch::device::upload;
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

pub(super) fn check_alpha(alpha: f64) -> Result<(), Invalid> {
    if !(alpha > 0.0 && alpha.is_finite()) {
        return Err(Invalid::new(
            "alpha",
            format!("{alpha} does not shape a Beta distribution; give one > 0"),
        ));
    }
    Ok(())
}

pub(super) fn check_when(when: MixWhen) -> Result<(), Invalid> {
    if when.off_epoch == Some(0) {
        return Err(Invalid::new(
            "off_epoch",
            "epochs count from 1, and in the first nothing would be mixed",
        ));
    }
    probability("p", when.p)
}

/// The partner of each sample of a batch of `n`, on the device of the batch.
pub(super) fn partners(xs: &Tensor, rng: &mut CounterRng) -> Tensor {
    upload(&Tensor::from_slice(&rng.permutation(xs.size()[0] as usize)), xs.device())
}

/// λ·xs + (1 − λ)·others
pub(super) fn weighted(xs: &Tensor, others: &Tensor, lambda: f64) -> Tensor {
    xs * lambda + others * (1.0 - lambda)
}

/// Targets as rows of probabilities `[B, K]` of `kind`, so that they can be mixed: classes one-hot, values as
/// they are.
pub fn soft(ys: &Tensor, classes: usize, kind: Kind) -> Tensor {
    if ys.kind() != Kind::Int64 {
        return ys.shallow_clone();
    }
    Tensor::zeros([ys.size()[0], classes as i64], (kind, ys.device())).scatter_value(1, &ys.unsqueeze(1), 1.0)
}

/// Beta(alpha, alpha) from two Gamma variates, in logarithms: for a small alpha both underflow.
pub(super) fn beta(alpha: f64, rng: &mut CounterRng) -> f64 {
    let (a, b) = (ln_gamma_variate(alpha, rng), ln_gamma_variate(alpha, rng));
    1.0 / (1.0 + (b - a).exp())
}

/// The logarithm of a Gamma(shape, 1) variate: Marsaglia and Tsang 2000, with their boost for shape < 1.
fn ln_gamma_variate(shape: f64, rng: &mut CounterRng) -> f64 {
    if shape < 1.0 {
        let boost = (1.0 - rng.uniform()).ln() / shape;
        return ln_gamma_variate(shape + 1.0, rng) + boost;
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = rng.normal();
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - rng.uniform()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return (d * v).ln();
        }
    }
}
