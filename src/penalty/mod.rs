//! The penalty: which tensor gets which λ, when, and what the penalty then amounts to (Tikhonov 1943; Hoerl
//! and Kennard 1970; Tibshirani 1996; Zou and Hastie 2005; Loshchilov and Hutter 2019; Chen et al. 2025).
//!
//! The objective is the mean data loss of the batch plus Σ over groups of λ₁‖w‖₁ + (λ₂/2)‖w‖₂² and the other
//! forms; some are constraints in its place. λ applies to convolution and linear weights; biases, normalisation
//! and other tensors get 0 unless a group says otherwise.
//!
//! A form is a file that implements [`Penalty`], or [`GradientForm`] where it is a part of the gradient, and a line in
//! the table below. What each does in a step, what it is called elsewhere, and how all that meets momentum and
//! preconditioning is in docs/penalties.md, whose table is [`table_of_forms`].

mod assign;
mod concave;
mod decoupled;
mod form;
mod gradient;
mod group;
mod group_lasso;
mod hoyer_square;
mod l1;
mod l2;
mod l2_sp;
mod lambda;
mod matrix;
mod max_norm;
mod nuclear_norm;
mod slices;
mod soft_orthogonality;
mod spectral_norm;
mod table;
mod tuned;
mod values;

use anyhow::Result;

use crate::util::yaml::{Invalid, any_of};
pub(crate) use table::Declared;
use table::{Mode, declared, penalties};

pub use assign::{ParamGroup, PenaltyParam, Term};
pub use concave::{Concave, MCP, McpGamma, SCAD, ScadGamma};
pub use decoupled::{Decoupled, DecoupledMode};
pub use form::{Penalty, PenaltyStep, StepRates, TorchDecay, Update};
pub use gradient::GradientForm;
pub use group::FreezeUntil;
pub use group_lasso::{GroupLasso, GroupLassoMode};
pub use hoyer_square::{HoyerSquare, HoyerSquareMode};
pub use l1::{L1, L1Mode};
pub use l2::L2;
pub use l2_sp::L2Sp;
pub use lambda::{Auto, Lambda, Ramp, RampCurve};
pub use max_norm::NormConstraint;
pub use nuclear_norm::NuclearNorm;
pub use soft_orthogonality::SoftOrthogonality;
pub use spectral_norm::{MaxSpectralNorm, SpectralNorm};
pub use tuned::{TunedLambda, apply_tuned};
pub use values::{LambdaValues, norm, zeros};

penalties! {
    /// λ₂ of (λ₂/2)‖w‖², added to the gradient: `weight_decay` of PyTorch's SGD, Adam, Adagrad and RMSprop.
    l2: L2;
    /// λ₂ as decay apart from the gradient: `weight_decay` of PyTorch's AdamW. Not together with `l2`.
    decoupled: Decoupled(DecoupledMode::Plain), /** How it acts. */ decoupled_mode: DecoupledMode;
    /// λ of (λ/2)‖w − w⁰‖², w⁰ the weights of `model.init_from` (L2-SP). In the place of `l2` and `decoupled`.
    l2_sp: L2Sp;
    /// λ₁ of λ₁‖w‖₁ (the lasso).
    l1: L1(L1Mode::Proximal), /** How it acts. */ l1_mode: L1Mode;
    /// λ of MCP, which shrinks small weights as `l1` and large ones not. In the place of `l1`.
    mcp: MCP, /** From γ·λ on weights are not shrunk; 3 when absent. */ mcp_gamma: McpGamma;
    /// λ of SCAD, which shrinks small weights as `l1` and large ones not. In the place of `l1`.
    scad: SCAD, /** From γ·λ on weights are not shrunk; 3.7 when absent. */ scad_gamma: ScadGamma;
    /// λ of λ·Σ √n‖w_g‖₂ over the filters (or input channels) w_g of n weights; with `l1` the sparse group lasso.
    group_lasso: GroupLasso(GroupLassoMode::Filters), /** Which weights are a group. */ group_lasso_mode: GroupLassoMode;
    /// λ of λ·‖w‖₁²/‖w‖₂² of each tensor (Hoyer-square), which makes sparse and keeps the norm.
    hoyer_square: HoyerSquare(HoyerSquareMode::Elements), /** What becomes sparse. */ hoyer_square_mode: HoyerSquareMode;
    /// λ of λ·‖WWᵀ − I‖² of each weight as a matrix of its filters.
    soft_orthogonality: SoftOrthogonality;
    /// λ of (λ/2)·σ₁², σ₁ the largest singular value of each weight as a matrix.
    spectral_norm: SpectralNorm;
    /// λ of λ·Σσ over the singular values of each weight as a matrix (trace norm), which lowers the rank.
    nuclear_norm: NuclearNorm;
    /// c of the constraint σ₁ ≤ c on the largest singular value of each weight as a matrix.
    max_spectral_norm: MaxSpectralNorm;
    /// c of the constraint ‖w_g‖₂ ≤ c on each filter (neuron) w_g.
    max_norm: NormConstraint::AtMost;
    /// c of the constraint ‖w_g‖₂ = c on each filter (neuron) w_g: 1 for unit norm. Not together with `max_norm`.
    unit_norm: NormConstraint::Equal;
}

/// The key of the penalty on the gradient by the inputs, which is no form: it belongs to no weight, and the training
/// step computes it with the loss.
const INPUT_GRADIENT: &str = "input_gradient";

/// Whether more of the form `key` is a stronger penalty.
pub fn is_strength(key: &str) -> bool {
    key == INPUT_GRADIENT || all_forms().iter().any(|(own, _, form)| *own == key && !form.is_bound())
}

/// The table of docs/penalties.md, in Markdown.
pub fn table_of_forms() -> String {
    let mut text = String::from("| in YAML | what happens in a step | the same as | |\n|---|---|---|---|\n");
    let mut previous = "";
    for (key, mode_key, form) in all_forms() {
        let value = if form.is_bound() { "c" } else { "λ" };
        let mode = mode_key.zip(form.mode()).filter(|_| key == previous);
        let mode = mode.map_or_else(String::new, |(mode_key, mode)| format!(", {mode_key}: {mode}"));
        let traits = [
            (form.is_sparse(), "exact zeros"),
            (form.is_tunable(), "`auto`"),
            (form.graph_obstacle().is_some(), "no CUDA graph"),
        ];
        let traits: Vec<_> = traits.into_iter().filter_map(|(holds, word)| holds.then_some(word)).collect();
        let (rule, same) = (form.update_rule(), form.same_as());
        text += &format!("| `{{{key}: {value}{mode}}}` | {rule} | {same} | {} |\n", traits.join(", "));
        previous = key;
    }
    text + &format!(
        "| `{{{INPUT_GRADIENT}: λ}}` | the gradient of loss + (λ/2)·mean ‖∂L/∂x‖₂² over the samples in the place of the loss's: \
         a second backward pass | double backpropagation (Drucker & LeCun 1992), input-gradient regularisation (Ross & \
         Doshi-Velez 2018) | no groups, no CUDA graph |\n"
    )
}

impl PenaltySpec {
    /// Refuses NaN, negative and infinite λ, two forms of one family, and modes without their λ; paths are
    /// relative to `penalty`.
    pub fn validate(&self) -> Result<(), Invalid> {
        let own = self.declared();
        validate(&own)?;
        if let Some(lambda) = &self.input_gradient {
            lambda.validate().map_err(|invalid| invalid.under(INPUT_GRADIENT))?;
            if lambda.auto().is_some() {
                return Err(Invalid::new(INPUT_GRADIENT, "cannot be tuned: give it a number, and sweep it"));
            }
        }
        for (i, group) in self.groups.iter().enumerate() {
            let here = |invalid: Invalid| invalid.under(i).under("groups");
            let declared = group.declared();
            validate(&declared).map_err(here)?;
            group.validate_training().map_err(here)?;
            let states_form = declared.iter().any(|form| form.lambda.is_some() || form.states_mode);
            if !states_form && !group.states_training() {
                let keys = KEYS.iter().chain(&["lr", "lr_decay", "freeze_until"]);
                let keys: Vec<_> = keys.map(|key| format!("`{key}`")).collect();
                let message = format!("states nothing; add {} (λ 0 for no penalty)", any_of(&keys));
                return Err(here(Invalid::new("", message)));
            }
        }
        if let Some(path) = self.tuned() {
            let of_groups = self.groups.iter().flat_map(GroupSpec::declared);
            let unfit = own.into_iter().chain(of_groups).find(|form| {
                let is_used = form.states_mode || form.lambda.is_some_and(|lambda| lambda.is_active());
                is_used && !form.form.keeps_derivative()
            });
            if let Some(Declared { key, mode_key, form, .. }) = unfit {
                let name = match (mode_key, form.mode()) {
                    (Some(mode_key), Some(mode)) => format!("{mode_key}: {mode}"),
                    _ => key.to_owned(),
                };
                let message = format!(
                    "`auto` follows what λ does in one step, which `{name}` does not tell: give it a number"
                );
                return Err(Invalid::new(path, message));
            }
        }
        self.modes_have_their_lambdas()
    }

    /// A mode says how a λ acts. Without that λ it does nothing, and most likely another λ was meant:
    /// `decoupled` where `l2` is written.
    fn modes_have_their_lambdas(&self) -> Result<(), Invalid> {
        let own = self.declared();
        let groups: Vec<_> = self.groups.iter().map(GroupSpec::declared).collect();
        let lacks = |path: String, lambda: &str| {
            let message = format!(
                "says how `{lambda}` acts, and there is no `{lambda}` here: add it, or leave the mode out"
            );
            Err(Invalid::new(path, message))
        };
        for (at, form) in own.iter().enumerate() {
            let Some(mode_key) = form.mode_key.filter(|_| form.states_mode) else { continue };
            if form.lambda.is_none() && groups.iter().all(|group| group[at].lambda.is_none()) {
                return lacks(mode_key.into(), form.key);
            }
        }
        for (i, group) in groups.iter().enumerate() {
            for (at, form) in group.iter().enumerate() {
                let Some(mode_key) = form.mode_key.filter(|_| form.states_mode) else { continue };
                let inherited = own[at].lambda.filter(|_| !assign::states_family(group, at));
                if form.lambda.or(inherited).is_none() {
                    return lacks(format!("groups.{i}.{mode_key}"), form.key);
                }
            }
        }
        Ok(())
    }

    /// The path of the first λ that the validation set tunes; None where there is none.
    pub fn tuned(&self) -> Option<String> {
        let is_tuned = |form: &Declared| form.lambda.is_some_and(|lambda| lambda.auto().is_some());
        self.paths().find(|(_, form)| is_tuned(form)).map(|(path, _)| path)
    }

    /// The path of the first λ of a form that pulls towards the weights that training began with.
    pub fn needs_initial(&self) -> Option<String> {
        self.paths().find(|(_, form)| form.form.needs_initial() && form.acts()).map(|(path, _)| path)
    }

    /// All that is declared, with its path.
    pub(crate) fn paths(&self) -> impl Iterator<Item = (String, Declared)> {
        let own = self.declared().into_iter().map(|form| (form.key.to_owned(), form));
        own.chain(self.groups.iter().enumerate().flat_map(|(i, group)| {
            group.declared().into_iter().map(move |form| (format!("groups.{i}.{}", form.key), form))
        }))
    }

    /// The λs at the first step of a weight that no group matches.
    pub fn lambdas(&self) -> LambdaValues {
        let declared = self.declared();
        let start = crate::schedule::ScheduleStep { step: 0, steps_per_epoch: 1, total_steps: 1 };
        let at_start = declared.map(|form| form.lambda.map_or(0.0, |lambda| lambda.at(start)));
        LambdaValues::new(declared.map(|form| form.form), at_start)
    }
}

fn validate(declared: &[Declared; FORMS]) -> Result<(), Invalid> {
    for Declared { key, lambda, form, .. } in declared {
        let Some(lambda) = lambda else { continue };
        lambda.validate().map_err(|invalid| invalid.under(key))?;
        if lambda.auto().is_some() && !form.is_tunable() {
            let tunable = PenaltySpec::default().declared().into_iter().filter(|form| form.form.is_tunable());
            let tunable: Vec<_> = tunable.map(|form| format!("`{}`", form.key)).collect();
            let message =
                format!("only {} can be tuned; give {key} a number, and sweep it", tunable.join(", "));
            return Err(Invalid::new("auto", message).under(key));
        }
    }
    for (at, form) in declared.iter().enumerate().filter(|(_, form)| form.acts()) {
        let mut earlier = declared[..at].iter().filter(|other| other.acts());
        if let Some(other) = earlier.find(|other| other.form.family() == form.form.family()) {
            let message =
                format!("`{}` and `{}` are two ways of one penalty: choose one", other.key, form.key);
            return Err(Invalid::new(form.key, message));
        }
    }
    Ok(())
}
