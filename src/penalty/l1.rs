//! Lasso (Tibshirani 1996): λ‖w‖₁ in the objective, by a soft threshold (ISTA: Daubechies, Defrise and De Mol
//! 2004) or by the subgradient.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::form::{Penalty, PenaltyStep, StepRates, threshold};
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
    const FORMS: &'static [&'static dyn Penalty] =
        &[&L1(Self::Proximal), &L1(Self::Preconditioned), &L1(Self::Subgradient)];

    fn form(self) -> &'static dyn Penalty {
        Self::FORMS[self as usize]
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

    fn update_rule(&self) -> &'static str {
        match self.0 {
            L1Mode::Proximal => {
                "after the step w ← sign(w)·max(\\|w\\| − η·λ, 0), a soft threshold: exact zeros"
            }
            L1Mode::Preconditioned => {
                "the same, scaled for each weight as its step is: η·λ/(√v̂ + ε) with Adam"
            }
            L1Mode::Subgradient => "g ← g + λ·sign(w), sign(0) = 0: weights hover around 0",
        }
    }

    fn same_as(&self) -> &'static str {
        match self.0 {
            L1Mode::Proximal => "with SGD the lasso by ISTA; with `l2` beside it the elastic net",
            L1Mode::Preconditioned => {
                "the lasso with Adam, Adagrad and RMSprop too (Duchi, Hazan & Singer 2011; Yun, Lozano & Yang 2021)"
            }
            L1Mode::Subgradient => "Keras `l1`",
        }
    }

    fn value(&self, ws: &[&Tensor], lambda: f64, _: &StepRates) -> Result<Tensor> {
        Ok(kernels::norms(ws, 1.0, true)?.f_sum(Kind::Double)?.f_mul_scalar(lambda)?)
    }

    /// λ in the gradient, or the threshold.
    fn coefficient(&self, lambda: f64, rates: &StepRates) -> f64 {
        match self.0 {
            L1Mode::Subgradient => lambda,
            _ => threshold(lambda, rates),
        }
    }

    fn idle(&self) -> f64 {
        0.0
    }

    fn before_update(&self, step: &PenaltyStep, lambda: &Scalar) -> Result<()> {
        if self.0 == L1Mode::Subgradient { lambda.add_sign(step.grads, step.params) } else { Ok(()) }
    }

    fn follows_update(&self) -> bool {
        self.0 != L1Mode::Subgradient
    }

    fn after_update(&self, step: &mut PenaltyStep, limit: &Scalar) -> Result<()> {
        if self.0 == L1Mode::Subgradient {
            return Ok(());
        }
        let is_scaled = self.0 == L1Mode::Preconditioned;
        match if is_scaled { step.update.preconditioner()? } else { None } {
            Some(scales) => limit.soft_threshold_scaled(step.params, &scales)?,
            None => limit.soft_threshold(step.params)?,
        }
        // A soft threshold lets through what it does not make 0.
        for (derivative, w) in step.derivative.iter_mut().flatten().zip(step.params) {
            *derivative = derivative.f_mul(&w.f_detach()?.f_ne(0)?)?;
        }
        Ok(())
    }

    fn needs_preconditioner(&self) -> bool {
        self.0 == L1Mode::Preconditioned
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
