//! Lasso (Tibshirani 1996): λ‖w‖₁ in the objective, by a soft threshold (ISTA: Daubechies, Defrise and De Mol
//! 2004) or by the subgradient.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::form::{Penalty, PenaltyStep, StepRates};
use super::table::Mode;
use crate::libtorch::optim as kernels;
use crate::libtorch::scalar::Scalar;

/// How λ₁ acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum L1Mode {
    /// Soft threshold after the step: weights become exactly 0.
    #[default]
    Proximal,
    /// The same in the metric of the optimiser's preconditioner: the threshold of each weight is scaled as
    /// its step is (Duchi, Hazan and Singer 2011; Yun, Lozano and Yang 2021).
    Preconditioned,
    /// λ₁·sign(w) in the gradient: weights hover around 0.
    Subgradient,
}

impl Mode for L1Mode {
    fn form(self) -> &'static dyn Penalty {
        match self {
            Self::Proximal => &L1(Self::Proximal),
            Self::Preconditioned => &L1(Self::Preconditioned),
            Self::Subgradient => &L1(Self::Subgradient),
        }
    }
}

/// `l1`: Keras's `l1` is its subgradient mode.
pub struct L1(pub L1Mode);

impl Penalty for L1 {
    fn key(&self) -> &'static str {
        "l1"
    }

    fn mode(&self) -> Option<&'static str> {
        Some(match self.0 {
            L1Mode::Proximal => "proximal",
            L1Mode::Preconditioned => "preconditioned",
            L1Mode::Subgradient => "subgradient",
        })
    }

    fn value(&self, ws: &[&Tensor], lambda: f64, _: &StepRates) -> Result<Tensor> {
        Ok(kernels::norms(ws, 1.0, true)?.f_sum(Kind::Double)?.f_mul_scalar(lambda)?)
    }

    /// λ in the gradient, or the threshold. That meets the gradient at the minimum of the objective, so it
    /// acts as many times over as momentum has a steady gradient act.
    fn coefficient(&self, lambda: f64, rates: &StepRates) -> f64 {
        match self.0 {
            L1Mode::Subgradient => lambda,
            _ => rates.steady_state.unwrap_or(rates.lr) * lambda,
        }
    }

    fn idle(&self) -> f64 {
        0.0
    }

    fn before_update(&self, step: &PenaltyStep, lambda: &Scalar) -> Result<()> {
        if self.0 == L1Mode::Subgradient { lambda.add_sign(step.grads, step.params) } else { Ok(()) }
    }

    fn after_update(&self, step: &mut PenaltyStep, threshold: &Scalar) -> Result<()> {
        if self.0 == L1Mode::Subgradient {
            return Ok(());
        }
        let is_scaled = self.0 == L1Mode::Preconditioned;
        match if is_scaled { step.update.preconditioner()? } else { None } {
            Some(scales) => threshold.soft_threshold_scaled(step.params, &scales)?,
            None => threshold.soft_threshold(step.params)?,
        }
        // A soft threshold lets through what it does not make 0.
        for (derivative, w) in step.derivative.iter_mut().flatten().zip(step.params) {
            *derivative = derivative.f_mul(&w.f_detach()?.f_ne(0)?)?;
        }
        Ok(())
    }

    fn is_sparse(&self) -> bool {
        self.0 != L1Mode::Subgradient
    }

    fn keeps_derivative(&self) -> bool {
        self.0 != L1Mode::Preconditioned
    }

    fn adaptive_note(&self, optimizer: &str) -> Option<String> {
        (self.0 == L1Mode::Proximal).then(|| {
            format!(
                "l1: the soft threshold η·λ is the same for every weight, and the steps of {optimizer} are not, so the run \
                 does not end at the minimum of loss + λ‖w‖₁ (with Adagrad every weight becomes 0 in time); `l1_mode: \
                 preconditioned` scales it as the steps"
            )
        })
    }
}
