//! The nuclear norm (Fazel 2002): λ·Σσ over the singular values of each weight as a matrix, by singular value
//! thresholding (Cai, Candès and Shen 2010): the rank falls.

use anyhow::Result;
use tch::{Kind, Tensor};

use super::form::{Penalty, PenaltyStep, StepRates, threshold, unscaled};
use super::matrix::{EIGENVALUES_WAIT, Singular};
use crate::libtorch::scalar::Scalar;

/// `nuclear_norm`.
pub struct NuclearNorm;

impl Penalty for NuclearNorm {
    fn key(&self) -> &'static str {
        "nuclear_norm"
    }

    fn update_rule(&self) -> &'static str {
        "after the step σ ← max(σ − η·λ, 0) for each singular value of the weight as a matrix `[out, the rest]`: the \
         rank falls, while single weights are not 0"
    }

    fn same_as(&self) -> &'static str {
        "trace norm; singular value thresholding (Cai, Candès & Shen 2010)"
    }

    fn value(&self, ws: &[&Tensor], lambda: f64, _: &StepRates) -> Result<Tensor> {
        let mut total = Tensor::f_zeros([0; 0], (Kind::Double, ws[0].device()))?;
        for w in ws {
            total = match Singular::of(w)? {
                Some(singular) => total.f_add(&singular.values.f_sum(Kind::Double)?)?,
                None => total.f_add_scalar(f64::NAN)?,
            };
        }
        Ok(total.f_mul_scalar(lambda)?)
    }

    fn coefficient(&self, lambda: f64, rates: &StepRates) -> f64 {
        threshold(lambda, rates)
    }

    fn idle(&self) -> f64 {
        0.0
    }

    fn follows_update(&self) -> bool {
        true
    }

    fn after_update(&self, step: &mut PenaltyStep, threshold: &Scalar) -> Result<()> {
        for w in step.params {
            let Some(singular) = Singular::of(w)? else { continue };
            let kept = singular.values.f_sub(&threshold.tensor(&singular.values)?)?.f_clamp_min(0.0)?;
            w.f_detach()?.f_copy_(&singular.with(&kept, w)?)?;
        }
        Ok(())
    }

    fn graph_obstacle(&self) -> Option<&'static str> {
        Some(EIGENVALUES_WAIT)
    }

    fn supports_found_inf(&self) -> bool {
        false
    }

    fn adaptive_note(&self, optimizer: &str) -> Option<String> {
        Some(unscaled(self.key(), "is the same for every singular value", optimizer))
    }
}
