//! The penalty: which tensor gets which λ, when, and what the penalty then amounts to (Tikhonov 1943; Hoerl
//! and Kennard 1970; Tibshirani 1996; Zou and Hastie 2005; Loshchilov and Hutter 2019; Chen et al. 2025).
//!
//! The objective is the mean data loss of the batch plus Σ over groups of λ₁‖w‖₁ + (λ₂/2)‖w‖₂² and the other
//! forms. λ applies to convolution and linear weights; biases, normalisation and other tensors get 0 unless a
//! group says otherwise.
//!
//! | config | update (η the scheduled learning rate) | same as |
//! |---|---|---|
//! | `{l2: λ}` | g ← g + λw, before momentum or preconditioning | `weight_decay` of PyTorch's SGD, Adam, Adagrad, RMSprop |
//! | `{decoupled: λ}` | w ← w − ηλw, apart from the gradient step | `weight_decay` of PyTorch's AdamW; with SGD the decay of SGDW, on PyTorch's momentum (η outside the buffer, where Loshchilov and Hutter's algorithm 1 has it inside: under a schedule another path) |
//! | `{decoupled: λ, decoupled_mode: relative}` | w ← w − (η/η_peak)λw, η_peak the schedule's highest rate: λ no longer depends on `lr` | the decay as Loshchilov and Hutter 2019 wrote it, their schedule multiplier being η/η_peak |
//! | `{decoupled: λ, decoupled_mode: cautious}` | w ← w − ηu − ηλ·1[u·w ≥ 0]·w, u the step that the gradient takes: decay only where u shrinks the weight anyway | cautious weight decay (Chen et al. 2025, algorithm 1) |
//! | `{decoupled: λ, decoupled_mode: accumulated}` | w ← w·Π(1 − ηλ) over several steps, once that takes 2⁻¹² of a weight | plain decay where ηλ is too small for float32 |
//! | `{l1: λ}` | after the step w ← sign(w)·max(\|w\| − ηλ, 0), SGD with momentum m and dampening d ηλ(1 − d)/(1 − m): exact zeros | with SGD the lasso by ISTA; with Adam, Adagrad and RMSprop no minimum of the objective |
//! | `{l1: λ, l1_mode: preconditioned}` | the same with each weight's η divided as its step is: ηλ/(√v̂ + ε) with Adam, ηλ/(√sum + ε) with Adagrad, ηλ/(√v + ε)/(1 − m) with RMSprop | the lasso, zeros included, with every optimiser (Duchi, Hazan and Singer 2011; Yun, Lozano and Yang 2021) |
//! | `{l1: λ, l1_mode: subgradient}` | g ← g + λ·sign(w), sign(0) = 0 | Keras `l1` |
//! | `{l1: λ₁, l2: λ₂}` | both | elastic net |
//! | `{group_lasso: λ}` | after the step, for each filter (neuron) w_g of n weights w_g ← w_g·max(1 − ηλ√n/‖w_g‖₂, 0), with momentum as `l1`: whole filters become exactly 0 | group lasso (Yuan and Lin 2006) |
//! | `{group_lasso: λ, group_lasso_mode: input_channels}` | the same for what a layer takes from one input channel or feature | with one linear layer scikit-learn's `MultiTaskLasso` |
//!
//! Each λ is a number, or moves over the run: `{start: 1e-5, end: 1e-3, epochs: 10, curve: cosine}`. λ₂ may
//! be `auto`: tuned on the validation set, see [`Auto`].
//!
//! A form is a file that implements [`Penalty`] and a line in the table below.
//!
//! With momentum m and dampening d a steady gradient acts (1 − d)/(1 − m) times over in SGD, and so does the
//! threshold, so that λ₁ means the same with and without. Decoupled decay acts once: with `l1` beside it λ₂
//! counts (1 − m)/(1 − d) of an elastic net's. With Adam, Adagrad and RMSprop the plain soft threshold uses η
//! itself, not the rate that preconditioning gives each weight: every weight shrinks alike, as decoupled
//! decay does it for λ₂, and with Adagrad, whose steps shrink and whose threshold does not, all of them
//! become 0 in time. Centred RMSprop divides a steady gradient by nearly nothing: with `preconditioned` its
//! zeros are the lasso's, its other weights hover by some η.
//!
//! What other programs call the same λ, for a data loss averaged over n samples:
//!
//! | there | here |
//! |---|---|
//! | PyTorch `weight_decay=c` (SGD, Adam, Adagrad, RMSprop) | `l2: c` |
//! | PyTorch `AdamW(weight_decay=c)`; its default is 0.01, ours 0 | `adamw` and `decoupled: c` |
//! | Keras `l2(c)`, the term c·Σw² | `l2: 2c` |
//! | Keras `l1(c)`, the term c·Σ\|w\| | `l1: c, l1_mode: subgradient` |
//! | Keras `AdamW(weight_decay=c)` | `adamw` and `decoupled: c` |
//! | scikit-learn `Ridge(alpha)`, loss ‖y−Xw‖² + alpha‖w‖², and here ½·MSE over T outputs | `l2: alpha/(n·T)` |
//! | scikit-learn `Lasso(alpha)` of each output, and here ½·MSE over T outputs | `l1: alpha/T` |
//! | scikit-learn `ElasticNet(alpha, l1_ratio=r)` of each output, and here ½·MSE over T outputs | `l1: alpha·r/T, l2: alpha·(1−r)/T` |
//! | scikit-learn `MultiTaskLasso(alpha)`, and here ½·MSE over T outputs | `group_lasso: alpha/(T·√T), group_lasso_mode: input_channels` |
//! | a textbook's λ/(2m)·Σθ² on m samples | `l2: λ/m` |
//!
//! If the data loss is MSE without the ½, as PyTorch's `mse_loss`, scikit-learn's λ double.

mod assign;
mod decoupled;
mod form;
mod group;
mod group_lasso;
mod l1;
mod l2;
mod lambda;
mod table;
mod tuned;
mod values;

use anyhow::Result;

use crate::util::yaml::{Invalid, any_of};
pub(crate) use table::Declared;
use table::{Mode, declared, penalties};

pub use assign::{ParamGroup, PenaltyParam, Term};
pub use decoupled::{Decoupled, DecoupledMode};
pub use form::{Penalty, PenaltyStep, StepRates, TorchDecay, Update};
pub use group::FreezeUntil;
pub use group_lasso::{GroupLasso, GroupLassoMode};
pub use l1::{L1, L1Mode};
pub use l2::L2;
pub use lambda::{Auto, Lambda, Ramp, RampCurve};
pub use tuned::{TunedLambda, apply_tuned};
pub use values::{LambdaValues, norm, zeros};

penalties! {
    /// λ₂ of (λ₂/2)‖w‖², added to the gradient: `weight_decay` of PyTorch's SGD, Adam, Adagrad and RMSprop.
    l2: L2;
    /// λ₂ as decay apart from the gradient: `weight_decay` of PyTorch's AdamW. Not together with `l2`.
    decoupled: Decoupled(DecoupledMode::Plain), decoupled_mode: DecoupledMode;
    /// λ₁ of λ₁‖w‖₁ (the lasso).
    l1: L1(L1Mode::Proximal), l1_mode: L1Mode;
    /// λ of λ·Σ √n‖w_g‖₂ over the filters (or input channels) w_g of n weights.
    group_lasso: GroupLasso(GroupLassoMode::Filters), group_lasso_mode: GroupLassoMode;
}

impl PenaltySpec {
    /// Refuses NaN, negative and infinite λ, two forms of one family, and modes without their λ; paths are
    /// relative to `penalty`.
    pub fn validate(&self) -> Result<(), Invalid> {
        let own = self.declared();
        validate(&own)?;
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
        let own = self.declared().into_iter().map(|form| (form.key.to_owned(), form.lambda));
        let groups = self.groups.iter().enumerate().flat_map(|(i, group)| {
            group.declared().into_iter().map(move |form| (format!("groups.{i}.{}", form.key), form.lambda))
        });
        let mut all = own.chain(groups);
        all.find(|(_, lambda)| lambda.is_some_and(|lambda| lambda.auto().is_some())).map(|(path, _)| path)
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
                format!("only {} can be tuned; give {key} a number, and sweep it", tunable.join(" and "));
            return Err(Invalid::new("auto", message).under(key));
        }
    }
    let is_active = |form: &Declared| form.lambda.is_some_and(|lambda| lambda.is_active());
    for (at, form) in declared.iter().enumerate().filter(|(_, form)| is_active(form)) {
        let mut earlier = declared[..at].iter().filter(|other| is_active(other));
        if let Some(other) = earlier.find(|other| other.form.family() == form.form.family()) {
            let message =
                format!("`{}` and `{}` are two ways of one penalty: choose one", other.key, form.key);
            return Err(Invalid::new(form.key, message));
        }
    }
    Ok(())
}
