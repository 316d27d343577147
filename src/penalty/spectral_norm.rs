//! The spectral norm, the largest singular value σ₁ of a weight as a matrix: as a penalty (Yoshida and Miyato 2017) and
//! as a bound, by projection (Sedghi, Gupta and Long 2019).

use anyhow::Result;
use tch::{Kind, Tensor};

use super::form::{Penalty, PenaltyStep, StepRates};
use super::gradient::GradientForm;
use super::matrix::{EIGENVALUES_WAIT, Singular};
use crate::libtorch::scalar::Scalar;

/// `spectral_norm`: λ/2·σ₁².
pub struct SpectralNorm;

impl GradientForm for SpectralNorm {
    fn key(&self) -> &'static str {
        "spectral_norm"
    }

    fn update_rule(&self) -> &'static str {
        "g ← g + λ·σ₁·u₁v₁ᵀ, σ₁ the largest singular value of the weight as a matrix `[out, the rest]`, u₁ and v₁ its \
         vectors (exact, not by power iteration)"
    }

    fn same_as(&self) -> &'static str {
        "spectral norm regularisation, the term (λ/2)·σ₁² (Yoshida & Miyato 2017)"
    }

    fn term(&self, w: &Tensor, _: Option<&Tensor>) -> Result<Tensor> {
        Ok(match Singular::of(w)? {
            Some(singular) => singular.largest()?.f_square()?.f_mul_scalar(0.5)?,
            None => Tensor::f_full([0; 0], f64::NAN, (Kind::Double, w.device()))?,
        })
    }

    fn gradient(&self, w: &Tensor, _: Option<&Tensor>) -> Result<Tensor> {
        let Some(singular) = Singular::of(w)? else { return Ok(w.f_full_like(f64::NAN)?) };
        let only = singular.values.f_zeros_like()?;
        only.f_select(0, -1)?.f_copy_(&singular.largest()?)?;
        singular.with(&only, w)
    }

    fn graph_obstacle(&self) -> Option<&'static str> {
        Some(EIGENVALUES_WAIT)
    }
}

/// `max_spectral_norm`: σ₁ ≤ c.
pub struct MaxSpectralNorm;

impl Penalty for MaxSpectralNorm {
    fn key(&self) -> &'static str {
        "max_spectral_norm"
    }

    fn update_rule(&self) -> &'static str {
        "after the step σ ← min(σ, c) for each singular value of the weight as a matrix `[out, the rest]`"
    }

    fn same_as(&self) -> &'static str {
        "the Euclidean projection on ‖W‖₂ ≤ c; PyTorch's `spectral_norm` and Gouk et al. 2021 divide the whole weight by \
         σ₁ (or by σ₁/c) in its place. A convolution's operator norm is at most √(k_h·k_w) times that of its matrix"
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
            let Some(singular) = Singular::of(w)? else { continue };
            let bound = bound.tensor(&singular.values)?;
            // Within the bound the weight keeps its bits.
            if singular.largest()?.f_gt_tensor(&bound)?.f_int64_value(&[])? == 1 {
                let kept = singular.values.f_minimum(&bound)?;
                w.f_detach()?.f_copy_(&singular.with(&kept, w)?)?;
            }
        }
        Ok(())
    }

    fn graph_obstacle(&self) -> Option<&'static str> {
        Some(EIGENVALUES_WAIT)
    }

    fn supports_found_inf(&self) -> bool {
        false
    }
}
