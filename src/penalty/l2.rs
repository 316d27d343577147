//! Ridge (Tikhonov 1943; Hoerl and Kennard 1970): (λ/2)‖w‖² in the objective, λw in the gradient.

use anyhow::Result;
use tch::{Kind, Tensor};

use super::form::{Penalty, PenaltyStep, StepRates, TorchDecay};
use crate::libtorch::optim as kernels;
use crate::libtorch::scalar::Scalar;

/// `l2`: the `weight_decay` of PyTorch's SGD, Adam, Adagrad and RMSprop.
pub struct L2;

/// (λ/2)‖w‖², 0-dim float64.
pub(super) fn half_square(ws: &[&Tensor], lambda: f64) -> Result<Tensor> {
    let norms = kernels::norms(ws, 2.0, true)?;
    Ok(norms.f_square()?.f_sum(Kind::Double)?.f_mul_scalar(lambda / 2.0)?)
}

impl Penalty for L2 {
    fn key(&self) -> &'static str {
        "l2"
    }

    fn family(&self) -> &'static str {
        "quadratic"
    }

    fn update_rule(&self) -> &'static str {
        "g ← g + λ·w, before momentum or preconditioning"
    }

    fn same_as(&self) -> &'static str {
        "`weight_decay` of PyTorch's SGD, Adam, Adagrad, RMSprop, NAdam and RAdam"
    }

    fn value(&self, ws: &[&Tensor], lambda: f64, _: &StepRates) -> Result<Tensor> {
        half_square(ws, lambda)
    }

    fn coefficient(&self, lambda: f64, _: &StepRates) -> f64 {
        lambda
    }

    fn idle(&self) -> f64 {
        0.0
    }

    fn before_update(&self, step: &PenaltyStep, lambda: &Scalar) -> Result<()> {
        lambda.add(step.grads, step.params)
    }

    fn torch(&self) -> Option<TorchDecay> {
        Some(TorchDecay::L2)
    }

    fn is_tunable(&self) -> bool {
        true
    }

    /// ∂w′/∂g ⊙ w: the update rule moves each weight by its own gradient alone.
    fn derivative(&self, step: &PenaltyStep, _: f64) -> Result<Vec<Tensor>> {
        let derivatives = step.update.grad_derivative(&step.old_grads)?.into_iter();
        derivatives.zip(&step.old_weights).map(|(d, w)| Ok(d.f_mul(w)?)).collect()
    }

    fn keeps_derivative(&self) -> bool {
        true
    }

    fn shrinkage(&self, rates: &StepRates) -> Option<f64> {
        rates.steady_state
    }

    fn share(&self, lambda: f64, rates: &StepRates) -> f64 {
        rates.steady_state.map_or(0.0, |_| rates.lr * lambda)
    }
}
