//! How far a step would have gone elsewhere with another λ₂: ∂w′/∂λ₂, weight by weight, for those who tune
//! λ₂.
//!
//! Every rule moves each weight by its own gradient alone, so with `l2` ∂w′/∂λ = ∂w′/∂g ⊙ w, where g = ∇L +
//! λw enters the rule; [`Rule::update_grad_derivative`] is ∂w′/∂g. Decay apart from the gradient gives −ηw
//! (or what its mode makes of it). A soft threshold after it lets through what it does not make 0.

use anyhow::Result;
use tch::Tensor;

use super::{GroupTensors, UpdateRule};
use crate::penalty::{L1Mode, LambdaValues};

/// ∂w′/∂λ₂ of one parameter, of its shape.
pub struct LambdaGradient {
    /// Its index among those given to [`OptimizerSpec::build`](super::OptimizerSpec::build).
    pub param: usize,
    pub tensor: Tensor,
}

/// What a step forgets and its derivative needs.
pub(super) struct Snapshot {
    /// The weights before the step.
    pub weights: Vec<Tensor>,
    /// The gradients with their `l2` part; empty without.
    grads: Vec<Tensor>,
}

impl Snapshot {
    /// Of the weights alone.
    pub fn of(batch: &GroupTensors) -> Result<Self> {
        let copy = |w: &&Tensor| -> Result<Tensor> {
            let mut own = w.f_detach()?.f_empty_like()?;
            own.f_copy_(&w.f_detach()?)?;
            Ok(own)
        };
        Ok(Self { weights: batch.params.iter().map(copy).collect::<Result<_>>()?, grads: Vec::new() })
    }

    /// With the gradients, as they are when the rule gets them.
    pub fn with_grads(batch: &GroupTensors, rates: &LambdaValues) -> Result<Self> {
        let mut before = Self::of(batch)?;
        if rates.l2 > 0.0 {
            let whole = |(g, w): (&&Tensor, &Tensor)| Ok(g.f_add(&w.f_mul_scalar(rates.l2)?)?);
            before.grads = batch.grads.iter().zip(&before.weights).map(whole).collect::<Result<_>>()?;
        }
        Ok(before)
    }

    /// ∂w′/∂λ₂ after the step that moved `batch`. Decay took `strength` of `decayed`, or of all weights where
    /// that is None.
    pub fn shifts(
        self,
        rule: &dyn UpdateRule,
        batch: &GroupTensors,
        lr: f64,
        rates: &LambdaValues,
        strength: f64,
        decayed: Option<Vec<Tensor>>,
    ) -> Result<Vec<Tensor>> {
        let mut shifts: Vec<Tensor> = if rates.decoupled > 0.0 {
            let per_unit = -strength / rates.decoupled;
            let decayed = decayed.as_ref().unwrap_or(&self.weights);
            decayed.iter().map(|w| w.f_mul_scalar(per_unit)).collect::<Result<_, _>>()?
        } else {
            let responses = rule.update_grad_derivative(batch, &self.grads, lr)?;
            let product = |(response, w): (Tensor, &Tensor)| response.f_mul(w);
            responses.into_iter().zip(&self.weights).map(product).collect::<Result<_, _>>()?
        };
        if rates.l1 > 0.0 && rates.l1_mode != L1Mode::Subgradient {
            for (shift, w) in shifts.iter_mut().zip(&batch.params) {
                *shift = shift.f_mul(&w.f_detach()?.f_ne(0)?)?;
            }
        }
        Ok(shifts)
    }
}

/// x/√s where s > 0, else 0: the derivative of √s times x/2, which nothing moves at 0.
pub(super) fn over_root(x: &Tensor, root: &Tensor) -> Result<Tensor> {
    Ok(x.f_div(root)?.f_masked_fill(&root.f_le(0.0)?, 0.0)?)
}
