//! The input-gradient penalty, double backpropagation (Drucker and LeCun 1992; Ross and Doshi-Velez 2018): (λ/2)·mean
//! over the samples of ‖∂L/∂x‖², differentiated a second time by the weights.
//!
//! Of a loss that is no mean over samples (segmentation, batch norm's coupling) it is (λ/2)·N·‖∂L/∂X‖², L the mean loss
//! of all N samples X of the step, which for a mean over samples is the same.

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

use super::Trainer;
use super::deferred_scalar::DeferredScalar;
use crate::schedule::ScheduleStep;

/// What one step minimises beside the penalty on the weights.
pub(super) struct BatchLoss {
    /// Of the data.
    pub data: DeferredScalar,
    /// Σ weight·loss of the auxiliary heads, where there are some.
    pub auxiliary: Option<DeferredScalar>,
    /// The input-gradient penalty, where there is one.
    pub input_gradient: Option<DeferredScalar>,
}

impl Trainer<'_> {
    /// λ of the step that `step` others precede; None where the config has no such penalty.
    pub(super) fn input_gradient_at(&self, step: u64) -> Option<f64> {
        let clock = ScheduleStep { step, ..self.clock() };
        self.session.config.spec.penalty.input_gradient.map(|lambda| lambda.at(clock))
    }

    /// The inputs to learn from: with the penalty, such that a loss can be differentiated by them.
    pub(super) fn tracked(&self, xs: Tensor) -> Tensor {
        let is_tracked = self.session.config.spec.penalty.input_gradient.is_some();
        if is_tracked { xs.detach().set_requires_grad(true) } else { xs }
    }

    /// What to differentiate for inputs `xs` with this part of the loss of `samples` samples (of
    /// several ranks: so many each), and the penalty in it.
    pub(super) fn with_input_gradient(
        &self,
        loss: &Tensor,
        xs: &Tensor,
        samples: f64,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let Some(lambda) = self.input_gradient_at(self.position()) else {
            return Ok((loss.shallow_clone(), None));
        };
        let slope =
            Tensor::f_run_backward(&[loss], &[xs], true, true).context("the input-gradient penalty")?;
        let slope = slope.into_iter().next().context("the loss has no gradient by the inputs")?;
        let square = slope.f_square()?.f_sum(Kind::Double)?;
        let penalty = square.f_mul_scalar(0.5 * lambda * samples)?;
        Ok((loss.f_add(&penalty)?, Some(penalty)))
    }
}
