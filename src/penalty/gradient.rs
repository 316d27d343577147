//! Forms that are a part of the gradient: g ← g + λ·∂R/∂w, before momentum and preconditioning, as `l2` is.

use anyhow::Result;
use tch::{Kind, Tensor};

use super::form::{Penalty, PenaltyStep, StepRates};
use crate::libtorch::scalar::Scalar;

/// A term λ·ΣR(w) of the objective that acts by its gradient. What implements this is a [`Penalty`]: `auto` included,
/// for the derivative of a step by λ is ∂w′/∂g ⊙ ∂R/∂w.
pub trait GradientForm: Sync {
    fn key(&self) -> &'static str;

    fn mode(&self) -> Option<&'static str> {
        None
    }

    fn family(&self) -> &'static str {
        self.key()
    }

    fn update_rule(&self) -> &'static str;

    fn same_as(&self) -> &'static str;

    /// R of one weight, 0-dim float64. `initial`: as training began, where a file gave it.
    fn term(&self, w: &Tensor, initial: Option<&Tensor>) -> Result<Tensor>;

    /// ∂R/∂w, of the shape of `w`.
    fn gradient(&self, w: &Tensor, initial: Option<&Tensor>) -> Result<Tensor>;

    fn needs_initial(&self) -> bool {
        false
    }

    fn graph_obstacle(&self) -> Option<&'static str> {
        None
    }
}

/// ∂R/∂w of each weight, in its kind.
fn gradients(form: &impl GradientForm, ws: &[&Tensor], initial: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let one = |(w, initial): (&&Tensor, &Option<&Tensor>)| -> Result<Tensor> {
        let w = w.f_detach()?;
        Ok(form.gradient(&w, *initial)?.f_to_kind(w.kind())?)
    };
    ws.iter().zip(initial).map(one).collect()
}

impl<F: GradientForm> Penalty for F {
    fn key(&self) -> &'static str {
        GradientForm::key(self)
    }

    fn mode(&self) -> Option<&'static str> {
        GradientForm::mode(self)
    }

    fn family(&self) -> &'static str {
        GradientForm::family(self)
    }

    fn update_rule(&self) -> &'static str {
        GradientForm::update_rule(self)
    }

    fn same_as(&self) -> &'static str {
        GradientForm::same_as(self)
    }

    fn value(&self, ws: &[&Tensor], lambda: f64, rates: &StepRates) -> Result<Tensor> {
        self.value_from(ws, &vec![None; ws.len()], lambda, rates)
    }

    fn value_from(
        &self,
        ws: &[&Tensor],
        initial: &[Option<&Tensor>],
        lambda: f64,
        _: &StepRates,
    ) -> Result<Tensor> {
        let mut total = Tensor::f_zeros([0; 0], (Kind::Double, ws[0].device()))?;
        for (w, initial) in ws.iter().zip(initial) {
            total = total.f_add(&self.term(&w.f_detach()?, *initial)?)?;
        }
        Ok(total.f_mul_scalar(lambda)?)
    }

    fn coefficient(&self, lambda: f64, _: &StepRates) -> f64 {
        lambda
    }

    fn idle(&self) -> f64 {
        0.0
    }

    fn before_update(&self, step: &PenaltyStep, lambda: &Scalar) -> Result<()> {
        let gradients = gradients(self, step.params, step.initial)?;
        lambda.add(step.grads, &gradients.iter().collect::<Vec<_>>())
    }

    fn needs_initial(&self) -> bool {
        GradientForm::needs_initial(self)
    }

    fn is_tunable(&self) -> bool {
        true
    }

    fn derivative(&self, step: &PenaltyStep, _: f64) -> Result<Vec<Tensor>> {
        let gradients = gradients(self, &step.old_weights.iter().collect::<Vec<_>>(), step.initial)?;
        let derivatives = step.update.grad_derivative(&step.old_grads)?;
        derivatives.iter().zip(&gradients).map(|(d, g)| Ok(d.f_mul(g)?)).collect()
    }

    fn keeps_derivative(&self) -> bool {
        true
    }

    fn graph_obstacle(&self) -> Option<&'static str> {
        GradientForm::graph_obstacle(self)
    }
}
