//! One penalty group in one step of an optimiser: the forms before the update rule, the rule, the forms after it.

use anyhow::{Result, bail};
use tch::Tensor;

use super::lambda_gradient::copies;
use super::{GraphScalars, GroupTensors, KernelDecay, UpdateRule};
use crate::libtorch::optim::Control;
use crate::libtorch::scalar::Scalar;
use crate::penalty::{LambdaValues, Penalty, PenaltyStep, StepRates, TorchDecay, Update};

/// What a penalty may ask the rule about its last step.
struct LastUpdate<'a> {
    rule: &'a dyn UpdateRule,
    tensors: &'a GroupTensors<'a>,
    lr: f64,
}

impl Update for LastUpdate<'_> {
    fn preconditioner(&self) -> Result<Option<Vec<Tensor>>> {
        self.rule.preconditioner(self.tensors)
    }

    fn grad_derivative(&self, grads: &[Tensor]) -> Result<Vec<Tensor>> {
        self.rule.update_grad_derivative(self.tensors, grads, self.lr)
    }
}

/// One penalty group in one step.
pub(super) struct GroupStep<'a> {
    pub rates: StepRates,
    pub lambdas: &'a LambdaValues,
    /// What accumulated decay leaves of the weights in this step; 1 for nothing taken.
    pub due: f64,
    /// With the index of the group among them.
    pub graph_scalars: Option<(&'a GraphScalars, usize)>,
    pub differentiate: bool,
}

impl GroupStep<'_> {
    /// The forms around the update of `rule`; returns ∂w′/∂λ of the tuned form where it is asked for.
    pub fn run(
        &self,
        rule: &dyn UpdateRule,
        tensors: &GroupTensors,
        initial: &[Option<&Tensor>],
        control: &Control,
    ) -> Result<Vec<Tensor>> {
        let active = self.lambdas.active();
        let mut decay = KernelDecay::default();
        // What the kernel does not do itself, with the coefficients of this step.
        let mut outside: Vec<(&dyn Penalty, Scalar)> = Vec::new();
        for (row, form, lambda) in active.clone() {
            if let Some((refused, remedy)) = rule.refuses()
                && form.torch() == Some(refused)
            {
                bail!(remedy);
            }
            // A kernel takes λ as a number of the host only.
            let fused = form
                .torch()
                .filter(|kind| self.graph_scalars.is_none() && form.is_fused() && rule.fuses(*kind));
            match fused {
                Some(TorchDecay::L2) => decay.l2 = form.weight_decay(lambda, &self.rates),
                Some(TorchDecay::Decoupled) => decay.decoupled = form.weight_decay(lambda, &self.rates),
                // It is not time yet.
                None if form.accumulates() && self.due == 1.0 => {}
                None => outside.push((form, self.coefficient(row, form, lambda, control)?)),
            }
        }
        if decay.l2 > 0.0 && decay.decoupled > 0.0 {
            bail!("l2 and decoupled decay at once in one penalty group: choose one");
        }
        let keeps_weights = self.differentiate || active.clone().any(|(_, form, _)| form.needs_old_weights());
        let last_update = LastUpdate { rule, tensors, lr: control.lr };
        let mut step = PenaltyStep {
            params: &tensors.params,
            grads: &tensors.grads,
            rates: self.rates,
            old_weights: if keeps_weights { copies(&tensors.params)? } else { Vec::new() },
            old_grads: Vec::new(),
            initial,
            lr: control.lr_tensor.map_or(Scalar::Host(control.lr), |lr| Scalar::Device(lr.shallow_clone())),
            update: &last_update,
            derivative: None,
        };
        for (form, coefficient) in outside.iter().rev() {
            form.before_update(&step, coefficient)?;
        }
        if self.differentiate {
            step.old_grads = copies(&tensors.grads)?;
            if decay.l2 > 0.0 {
                let seen = step.old_grads.iter().zip(&step.old_weights);
                step.old_grads =
                    seen.map(|(g, w)| Ok(g.f_add(&w.f_mul_scalar(decay.l2)?)?)).collect::<Result<_>>()?;
            }
        }
        rule.update(tensors, control, decay)?;
        let mut tuned = active.filter(|(_, form, _)| self.differentiate && form.is_tunable());
        if let Some((_, form, lambda)) = tuned.next() {
            step.derivative = Some(form.derivative(&step, lambda)?);
        }
        for (form, coefficient) in &outside {
            form.after_update(&mut step, coefficient)?;
        }
        Ok(step.derivative.unwrap_or_default())
    }

    fn coefficient(&self, row: usize, form: &dyn Penalty, lambda: f64, control: &Control) -> Result<Scalar> {
        if let Some((scalars, group)) = self.graph_scalars {
            return scalars.coefficient(group, row)?.unless(control.found_inf, form.idle());
        }
        let value = if form.accumulates() { self.due } else { form.coefficient(lambda, &self.rates) };
        Scalar::gated(value, form.idle(), control.found_inf)
    }
}
