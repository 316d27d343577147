//! What an optimiser is: how it moves the weights, what it keeps of them, and its class in `torch.optim`.

use anyhow::Result;
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use tch::{Kind, Tensor};

use crate::libtorch::optim::Control;
use crate::penalty::TorchDecay;
use crate::util::yaml::Invalid;

/// A value of an optimiser as PyTorch's `param_groups` hold it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    Number(f64),
    Flag(bool),
    Pair(f64, f64),
}

/// What the param groups of a class of `torch.optim` look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TorchClass {
    /// `torch.optim.<name>`.
    pub name: &'static str,
    /// The classes that keep the same state, as a message calls them.
    pub family: &'static str,
    /// The arguments that tell its param groups from those of other classes.
    pub marks: &'static [&'static str],
    /// Whether they have a `capturable`.
    pub capturable: bool,
    /// Whether they have a `fused`.
    pub fused: bool,
    /// Whether they say by `decoupled_weight_decay` which decay is meant.
    pub decoupled_weight_decay: bool,
    /// Whether the state is there before the first step.
    pub state_from_start: bool,
    /// The class that has decoupled decay, where it is another.
    pub decoupled_class: Option<&'static str>,
    /// Whether there is such a class whose state this one's can become.
    pub is_in_torch: bool,
}

impl TorchClass {
    /// A class of that name with nothing special about it.
    pub fn named(name: &'static str, marks: &'static [&'static str]) -> Self {
        Self {
            name,
            family: name,
            marks,
            capturable: false,
            fused: false,
            decoupled_weight_decay: false,
            state_from_start: false,
            decoupled_class: None,
            is_in_torch: true,
        }
    }
}

/// The part of the penalty that a kernel applies itself; at most one of them is above 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelDecay {
    pub l2: f64,
    pub decoupled: f64,
}

/// How one optimiser moves the weights; the spec itself is the rule.
pub trait UpdateRule: Send {
    /// η₀, which the schedule scales.
    fn lr(&self) -> f64;

    /// Refuses values out of range; paths are relative to the optimiser's own keys.
    fn validate(&self) -> Result<(), Invalid>;

    /// The class in `torch.optim`.
    fn torch_class(&self) -> TorchClass;

    /// The forms of penalty that contradict the optimiser, with the remedy; None where it takes all.
    fn refuses(&self) -> Option<(TorchDecay, &'static str)> {
        None
    }

    /// The values beside `lr` and `weight_decay`, by PyTorch's names.
    fn arguments(&self) -> Vec<(&'static str, Argument)>;

    /// The state of a parameter, of the first part where there are several: PyTorch's names, in PyTorch's order.
    fn state_spec(&self) -> Vec<StateTensor>;

    /// Which of the rule's parts moves this parameter; they may keep other states and have other rates.
    fn part(&self, _name: &str, _param: &Tensor) -> usize {
        0
    }

    /// η of a part as a share of the schedule's.
    fn part_lr(&self, _part: usize) -> f64 {
        1.0
    }

    /// The state of a parameter in this part.
    fn part_state_spec(&self, _part: usize) -> Vec<StateTensor> {
        self.state_spec()
    }

    /// Whether what is judged is an average of the steps and not the weights that gradients are taken at.
    fn averages(&self) -> bool {
        false
    }

    /// That average of a parameter with its state; None where the weights themselves are judged.
    fn averaged(&self, _param: &Tensor, _state: &[Tensor]) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// Whether there is more than one part.
    fn has_parts(&self) -> bool {
        false
    }

    /// Why a step is no differentiable function of each weight's own gradient; None where it is, and
    /// [`update_grad_derivative`](Self::update_grad_derivative) its derivative.
    fn indifferentiable(&self) -> Option<&'static str> {
        None
    }

    /// Why a step cannot be recorded as a CUDA graph.
    fn graph_obstacle(&self) -> Option<&'static str> {
        None
    }

    /// Whether `update` applies this kind of decay itself.
    fn fuses(&self, decay: TorchDecay) -> bool {
        decay == TorchDecay::L2
    }

    /// Whether `update` leaves weights and state untouched where `control.found_inf` is 1.
    fn supports_found_inf(&self) -> bool;

    /// One step on parameters of one penalty group, with `decay` and nothing else of the penalty.
    fn update(&self, batch: &GroupTensors, control: &Control, decay: KernelDecay) -> Result<()>;

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
pub struct StateTensor {
    pub name: &'static str,
    pub initial: f64,
    /// 0-dim float32, such as the count of steps; else shaped, laid out and typed as the parameter.
    pub scalar: bool,
    /// 0-dim float64, in the place of float32.
    pub is_double: bool,
    /// Begins as a copy of the parameter.
    pub is_copy: bool,
    /// Whether a file of Python's may lack it: an option of the optimiser that was off there.
    pub optional: bool,
}

impl StateTensor {
    pub fn zeros(name: &'static str) -> Self {
        Self { name, initial: 0.0, scalar: false, is_double: false, is_copy: false, optional: false }
    }

    /// Zeros that belong to an option, such as momentum.
    pub fn optional_zeros(name: &'static str) -> Self {
        Self { optional: true, ..Self::zeros(name) }
    }

    pub fn step() -> Self {
        Self { scalar: true, ..Self::zeros("step") }
    }

    pub fn start(&self, param: &Tensor) -> Result<Tensor> {
        if self.scalar {
            let kind = if self.is_double { Kind::Double } else { Kind::Float };
            return Ok(Tensor::f_full([0; 0], self.initial, (kind, param.device()))?);
        }
        if self.is_copy {
            let mut own = param.f_detach()?.f_empty_like()?;
            own.f_copy_(&param.f_detach()?)?;
            return Ok(own);
        }
        Ok(param.f_detach()?.f_full_like(self.initial)?)
    }
}

/// What a rule works on: lists of equal length.
pub struct GroupTensors<'a> {
    pub params: Vec<&'a Tensor>,
    pub grads: Vec<&'a Tensor>,
    /// One list for each of [`UpdateRule::state_spec`].
    pub slots: Vec<Vec<&'a Tensor>>,
    /// Whether these parameters never made a step before.
    pub fresh: bool,
    /// As [`UpdateRule::part`] says.
    pub part: usize,
}

impl<'a> GroupTensors<'a> {
    /// The list of slot `i`, empty where the rule has fewer.
    pub fn slot(&self, i: usize) -> &[&'a Tensor] {
        self.slots.get(i).map_or(&[], Vec::as_slice)
    }
}

/// `weight_decay` where PyTorch has it: refused, with the remedy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefusedWeightDecay;

impl<'de> Deserialize<'de> for RefusedWeightDecay {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom(
            "the penalty has one place: `penalty: {l2: λ}` is the weight_decay of PyTorch's SGD, Adam, Adagrad and \
             RMSprop, `penalty: {decoupled: λ}` that of AdamW",
        ))
    }
}
