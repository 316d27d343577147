//! An optimiser at work: one step over all parameters. Unscale, clip, the forms of penalty that act before the update
//! ([`Penalty`](crate::penalty::Penalty)), the update rule, the forms that act after it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, anyhow, bail};
use tch::{Kind, Tensor};

use super::group_step::GroupStep;
use super::lambda_gradient::copies;
use super::{Clip, GradScaler, GraphScalars, GroupTensors, LambdaGradient, OptimizerSpec, UpdateRule, clip};
use crate::libtorch::optim::{self as kernels, Control};
use crate::penalty::{LambdaValues, ParamGroup, StepRates};

/// Parameters, their penalty groups and their state.
pub struct Optimizer {
    pub(super) names: Vec<String>,
    pub(super) params: Vec<Tensor>,
    groups: Vec<Vec<usize>>,
    /// By penalty group: a factor on the learning rate.
    factors: Vec<f64>,
    pub(super) rule: Box<dyn UpdateRule>,
    /// By parameter, as [`UpdateRule::part`] says.
    pub(super) parts: Vec<usize>,
    /// η_peak of relative decay.
    peak: f64,
    /// By penalty group: what accumulated decay leaves of a weight and has not applied yet; and the same before
    /// the last step.
    pending: [Vec<f64>; 2],
    /// By parameter, what it was when training began, where a form of its group pulls it there.
    pub(super) initial: Vec<Option<Tensor>>,
    /// By parameter, then by [`UpdateRule::state_spec`]; None before the first step, as in PyTorch.
    pub(super) state: Vec<Option<Vec<Tensor>>>,
}

/// What one step is to do.
#[derive(Clone, Copy, Default)]
pub struct StepOptions<'a> {
    /// η of the schedule, which each group scales by its factor.
    pub lr: f64,
    /// One entry per penalty group.
    pub lambdas: &'a [LambdaValues],
    pub clip: Option<&'a Clip>,
    /// Indices of the groups for which ∂w′/∂λ of the tuned form is computed.
    pub differentiate: &'a [usize],
    /// What the loss was multiplied by. A step whose gradients overflowed is skipped: weights and state stay as
    /// they are. The device does that by itself, except in a first step and with what has no kernel for it, where
    /// the host waits for it.
    pub scale: Option<&'a GradScaler>,
    /// Where the step reads `lr` and the coefficients of the penalty on the device, to be recorded; which of the λs
    /// are 0 is recorded with it. Not with `differentiate`, and not with forms that have a
    /// [`graph_obstacle`](crate::penalty::Penalty::graph_obstacle).
    pub graph_scalars: Option<&'a GraphScalars>,
}

/// What one step found.
pub struct StepOutput {
    /// ‖g‖₂ of the data gradient over all parameters, before clipping: 0-dim, on the device, not waited for. NaN
    /// or infinite exactly when some gradient is (or its square overflows).
    pub grad_norm: Tensor,
    /// ∂w′/∂λ of the parameters in the groups of [`StepOptions::differentiate`], one list per group; empty where
    /// the step was skipped.
    pub lambda_gradients: Vec<Vec<LambdaGradient>>,
    /// With a scale: 1 where the step was skipped, else 0; 0-dim float32, on the device.
    pub found_inf: Option<Tensor>,
}

impl OptimizerSpec {
    /// An optimiser of `params` (float32 or float64, without gaps in memory), named as in the state dict,
    /// whose indices `groups` partitions as [`PenaltySpec::assign`](crate::penalty::PenaltySpec::assign) does.
    pub fn build(&self, params: Vec<(String, Tensor)>, groups: &[ParamGroup]) -> Result<Optimizer> {
        let mut seen = vec![0; params.len()];
        for &i in groups.iter().flat_map(|group| &group.param_indices) {
            *seen
                .get_mut(i)
                .ok_or_else(|| anyhow!("a penalty group names parameter {i} of {}", params.len()))? += 1;
        }
        if let Some(i) = seen.iter().position(|&times| times != 1) {
            bail!("parameter {} is in {} penalty groups, not in one", params[i].0, seen[i]);
        }
        if let Some((name, tensor)) =
            params.iter().find(|(_, t)| !matches!(t.kind(), Kind::Float | Kind::Double))
        {
            bail!("parameter {name} is {:?}: the optimisers take float32 and float64", tensor.kind());
        }
        let (names, params): (Vec<_>, Vec<_>) = params.into_iter().unzip();
        let rule = self.boxed_rule();
        let parts = names.iter().zip(&params).map(|(name, param)| rule.part(name, param)).collect();
        let state = params.iter().map(|_| None).collect();
        let factors = groups.iter().map(|group| group.lr).collect();
        let initial = params.iter().map(|_| None).collect();
        let groups: Vec<_> = groups.iter().map(|group| group.param_indices.clone()).collect();
        let pending = vec![1.0; groups.len()];
        Ok(Optimizer {
            names,
            params,
            groups,
            factors,
            rule,
            parts,
            peak: self.lr(),
            pending: [pending.clone(), pending],
            initial,
            state,
        })
    }
}

impl Optimizer {
    /// With relative decay scaled by η/`peak`: the highest rate of the run, where that is not the optimiser's own.
    pub fn with_peak(self, peak: f64) -> Self {
        Self { peak, ..self }
    }

    /// Keeps copies of the weights as they are, for the forms of `groups` that pull them there: of those that
    /// `is_known` names.
    pub fn keep_initial(&mut self, groups: &[ParamGroup], is_known: impl Fn(&str) -> bool) -> Result<()> {
        for group in groups.iter().filter(|group| group.active().any(|term| term.form.needs_initial())) {
            for &i in group.param_indices.iter().filter(|&&i| is_known(&self.names[i])) {
                self.initial[i] = copies(&[&self.params[i]])?.pop();
            }
        }
        Ok(())
    }

    /// Whether what is judged is an average that the rule keeps itself.
    pub fn averages(&self) -> bool {
        self.rule.averages()
    }

    /// The tensors of `state`, of the network's names, with that average in the place of the weights.
    pub fn averaged(&self, mut state: Vec<(String, Tensor)>) -> Result<Vec<(String, Tensor)>> {
        if self.averages() {
            let places: BTreeMap<_, _> =
                self.names.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
            for (name, tensor) in &mut state {
                let Some(&i) = places.get(name.as_str()) else { continue };
                if let Some(own) = &self.state[i]
                    && let Some(average) = self.rule.averaged(&self.params[i], own)?
                {
                    *tensor = average;
                }
            }
        }
        Ok(state)
    }

    /// By parameter, what it was when training began, where a form pulls it there.
    pub fn initial(&self) -> &[Option<Tensor>] {
        &self.initial
    }

    /// What a penalty needs to know of the learning rate of a group, by index, where the schedule's is `lr`.
    pub fn rates(&self, lr: f64, group: usize) -> StepRates {
        let factor = self.factors.get(group).copied().unwrap_or(1.0);
        let lr = lr * factor;
        StepRates { lr, peak: self.peak * factor, steady_state: self.rule.steady_state_lr(lr) }
    }

    /// What share of itself the penalty takes of a weight of a group in one step, at most: η·λ; 0 where that
    /// does not grow with λ.
    pub fn share(&self, lr: f64, group: usize, lambdas: &LambdaValues) -> f64 {
        let rates = self.rates(lr, group);
        lambdas.active().map(|(_, form, lambda)| form.share(lambda, &rates)).fold(0.0, f64::max)
    }

    /// One step with the gradients that the parameters hold, in this order: clip, add the
    /// gradients of the penalty, decay, update, threshold. Then the gradients are forgotten. `lambdas` has one entry
    /// per group. Parameters without a gradient are left alone, as in PyTorch, their penalty included.
    ///
    /// To accumulate over micro-batches, call `backward` on each micro-batch's mean loss times its share of the
    /// whole batch before calling this: the sum is then the gradient of the whole batch.
    pub fn step(&mut self, lr: f64, lambdas: &[LambdaValues], clip: Option<&Clip>) -> Result<StepOutput> {
        self.step_with(&StepOptions { lr, lambdas, clip, ..StepOptions::default() })
    }

    /// The same with all that a step can do besides.
    pub fn step_with(&mut self, options: &StepOptions) -> Result<StepOutput> {
        let &StepOptions { lambdas, clip, differentiate, .. } = options;
        if lambdas.len() != self.groups.len() {
            bail!("{} penalty groups, but the λs of {}", self.groups.len(), lambdas.len());
        }
        let due = self.accumulate(options.lr, lambdas);
        let params: Vec<&Tensor> = self.params.iter().collect();
        let grads = kernels::gradients(&params)?;
        let reached: Vec<&Tensor> = grads.iter().flatten().collect();
        let found_inf = options.scale.map(|scale| scale.unscale(&reached)).transpose()?;
        let grad_norm = clip::total_norm(&reached)?;
        let gate = match &found_inf {
            Some(found_inf) if self.can_skip_on_device(&grads, options) => Some(found_inf),
            Some(found_inf) if found_inf.f_double_value(&[])? != 0.0 => {
                kernels::forget_gradients(&params)?;
                let found_inf = Some(found_inf.shallow_clone());
                return Ok(StepOutput { grad_norm, lambda_gradients: Vec::new(), found_inf });
            }
            _ => None,
        };
        if let Some(clip) = clip {
            clip.apply(&reached, &grad_norm)?;
        }

        let fresh: Vec<bool> = self.state.iter().map(Option::is_none).collect();
        for (i, (param, (state, grad))) in
            self.params.iter().zip(self.state.iter_mut().zip(&grads)).enumerate()
        {
            if grad.is_some() && state.is_none() {
                let slots = self.rule.part_state_spec(self.parts[i]);
                *state = Some(slots.iter().map(|slot| slot.start(param)).collect::<Result<_>>()?);
            }
        }
        let mut lambda_gradients: Vec<Vec<LambdaGradient>> =
            differentiate.iter().map(|_| Vec::new()).collect();
        for (at, (members, lambdas)) in self.groups.iter().zip(lambdas).enumerate() {
            let traced = differentiate.iter().position(|&group| group == at);
            // A kernel takes parameters alike: all in their first step or none, of one part of the rule.
            let alike: BTreeSet<_> = members.iter().map(|&i| (fresh[i], self.parts[i])).collect();
            for (first, part) in alike {
                let rates = self.rates(options.lr * self.rule.part_lr(part), at);
                let rates = StepRates { peak: rates.peak * self.rule.part_lr(part), ..rates };
                let control = Control {
                    lr: rates.lr,
                    lr_tensor: options.graph_scalars.map(|scalars| scalars.lr(at)),
                    found_inf: gate,
                };
                let group = GroupStep {
                    rates,
                    lambdas,
                    due: due[at],
                    graph_scalars: options.graph_scalars.map(|scalars| (scalars, at)),
                    differentiate: traced.is_some(),
                };
                let mut indices = Vec::new();
                let mut tensors = GroupTensors {
                    params: Vec::new(),
                    grads: Vec::new(),
                    slots: self.rule.part_state_spec(part).iter().map(|_| Vec::new()).collect(),
                    fresh: first,
                    part,
                };
                let mut initial = Vec::new();
                for &i in members.iter().filter(|&&i| (fresh[i], self.parts[i]) == (first, part)) {
                    let (Some(grad), Some(state)) = (&grads[i], &self.state[i]) else { continue };
                    indices.push(i);
                    initial.push(self.initial[i].as_ref());
                    tensors.params.push(&self.params[i]);
                    tensors.grads.push(grad);
                    tensors.slots.iter_mut().zip(state).for_each(|(list, tensor)| list.push(tensor));
                }
                if tensors.params.is_empty() {
                    continue;
                }
                let derivatives = group.run(&*self.rule, &tensors, &initial, &control)?;
                if let Some(traced) = traced {
                    let of = |(param, tensor)| LambdaGradient { param, tensor };
                    lambda_gradients[traced].extend(indices.into_iter().zip(derivatives).map(of));
                }
            }
        }
        kernels::forget_gradients(&params)?;
        Ok(StepOutput { grad_norm, lambda_gradients, found_inf })
    }

    /// Whether a step was made, so that there is a state.
    pub fn has_begun(&self) -> bool {
        self.state.iter().any(Option::is_some)
    }

    /// Whether all of a step can be left to a number on the device. A first step cannot: whether there is a state
    /// depends on it.
    fn can_skip_on_device(&self, grads: &[Option<Tensor>], options: &StepOptions) -> bool {
        let is_first = grads.iter().zip(&self.state).any(|(grad, state)| grad.is_some() && state.is_none());
        let mut forms = options.lambdas.iter().flat_map(LambdaValues::active);
        self.rule.supports_found_inf()
            && options.differentiate.is_empty()
            && !is_first
            && forms.all(|(_, form, _)| form.supports_found_inf())
    }

    /// Multiplies the coefficients of a step where they are accumulated; returns by group what is to be left of the
    /// weights now: 1 where it is not time yet.
    fn accumulate(&mut self, lr: f64, lambdas: &[LambdaValues]) -> Vec<f64> {
        /// Float32 multiplies by 1 − 2⁻¹² with an error of 2⁻¹³ of that 2⁻¹², at the most.
        const ENOUGH: f64 = 1.0 / 4096.0;
        self.pending[1] = self.pending[0].clone();
        let each = lambdas.iter().enumerate().map(|(group, lambdas)| {
            let accumulated = lambdas.active().find(|(_, form, _)| form.accumulates());
            let Some((_, form, lambda)) = accumulated else { return 1.0 };
            let kept = form.coefficient(lambda, &self.rates(lr, group));
            let pending = &mut self.pending[0][group];
            *pending *= kept;
            if 1.0 - *pending >= ENOUGH { std::mem::replace(pending, 1.0) } else { 1.0 }
        });
        each.collect()
    }

    /// By penalty group, what accumulated decay leaves of a weight and has not applied yet; 1 for the others.
    pub fn pending(&self) -> &[f64] {
        &self.pending[0]
    }

    /// Goes on from what [`pending`](Self::pending) gave; of other groups than these nothing is taken.
    pub fn load_pending(&mut self, pending: &[f64]) {
        if pending.len() == self.groups.len() {
            self.pending[0] = pending.to_vec();
        }
    }

    /// Takes back what the last step accumulated, because it was skipped.
    pub fn uncount(&mut self) {
        self.pending[0] = self.pending[1].clone();
    }
}
