//! Constraints on the norm of what a neuron or filter takes in, by projection after the step: max-norm (Srebro and
//! Shraibman 2005; in networks: Hinton et al. 2012) and unit-norm.

use anyhow::Result;
use tch::{Kind, Tensor};

use super::form::{Penalty, PenaltyStep, StepRates};
use super::slices::slice_norms;
use crate::libtorch::scalar::Scalar;

/// `max_norm` and `unit_norm`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum NormConstraint {
    /// ‖w_g‖₂ ≤ c
    AtMost,
    /// ‖w_g‖₂ = c
    Equal,
}

impl Penalty for NormConstraint {
    fn key(&self) -> &'static str {
        if *self == Self::AtMost { "max_norm" } else { "unit_norm" }
    }

    fn family(&self) -> &'static str {
        "norm"
    }

    fn update_rule(&self) -> &'static str {
        match self {
            Self::AtMost => "after the step w_g ← w_g·min(1, c/‖w_g‖₂) for each filter (neuron) w_g",
            Self::Equal => {
                "after the step w_g ← w_g·c/‖w_g‖₂ for each filter (neuron) w_g; c = 1 for unit norm"
            }
        }
    }

    fn same_as(&self) -> &'static str {
        match self {
            Self::AtMost => {
                "Keras `MaxNorm(c)` with `axis=0` of a dense kernel, `axis=[0, 1, 2]` of a convolution's (Hinton et al. \
                 2012)"
            }
            Self::Equal => "Keras `UnitNorm()` on the same axes",
        }
    }

    fn is_bound(&self) -> bool {
        true
    }

    /// A constraint adds nothing to the objective where it holds.
    fn value(&self, ws: &[&Tensor], _: f64, _: &StepRates) -> Result<Tensor> {
        Ok(Tensor::f_zeros([0; 0], (Kind::Double, ws[0].device()))?)
    }

    fn coefficient(&self, bound: f64, _: &StepRates) -> f64 {
        bound
    }

    fn idle(&self) -> f64 {
        f64::INFINITY
    }

    fn follows_update(&self) -> bool {
        true
    }

    fn after_update(&self, step: &mut PenaltyStep, bound: &Scalar) -> Result<()> {
        for w in step.params {
            let (norms, _) = slice_norms(w, 0)?;
            let factors = bound.tensor(&norms)?.f_div(&norms)?;
            let factors = match self {
                Self::AtMost => factors.f_clamp_max(1.0)?,
                Self::Equal => factors,
            };
            // A filter of zeros has no direction, and c/0 is no factor.
            let factors = factors.f_masked_fill(&norms.f_eq(0.0)?, 1.0)?;
            let _ = w.f_detach()?.f_mul_(&factors.f_to_kind(w.kind())?)?;
        }
        Ok(())
    }

    fn supports_found_inf(&self) -> bool {
        *self == Self::AtMost
    }
}
