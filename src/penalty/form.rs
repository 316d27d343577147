//! What a form of penalty is: the term that it adds to the objective, and where in an optimiser's step it acts.

use std::fmt;

use anyhow::Result;
use tch::Tensor;

use crate::libtorch::scalar::Scalar;

/// The `weight_decay` argument of `torch.optim`, which fused kernels apply themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TorchDecay {
    /// Added to the gradient: SGD, Adam, Adagrad, RMSprop.
    L2,
    /// Taken of the weights apart from the gradient: AdamW.
    Decoupled,
}

/// The learning rates that a step of a penalty depends on.
#[derive(Clone, Copy, Debug)]
pub struct StepRates {
    /// η of the schedule.
    pub lr: f64,
    /// η_peak, the highest of the schedule; 0 where there is none.
    pub peak: f64,
    /// How far a steady gradient of 1 moves a weight per step in the long run, such as η(1 − d)/(1 − m) of SGD
    /// with momentum m and dampening d; None where steps do not grow with the gradient.
    pub steady_state: Option<f64>,
}

/// What the optimiser's update rule tells a penalty of its last step.
pub trait Update {
    /// How far a steady gradient of 1 moves each weight at a rate of 1; None where that is the same for all.
    fn preconditioner(&self) -> Result<Option<Vec<Tensor>>>;
    /// ∂w′/∂g of each parameter after the step that was made with `grads`.
    fn grad_derivative(&self, grads: &[Tensor]) -> Result<Vec<Tensor>>;
}

/// The parameters of one penalty group in one step: lists of equal length.
pub struct PenaltyStep<'a> {
    pub params: &'a [&'a Tensor],
    /// Gradients of the data loss, and of the forms that acted before.
    pub grads: &'a [&'a Tensor],
    pub rates: StepRates,
    /// Copies of the weights before the step, where a form wants them ([`Penalty::needs_old_weights`]) or a
    /// derivative is asked for; else empty.
    pub old_weights: Vec<Tensor>,
    /// Copies of the gradients as the update rule saw them, its own `weight_decay` included, where a derivative
    /// is asked for; else empty.
    pub old_grads: Vec<Tensor>,
    /// The weights that training began with, where a form wants them ([`Penalty::needs_initial`]); None for those
    /// that no file gave.
    pub initial: &'a [Option<&'a Tensor>],
    /// η of the schedule, as the update reads it.
    pub lr: Scalar,
    pub update: &'a dyn Update,
    /// ∂w′/∂λ of the form whose λ is tuned, after the update; None where it is not asked for.
    pub derivative: Option<Vec<Tensor>>,
}

impl PenaltyStep<'_> {
    /// How far a steady gradient of 1 moves a weight in this step in the long run, as a factor of `like`: η, with
    /// SGD's momentum η(1 − d)/(1 − m).
    pub(super) fn steady_lr(&self, like: &Tensor) -> Result<Tensor> {
        let times = match self.rates.steady_state {
            Some(steady) if self.rates.lr > 0.0 => steady / self.rates.lr,
            _ => 1.0,
        };
        Ok(self.lr.tensor(like)?.f_mul_scalar(times)?)
    }
}

/// One form of penalty, such as `l2`. A new one is a file that implements this, and a line in the table of
/// [`crate::penalty`].
///
/// In a step the forms lie around the optimiser's update: [`before_update`](Self::before_update) from the last of
/// the table to the first, the update, [`after_update`](Self::after_update) from the first to the last. Where
/// [`is_fused`](Self::is_fused) and the optimiser's kernel has that form of `weight_decay`, the kernel applies
/// it and neither of the two is called.
pub trait Penalty: Sync {
    /// The key of λ in YAML.
    fn key(&self) -> &'static str;

    /// The value of `<key>_mode` in YAML, where the form has modes.
    fn mode(&self) -> Option<&'static str> {
        None
    }

    /// Forms of one family are several ways of one penalty: a tensor gets one of them.
    fn family(&self) -> &'static str {
        self.key()
    }

    /// What it does in a step, for the table of docs/penalties.md: in Markdown, λ (or c) being its value.
    fn update_rule(&self) -> &'static str;

    /// What it is called elsewhere, and its paper, for the same table.
    fn same_as(&self) -> &'static str;

    /// Whether its value is a bound c on the weights and not a strength λ: less of it constrains more.
    fn is_bound(&self) -> bool {
        false
    }

    /// Refuses the highest rates of a run that it has no meaning at.
    fn check_rates(&self, _rates: &StepRates) -> Result<(), String> {
        Ok(())
    }

    /// The term of the objective over all of `ws`, or what is logged in its place: 0-dim float64 on their device.
    /// `ws` is not empty; nothing waits for the device.
    fn value(&self, ws: &[&Tensor], lambda: f64, rates: &StepRates) -> Result<Tensor>;

    /// The same where it is a function of the weights that training began with too; None for those that no file
    /// gave.
    fn value_from(
        &self,
        ws: &[&Tensor],
        _initial: &[Option<&Tensor>],
        lambda: f64,
        rates: &StepRates,
    ) -> Result<Tensor> {
        self.value(ws, lambda, rates)
    }

    /// The number by which the form acts in a step: λ in a gradient, 1 − η·λ on the weights, a threshold.
    fn coefficient(&self, lambda: f64, rates: &StepRates) -> f64;

    /// The coefficient that changes nothing, for a step that is skipped.
    fn idle(&self) -> f64;

    /// Changes gradients or weights before the update.
    fn before_update(&self, _step: &PenaltyStep, _coefficient: &Scalar) -> Result<()> {
        Ok(())
    }

    /// Changes weights after the update, and [`PenaltyStep::derivative`] as its own part of the step has it.
    fn after_update(&self, _step: &mut PenaltyStep, _coefficient: &Scalar) -> Result<()> {
        Ok(())
    }

    /// Whether [`PenaltyStep::old_weights`] are wanted.
    fn needs_old_weights(&self) -> bool {
        false
    }

    /// Whether it acts on the weights after the update.
    fn follows_update(&self) -> bool {
        false
    }

    /// Whether [`Update::preconditioner`] is wanted.
    fn needs_preconditioner(&self) -> bool {
        false
    }

    /// Whether [`PenaltyStep::initial`] are wanted.
    fn needs_initial(&self) -> bool {
        false
    }

    /// The argument of `torch.optim` that comes closest; None where there is none.
    fn torch(&self) -> Option<TorchDecay> {
        None
    }

    /// λ as the value of [`torch`](Self::torch)'s argument.
    fn weight_decay(&self, lambda: f64, _rates: &StepRates) -> f64 {
        lambda
    }

    /// How Python's steps differ although there is such an argument.
    fn torch_difference(&self, _lambda: f64) -> Option<String> {
        None
    }

    /// Whether a kernel that has [`torch`](Self::torch)'s argument does exactly what this form does.
    fn is_fused(&self) -> bool {
        self.torch().is_some()
    }

    /// Whether weights become exactly 0.
    fn is_sparse(&self) -> bool {
        false
    }

    /// Whether λ may be `auto`: [`derivative`](Self::derivative) gives ∂w′/∂λ.
    fn is_tunable(&self) -> bool {
        false
    }

    /// ∂w′/∂λ after the update, before any [`after_update`](Self::after_update): one tensor per parameter.
    fn derivative(&self, _step: &PenaltyStep, _lambda: f64) -> Result<Vec<Tensor>> {
        anyhow::bail!("`{}` has no derivative by λ", self.key())
    }

    /// Whether a derivative of another form's λ stays right where this form acts too.
    fn keeps_derivative(&self) -> bool {
        false
    }

    /// What share of itself each unit of λ takes of a weight per step, in the long run; None where that has no
    /// bound that λ could be held to.
    fn shrinkage(&self, _rates: &StepRates) -> Option<f64> {
        None
    }

    /// What share of itself it takes of a weight in one step: above 1 the step overshoots. 0 where that does not
    /// grow with λ.
    fn share(&self, _lambda: f64, _rates: &StepRates) -> f64 {
        0.0
    }

    /// Whether coefficients of several steps are multiplied and applied as one.
    fn accumulates(&self) -> bool {
        false
    }

    /// Why a step with this form cannot be recorded as a CUDA graph.
    fn graph_obstacle(&self) -> Option<&'static str> {
        None
    }

    /// Whether the device can skip a step of this form by itself, by its [`idle`](Self::idle) coefficient.
    fn supports_found_inf(&self) -> bool {
        true
    }

    /// What the user should know where this form acts beside an optimiser whose steps are not proportional to the
    /// gradient; `optimizer` is its name in `torch.optim`.
    fn adaptive_note(&self, _optimizer: &str) -> Option<String> {
        None
    }
}

/// The threshold of a form that shrinks weights by η·λ: it meets the gradient at the minimum of the objective, so it
/// acts as many times over as momentum has a steady gradient act.
pub(super) fn threshold(lambda: f64, rates: &StepRates) -> f64 {
    rates.steady_state.unwrap_or(rates.lr) * lambda
}

/// [`Penalty::adaptive_note`] of such a form; `what` its threshold is the same for.
pub(super) fn unscaled(key: &str, what: &str, optimizer: &str) -> String {
    format!(
        "{key}: the threshold {what}, and the steps of {optimizer} are not \
         proportional to the gradient, so the run does not end at the minimum of the objective; `sgd` does"
    )
}

impl fmt::Debug for dyn Penalty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mode() {
            Some(mode) => write!(f, "{} ({mode})", self.key()),
            None => f.write_str(self.key()),
        }
    }
}
