//! Mixtures of two samples and their targets. Mixup: Zhang et al. 2018, "mixup: beyond empirical risk
//! minimization". CutMix: Yun et al. 2019. torchvision's `MixUp` and `CutMix`.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Each sample becomes λ of itself and 1 - λ of a partner, λ ~ Beta(alpha, alpha) drawn once per batch.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Mixup {
    pub alpha: f64,
}

/// A rectangle of each picture is replaced by its partner's, of the area 1 - λ before it is cut off at the
/// border; the targets mix by the area that was replaced. λ ~ Beta(alpha, alpha) and the place are drawn once
/// per batch.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Cutmix {
    #[serde(default = "one")]
    pub alpha: f64,
}

fn one() -> f64 {
    1.0
}

fn positive(alpha: f64) -> Result<(), Invalid> {
    if !(alpha > 0.0 && alpha.is_finite()) {
        return Err(Invalid::new(
            "alpha",
            format!("{alpha} does not shape a Beta distribution; give one > 0"),
        ));
    }
    Ok(())
}

/// The partner of each sample of a batch of `n`, on the device of the batch.
fn partners(xs: &Tensor, draw: &mut CounterRng) -> Tensor {
    Tensor::from_slice(&draw.permutation(xs.size()[0] as usize)).to_device(xs.device())
}

/// λ of `own` and 1 - λ of `other`.
fn mixed(own: &Tensor, other: &Tensor, lambda: f64) -> Tensor {
    own * lambda + other * (1.0 - lambda)
}

impl Mixup {
    pub fn validate(&self) -> Result<(), Invalid> {
        positive(self.alpha)
    }

    /// `xs` `[B, ...]` and `ys` `[B, K]`, both floating point.
    pub fn apply(&self, xs: &Tensor, ys: &Tensor, draw: &mut CounterRng) -> (Tensor, Tensor) {
        let lambda = beta(self.alpha, draw);
        let partners = partners(xs, draw);
        let (other_xs, other_ys) = (xs.index_select(0, &partners), ys.index_select(0, &partners));
        (mixed(xs, &other_xs, lambda), mixed(ys, &other_ys, lambda))
    }
}

impl Cutmix {
    pub fn validate(&self) -> Result<(), Invalid> {
        positive(self.alpha)
    }

    /// `xs` `[B, C, H, W]` and `ys` `[B, K]`, both floating point.
    pub fn apply(&self, xs: &Tensor, ys: &Tensor, draw: &mut CounterRng) -> (Tensor, Tensor) {
        let lambda = beta(self.alpha, draw);
        let partners = partners(xs, draw);
        let side = 0.5 * (1.0 - lambda).sqrt();
        let mut span = |len: i64| {
            let centre = draw.below(len as u64) as i64;
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
        (out, mixed(ys, &ys.index_select(0, &partners), kept))
    }
}

/// Class indices `[B]` as rows of `classes` probabilities, of `kind`.
pub fn one_hot(ys: &Tensor, classes: usize, kind: Kind) -> Tensor {
    Tensor::zeros([ys.size()[0], classes as i64], (kind, ys.device())).scatter_value(1, &ys.unsqueeze(1), 1.0)
}

/// Beta(alpha, alpha) from two Gamma variates, in logarithms: for a small alpha both underflow.
fn beta(alpha: f64, draw: &mut CounterRng) -> f64 {
    let (a, b) = (ln_gamma_variate(alpha, draw), ln_gamma_variate(alpha, draw));
    1.0 / (1.0 + (b - a).exp())
}

/// The logarithm of a Gamma(shape, 1) variate: Marsaglia and Tsang 2000, with their boost for shape < 1.
fn ln_gamma_variate(shape: f64, draw: &mut CounterRng) -> f64 {
    if shape < 1.0 {
        let boost = (1.0 - draw.uniform()).ln() / shape;
        return ln_gamma_variate(shape + 1.0, draw) + boost;
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = draw.normal();
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - draw.uniform()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return (d * v).ln();
        }
    }
}
