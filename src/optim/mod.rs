//! Optimisers on libtorch's fused and foreach kernels, with the penalty applied exactly where
//! [`crate::penalty`] says, and their state as named tensors.

mod adagrad;
mod adam;
mod clip;
mod decay;
mod ema;
mod graph_scalars;
mod lambda_gradient;
mod rmsprop;
mod scaling;
mod sgd;

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, bail};
use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::libtorch::optim::{self as kernels, Control};
use crate::penalty::{DecoupledMode, L1Mode, LambdaValues, ParamGroup, PenaltySpec};
use crate::util::exit_code::{ExitCode, fail};
use crate::util::tagged_enum::{self, Tagged};
use crate::util::yaml::Invalid;

pub use adagrad::AdagradSpec;
pub use adam::AdamSpec;
pub use clip::Clip;
pub use ema::{Ema, EmaSpec, keep_zeros};
pub use graph_scalars::GraphScalars;
use graph_scalars::{GraphScalar, GroupScalars};
pub use lambda_gradient::LambdaGradient;
use lambda_gradient::Snapshot;
pub use rmsprop::RmsPropSpec;
pub use scaling::{GradScaler, ScalingState};
pub use sgd::SgdSpec;

/// The optimiser as declared: `optimizer: adam`, or `optimizer: {adam: {lr: 3e-4}}`. Names and defaults are
/// those of `torch.optim`, except that the penalty is declared in `penalty`, never here.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerSpec {
    Sgd(SgdSpec),
    Adam(AdamSpec),
    /// Adam that refuses `l2`. PyTorch's default decay of 0.01 is not implied: say
    /// `penalty: {decoupled: 0.01}`.
    AdamW(AdamSpec),
    Adagrad(AdagradSpec),
    RmsProp(RmsPropSpec),
}

impl OptimizerSpec {
    /// η₀, which the schedule scales.
    pub fn lr(&self) -> f64 {
        match self {
            Self::Sgd(spec) => spec.lr,
            Self::Adam(spec) | Self::AdamW(spec) => spec.lr,
            Self::Adagrad(spec) => spec.lr,
            Self::RmsProp(spec) => spec.lr,
        }
    }

    /// Refuses values out of range; paths are relative to `optimizer`.
    pub fn validate(&self) -> Result<(), Invalid> {
        match self {
            Self::Sgd(spec) => spec.validate().map_err(|invalid| invalid.under("sgd")),
            Self::Adam(spec) => spec.validate().map_err(|invalid| invalid.under("adam")),
            Self::AdamW(spec) => spec.validate().map_err(|invalid| invalid.under("adamw")),
            Self::Adagrad(spec) => spec.validate().map_err(|invalid| invalid.under("adagrad")),
            Self::RmsProp(spec) => spec.validate().map_err(|invalid| invalid.under("rmsprop")),
        }
    }

    /// Refuses a penalty that contradicts the optimiser; paths are relative to `penalty`.
    pub fn accepts(&self, penalty: &PenaltySpec) -> Result<(), Invalid> {
        let Self::AdamW(_) = self else {
            return Ok(());
        };
        let in_groups =
            penalty.groups.iter().enumerate().map(|(i, group)| (format!("groups.{i}.l2"), group.l2));
        match std::iter::once(("l2".to_owned(), penalty.l2))
            .chain(in_groups)
            .find(|(_, l2)| l2.is_some_and(|lambda| lambda.is_active()))
        {
            None => Ok(()),
            Some((path, _)) => Err(Invalid::new(path, ADAMW_REFUSES_L2)),
        }
    }

    fn rule(&self) -> Box<dyn UpdateRule> {
        match self {
            Self::Sgd(spec) => Box::new(spec.clone()),
            Self::Adam(spec) | Self::AdamW(spec) => Box::new(spec.clone()),
            Self::Adagrad(spec) => Box::new(spec.clone()),
            Self::RmsProp(spec) => Box::new(spec.clone()),
        }
    }

    /// The class in `torch.optim`.
    pub fn python_class(&self) -> &'static str {
        match self {
            Self::Sgd(_) => "SGD",
            Self::Adam(_) => "Adam",
            Self::AdamW(_) => "AdamW",
            Self::Adagrad(_) => "Adagrad",
            Self::RmsProp(_) => "RMSprop",
        }
    }

    /// The values beside `lr` and `weight_decay`, by the names that PyTorch has for them.
    pub fn arguments(&self) -> Vec<(&'static str, Argument)> {
        self.rule().arguments()
    }

    /// What the state of a parameter consists of: PyTorch's names, in PyTorch's order.
    pub fn state_names(&self) -> Vec<&'static str> {
        self.rule().state_spec().iter().map(|slot| slot.name).collect()
    }

    /// The state named `slot` of `param` before its first step; None where the optimiser has no such state.
    pub fn initial_state(&self, slot: &str, param: &Tensor) -> Result<Option<Tensor>> {
        let slots = self.rule().state_spec();
        slots.iter().find(|own| own.name == slot).map(|own| own.start(param)).transpose()
    }

    /// An optimiser of `params` (float32 or float64, without gaps in memory), named as in the state dict,
    /// whose indices `groups` partitions as [`PenaltySpec::assign`] does.
    pub fn build(&self, params: Vec<(String, Tensor)>, groups: &[ParamGroup]) -> Result<Optimizer> {
        let (rule, refuses_l2) = (self.rule(), matches!(self, Self::AdamW(_)));
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
        let state = params.iter().map(|_| None).collect();
        let groups: Vec<_> = groups.iter().map(|group| group.param_indices.clone()).collect();
        let (peak, pending) = (self.lr(), vec![1.0; groups.len()]);
        Ok(Optimizer {
            names,
            params,
            groups,
            rule,
            refuses_l2,
            peak,
            pending: [pending.clone(), pending],
            state,
        })
    }
}

const ADAMW_REFUSES_L2: &str =
    "adamw decays apart from the gradient: write `decoupled`, or take `optimizer: adam` for L2";

/// A value of an optimiser as PyTorch's `param_groups` hold it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    Number(f64),
    Flag(bool),
    Pair(f64, f64),
}

/// How one optimiser moves the weights; the spec itself is the rule.
trait UpdateRule: Send {
    /// The values beside `lr` and `weight_decay`, by PyTorch's names.
    fn arguments(&self) -> Vec<(&'static str, Argument)>;

    /// The state of a parameter: PyTorch's names, in PyTorch's order.
    fn state_spec(&self) -> Vec<StateTensor>;

    /// Whether `update` applies `lambdas.decoupled` itself.
    fn has_decoupled_decay(&self) -> bool {
        false
    }

    /// Whether `update` minds `control.found_inf`.
    fn supports_found_inf(&self) -> bool {
        true
    }

    /// One step on parameters of one penalty group, with `lambdas.l2` and nothing else of the penalty (save
    /// [`Rule::has_decoupled_decay`]).
    fn update(&self, batch: &GroupTensors, control: &Control, rates: &LambdaValues) -> Result<()>;

    /// How far a gradient of 1 moves a weight per step, in the long run; None where steps do not grow with
    /// the gradient.
    fn steady_state_lr(&self, _lr: f64) -> Option<f64> {
        None
    }

    /// How far a steady gradient of 1 moves each weight at a rate of 1, after `update`; None where that is
    /// `steady_state_lr`, alike for all.
    fn preconditioner(&self, _batch: &GroupTensors) -> Result<Option<Vec<Tensor>>> {
        Ok(None)
    }

    /// ∂w′/∂g of each parameter after `update` at `grads`, which hold the penalty's part too.
    fn update_grad_derivative(&self, batch: &GroupTensors, grads: &[Tensor], lr: f64) -> Result<Vec<Tensor>>;
}

/// One tensor of a parameter's state.
struct StateTensor {
    name: &'static str,
    initial: f64,
    /// A count of steps, 0-dim float32; else shaped, laid out and typed as the parameter.
    scalar: bool,
}

impl StateTensor {
    fn zeros(name: &'static str) -> Self {
        Self { name, initial: 0.0, scalar: false }
    }

    fn step() -> Self {
        Self { name: "step", initial: 0.0, scalar: true }
    }

    fn start(&self, param: &Tensor) -> Result<Tensor> {
        if self.scalar {
            return Ok(Tensor::f_full([0; 0], self.initial, (Kind::Float, param.device()))?);
        }
        Ok(param.f_detach()?.f_full_like(self.initial)?)
    }
}

/// What a rule works on: lists of equal length.
struct GroupTensors<'a> {
    params: Vec<&'a Tensor>,
    grads: Vec<&'a Tensor>,
    /// One list for each of [`Rule::slots`].
    slots: Vec<Vec<&'a Tensor>>,
    /// Whether these parameters never made a step before.
    fresh: bool,
}

impl<'a> GroupTensors<'a> {
    /// The list of slot `i`, empty where the rule has fewer.
    fn slot(&self, i: usize) -> &[&'a Tensor] {
        self.slots.get(i).map_or(&[], Vec::as_slice)
    }
}

/// Parameters, their penalty groups and their state.
pub struct Optimizer {
    names: Vec<String>,
    params: Vec<Tensor>,
    groups: Vec<Vec<usize>>,
    rule: Box<dyn UpdateRule>,
    refuses_l2: bool,
    /// η_peak of relative decay.
    peak: f64,
    /// By penalty group: what accumulated decay leaves of a weight and has not applied yet; and the same
    /// before the last step.
    pending: [Vec<f64>; 2],
    /// By parameter, then by slot; None before the first step, as in PyTorch.
    state: Vec<Option<Vec<Tensor>>>,
}

/// What one step is to do.
#[derive(Clone, Copy, Default)]
pub struct StepOptions<'a> {
    pub lr: f64,
    /// One entry per penalty group.
    pub rates: &'a [LambdaValues],
    pub clip: Option<&'a Clip>,
    /// The groups, by index, whose λ₂ is asked what it does to the weights in this one step.
    pub differentiate: &'a [usize],
    /// What the loss was multiplied by. A step whose gradients overflowed is skipped: weights and state stay
    /// as they are. The device sees to that by itself, save in a first step and with what has no kernel for
    /// it, where it is waited for.
    pub scale: Option<&'a GradScaler>,
    /// Where the step reads `lr` and `lambdas` on the device, to be recorded; which of the rates are 0 is
    /// recorded with it. Not with `differentiate`, and not for cautious decay.
    pub graph_scalars: Option<&'a GraphScalars>,
}

/// What one step found.
pub struct StepOutput {
    /// ‖g‖₂ of the data gradient over all parameters, before clipping: 0-dim, on the device, not waited for.
    /// NaN or infinite exactly when some gradient is (or its square overflows).
    pub grad_norm: Tensor,
    /// ∂w′/∂λ₂ of the parameters in the traced groups, one list per group traced; empty where the step was
    /// skipped.
    pub shifts: Vec<Vec<LambdaGradient>>,
    /// With a scale: 1 where the step was skipped, else 0; 0-dim float32, on the device.
    pub found_inf: Option<Tensor>,
}

impl Optimizer {
    /// With relative decay scaled by η/`peak`: the highest rate of the run, where that is not the optimiser's
    /// own.
    pub fn with_peak(self, peak: f64) -> Self {
        Self { peak, ..self }
    }

    /// What share of itself each unit of `group`'s λ₂ takes of a weight per step, in the long run; None where
    /// that has no bound that λ₂ could be held to, as with L2 under Adam, whose steps are all of one size.
    pub fn shrinkage(&self, group: &ParamGroup, lr: f64) -> Option<f64> {
        match (group.decoupled.is_active(), group.decoupled_mode) {
            (false, _) => self.rule.steady_state_lr(lr),
            (true, DecoupledMode::Relative) if self.peak > 0.0 => Some(lr / self.peak),
            (true, _) => Some(lr),
        }
    }

    /// One step with the gradients that the parameters hold, in the order of the penalty contract: clip, add
    /// l2 and the l1 subgradient, decay, step, soft threshold. Then the gradients are forgotten. `lambdas`
    /// has one entry per group. Parameters without a gradient are left alone, as in PyTorch, their penalty
    /// included.
    ///
    /// To accumulate over micro-batches, call `backward` on each micro-batch's mean loss times its share of
    /// the whole batch before calling this: the sum is then the gradient of the whole batch.
    pub fn step(&mut self, lr: f64, rates: &[LambdaValues], clip: Option<&Clip>) -> Result<StepOutput> {
        self.step_with(&StepOptions { lr, rates, clip, ..StepOptions::default() })
    }

    /// The same with all that a step can do besides.
    pub fn step_with(&mut self, stride: &StepOptions) -> Result<StepOutput> {
        let &StepOptions { rates, clip, differentiate: traced, .. } = stride;
        if rates.len() != self.groups.len() {
            bail!("{} penalty groups, but the rates of {}", self.groups.len(), rates.len());
        }
        let due = self.accumulate(stride.lr, rates);
        let params: Vec<&Tensor> = self.params.iter().collect();
        let grads = kernels::gradients(&params)?;
        let reached: Vec<&Tensor> = grads.iter().flatten().collect();
        let found_inf = stride.scale.map(|scale| scale.unscale(&reached)).transpose()?;
        let grad_norm = clip::total_norm(&reached)?;
        let gate = match &found_inf {
            Some(found_inf) if self.can_skip_on_device(&grads, stride) => Some(found_inf),
            Some(found_inf) if found_inf.f_double_value(&[])? != 0.0 => {
                kernels::forget_gradients(&params)?;
                return Ok(StepOutput {
                    grad_norm,
                    shifts: Vec::new(),
                    found_inf: Some(found_inf.shallow_clone()),
                });
            }
            _ => None,
        };
        let control =
            Control { lr: stride.lr, lr_tensor: stride.graph_scalars.map(GraphScalars::lr), found_inf: gate };
        if let Some(clip) = clip {
            clip.apply(&reached, &grad_norm)?;
        }

        let slots = self.rule.state_spec();
        let fresh: Vec<bool> = self.state.iter().map(Option::is_none).collect();
        for (param, (state, grad)) in self.params.iter().zip(self.state.iter_mut().zip(&grads)) {
            if grad.is_some() && state.is_none() {
                *state = Some(slots.iter().map(|slot| slot.start(param)).collect::<Result<_>>()?);
            }
        }
        let mut shifts: Vec<Vec<LambdaGradient>> = traced.iter().map(|_| Vec::new()).collect();
        for (at, (members, rates)) in self.groups.iter().zip(rates).enumerate() {
            let trace = traced.iter().position(|&group| group == at);
            let dials = stride.graph_scalars.map(|dials| dials.group(at));
            for first in [false, true] {
                let mut indices = Vec::new();
                let mut batch = GroupTensors {
                    params: Vec::new(),
                    grads: Vec::new(),
                    slots: slots.iter().map(|_| Vec::new()).collect(),
                    fresh: first,
                };
                for &i in members.iter().filter(|&&i| fresh[i] == first) {
                    let (Some(grad), Some(state)) = (&grads[i], &self.state[i]) else { continue };
                    indices.push(i);
                    batch.params.push(&self.params[i]);
                    batch.grads.push(grad);
                    batch.slots.iter_mut().zip(state).for_each(|(list, tensor)| list.push(tensor));
                }
                if batch.params.is_empty() {
                    continue;
                }
                let moved = self.update(&batch, &control, rates, (dials, due[at]), trace.is_some())?;
                if let Some(trace) = trace {
                    let of = |(param, tensor)| LambdaGradient { param, tensor };
                    shifts[trace].extend(indices.into_iter().zip(moved).map(of));
                }
            }
        }
        kernels::forget_gradients(&params)?;
        Ok(StepOutput { grad_norm, shifts, found_inf })
    }

    /// Whether all of a step can be left to a number on the device. A first step cannot: whether there is a
    /// state depends on it.
    fn can_skip_on_device(&self, grads: &[Option<Tensor>], stride: &StepOptions) -> bool {
        let is_first = grads.iter().zip(&self.state).any(|(grad, state)| grad.is_some() && state.is_none());
        let is_cautious = |rates: &LambdaValues| rates.decoupled_mode == DecoupledMode::Cautious;
        self.rule.supports_found_inf()
            && stride.differentiate.is_empty()
            && !is_first
            && !stride.rates.iter().any(is_cautious)
    }

    /// What share of itself decay apart from the gradient takes of a weight in a step.
    fn strength(&self, lr: f64, rates: &LambdaValues) -> f64 {
        lr * rates.as_plain(self.peak).decoupled
    }

    /// What share of itself the quadratic penalty takes of a weight in one step: η·λ; 0 where steps do not
    /// grow with the gradient.
    pub fn share(&self, lr: f64, rates: &LambdaValues) -> f64 {
        match self.rule.steady_state_lr(lr) {
            Some(_) if rates.l2 > 0.0 => lr * rates.l2,
            _ => self.strength(lr, rates),
        }
    }

    /// Where the soft threshold of a step lies. It meets the gradient at the minimum of the objective, so it
    /// acts as many times over as momentum has a steady gradient act.
    fn threshold(&self, lr: f64, rates: &LambdaValues) -> f64 {
        self.rule.steady_state_lr(lr).unwrap_or(lr) * rates.l1
    }

    /// Counts the decay of a step where it is accumulated; returns by group what is to be left of the weights
    /// now: 1 where it is not time yet.
    fn accumulate(&mut self, lr: f64, rates: &[LambdaValues]) -> Vec<f64> {
        /// Float32 multiplies by 1 − 2⁻¹² with an error of 2⁻¹³ of that 2⁻¹², at the most.
        const ENOUGH: f64 = 1.0 / 4096.0;
        self.pending[1] = self.pending[0].clone();
        let each = rates.iter().enumerate().map(|(group, rates)| {
            if rates.decoupled_mode != DecoupledMode::Accumulated {
                return 1.0;
            }
            let strength = self.strength(lr, rates);
            let pending = &mut self.pending[0][group];
            *pending *= 1.0 - strength;
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

    /// ∂w′/∂λ₂ where it is `differentiate`, else nothing.
    fn update(
        &self,
        batch: &GroupTensors,
        control: &Control,
        rates: &LambdaValues,
        (dials, due): (Option<&GroupScalars>, f64),
        traced: bool,
    ) -> Result<Vec<Tensor>> {
        let lr = control.lr;
        if rates.l2 > 0.0 && rates.decoupled > 0.0 {
            bail!("l2 and decoupled decay at once in one penalty group: choose one");
        }
        if rates.l2 > 0.0 && self.refuses_l2 {
            bail!(ADAMW_REFUSES_L2);
        }
        if rates.l1 > 0.0 && rates.l1_mode == L1Mode::Subgradient {
            match dials {
                Some(dials) => kernels::add_by(&batch.grads, &batch.params, true, &dials.l1)?,
                None => kernels::add_sign(&batch.grads, &batch.params, rates.l1)?,
            }
        }
        let is_cautious = rates.decoupled > 0.0 && rates.decoupled_mode == DecoupledMode::Cautious;
        // What decay takes of each weight is `lr`·`own.decoupled`, whatever the mode.
        let mut own = rates.as_plain(self.peak);
        let before = match (traced, is_cautious) {
            (true, _) => Some(Snapshot::with_grads(batch, rates)?),
            (false, true) => Some(Snapshot::of(batch)?),
            (false, false) => None,
        };
        let strength = self.strength(lr, rates);
        if is_cautious {
            own.decoupled = 0.0;
        } else if rates.decoupled_mode == DecoupledMode::Accumulated {
            own.decoupled = 0.0;
            if due < 1.0 {
                GraphScalar::gated(due, 1.0, control.found_inf)?.scale(&batch.params)?;
            }
        } else if let Some(dials) = dials {
            // The kernels know λ as a number of the host only.
            if rates.decoupled > 0.0 {
                kernels::scale_by(&batch.params, &dials.keep)?;
            }
            if rates.l2 > 0.0 {
                kernels::add_by(&batch.grads, &batch.params, false, &dials.l2)?;
            }
            (own.decoupled, own.l2) = (0.0, 0.0);
        } else if rates.decoupled > 0.0 && !self.rule.has_decoupled_decay() {
            GraphScalar::gated(1.0 - strength, 1.0, control.found_inf)?.scale(&batch.params)?;
        }
        self.rule.update(batch, control, &own)?;
        let mut decayed = None;
        if let (true, Some(before)) = (is_cautious, &before) {
            decayed = Some(decay::cautious(&before.weights, batch, strength)?);
        }
        if rates.l1 > 0.0 && rates.l1_mode != L1Mode::Subgradient {
            let at = match dials {
                Some(dials) => GraphScalar::Device(dials.threshold.shallow_clone()),
                None => GraphScalar::gated(self.threshold(lr, rates), 0.0, control.found_inf)?,
            };
            let is_scaled = rates.l1_mode == L1Mode::Preconditioned;
            match if is_scaled { self.rule.preconditioner(batch)? } else { None } {
                Some(metric) => at.threshold_in(&batch.params, &metric)?,
                None => at.threshold(&batch.params)?,
            }
        }
        match before.filter(|_| traced) {
            Some(before) => before.shifts(&*self.rule, batch, lr, rates, strength, decayed),
            None => Ok(Vec::new()),
        }
    }

    /// ‖g‖₂ as [`StepOutput::grad_norm`] would give it now, for a caller that wants to look before it steps.
    pub fn grad_norm(&self) -> Result<Tensor> {
        let grads = kernels::gradients(&self.params.iter().collect::<Vec<_>>())?;
        clip::total_norm(&grads.iter().flatten().collect::<Vec<_>>())
    }

    /// Forgets the gradients without a step.
    pub fn zero_grad(&mut self) -> Result<()> {
        kernels::forget_gradients(&self.params.iter().collect::<Vec<_>>())
    }

    /// The state as `<parameter>.<PyTorch's name>`, such as `conv1.weight.exp_avg`; shallow clones.
    /// Parameters that never made a step have none.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let slots = self.rule.state_spec();
        let mut all = Vec::new();
        for (name, state) in self.names.iter().zip(&self.state) {
            for (slot, tensor) in slots.iter().zip(state.iter().flatten()) {
                all.push((format!("{name}.{}", slot.name), tensor.shallow_clone()));
            }
        }
        all
    }

    /// Replaces the whole state by copies of what [`state`](Self::state) gave. Nothing changes unless all of
    /// it fits; exit 4 lists everything that does not.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let slots = self.rule.state_spec();
        let mut mistakes = Vec::new();
        let mut known = 0;
        let mut loaded = Vec::new();
        for (name, param) in self.names.iter().zip(&self.params) {
            let keys: Vec<_> = slots.iter().map(|slot| format!("{name}.{}", slot.name)).collect();
            let found: Vec<_> = keys.iter().filter_map(|key| state.get(key)).collect();
            known += found.len();
            if found.is_empty() {
                // A rule without state marks a parameter by an empty list; it makes no difference to it.
                loaded.push(None);
                continue;
            }
            mistakes.extend(
                keys.iter().filter(|key| !state.contains_key(*key)).map(|key| format!("{key} is missing")),
            );
            let mut tensors = Vec::new();
            for (slot, (key, tensor)) in
                slots.iter().zip(keys.iter().filter_map(|key| state.get_key_value(key)))
            {
                let mut own = slot.start(param)?;
                if own.size() == tensor.size() {
                    tch::no_grad(|| own.f_copy_(tensor))?;
                } else {
                    mistakes.push(format!("{key} is {:?}, expected {:?}", tensor.size(), own.size()));
                }
                tensors.push(own);
            }
            loaded.push(Some(tensors));
        }
        if known < state.len() {
            let expected = |key: &str| {
                self.names.iter().any(|name| {
                    key.strip_prefix(name.as_str())
                        .and_then(|rest| rest.strip_prefix('.'))
                        .is_some_and(|rest| slots.iter().any(|slot| slot.name == rest))
                })
            };
            mistakes
                .extend(state.keys().filter(|key| !expected(key)).map(|key| format!("{key} is unexpected")));
        }
        refuse(&mistakes, "the optimiser's state does not fit; resume with the optimiser that saved it")?;
        self.state = loaded;
        Ok(())
    }
}

/// An error of exit 4 that lists all mistakes, if there are any.
fn refuse(mistakes: &[String], context: &str) -> Result<()> {
    if mistakes.is_empty() {
        return Ok(());
    }
    Err(fail(ExitCode::Checkpoint, format!("{context}:\n  {}", mistakes.join("\n  "))))
}

/// `weight_decay` where PyTorch has it: refused, with the remedy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightDecay;

impl<'de> Deserialize<'de> for WeightDecay {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom(
            "the penalty has one place: `penalty: {l2: λ}` is the weight_decay of PyTorch's SGD, Adam, Adagrad and \
             RMSprop, `penalty: {decoupled: λ}` that of AdamW",
        ))
    }
}

impl Tagged for OptimizerSpec {
    const WHAT: &'static str = "an optimizer";
    const NAMES: &'static [&'static str] = &["sgd", "adam", "adamw", "adagrad", "rmsprop"];

    fn body<'de, D: Deserializer<'de>>(name: &str, body: D) -> Result<Self, D::Error> {
        Ok(match name {
            "sgd" => Self::Sgd(tagged_enum::spec(body)?),
            "adam" => Self::Adam(tagged_enum::spec(body)?),
            "adamw" => Self::AdamW(tagged_enum::spec(body)?),
            "adagrad" => Self::Adagrad(tagged_enum::spec(body)?),
            "rmsprop" => Self::RmsProp(tagged_enum::spec(body)?),
            _ => return Err(D::Error::unknown_variant(name, Self::NAMES)),
        })
    }
}

impl<'de> Deserialize<'de> for OptimizerSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        tagged_enum::deserialize(deserializer)
    }
}
