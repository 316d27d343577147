//! The penalty: which tensor gets which λ, when, and what the penalty then amounts to (Tikhonov 1943; Hoerl
//! and Kennard 1970; Tibshirani 1996; Zou and Hastie 2005; Loshchilov and Hutter 2019; Chen et al. 2025).
//!
//! The objective is the mean data loss of the batch plus Σ over groups of λ₁‖w‖₁ + (λ₂/2)‖w‖₂². λ applies to
//! convolution and linear weights; biases, normalisation and other tensors get 0 unless a group says
//! otherwise.
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
//!
//! Each λ is a number, or moves over the run: `{start: 1e-5, end: 1e-3, epochs: 10, curve: cosine}`. λ₂ may
//! be `auto`: tuned on the validation set, see [`Auto`].
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
//! | a textbook's λ/(2m)·Σθ² on m samples | `l2: λ/m` |
//!
//! If the data loss is MSE without the ½, as PyTorch's `mse_loss`, scikit-learn's λ double.

mod lambda;
mod tuned;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use wildmatch::WildMatch;

use crate::libtorch::optim as kernels;
use crate::schedule::ScheduleStep;
use crate::util::yaml::Invalid;

pub use lambda::{Auto, Lambda, Ramp, RampCurve};
pub use tuned::{TunedLambda, apply_tuned};

/// The penalty as declared. Without any λ there is none.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PenaltySpec {
    /// λ₂ in (λ₂/2)‖w‖², through the gradient. At least 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l2: Option<Lambda>,
    /// λ₂ as decay apart from the gradient. At least 0; not together with `l2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoupled: Option<Lambda>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoupled_mode: Option<DecoupledMode>,
    /// λ₁ in λ₁‖w‖₁. At least 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l1: Option<Lambda>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l1_mode: Option<L1Mode>,
    /// Exceptions by parameter name; the first that matches wins.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupSpec>,
}

/// Other rates for the parameters whose names match.
///
/// What a group states holds for every tensor that it matches, biases and normalisation too. What it leaves
/// out is inherited: weights keep the rates above the groups, other tensors 0. `l2` and `decoupled` are two
/// ways of one penalty, so a group that states one of them does not inherit the other.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GroupSpec {
    /// A pattern over the dotted name, such as `layer4.*` or `*.bias`: `*` any text, `?` any one character.
    #[serde(rename = "match")]
    pub pattern: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l2: Option<Lambda>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoupled: Option<Lambda>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoupled_mode: Option<DecoupledMode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l1: Option<Lambda>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l1_mode: Option<L1Mode>,
}

/// How λ₁ acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum L1Mode {
    /// Soft threshold after the step: weights become exactly 0.
    #[default]
    Proximal,
    /// The same in the metric of the optimiser's preconditioner: the threshold of each weight is scaled as
    /// its step is.
    Preconditioned,
    /// λ₁·sign(w) in the gradient: weights hover around 0.
    Subgradient,
}

/// How decay apart from the gradient acts; the table above has the updates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DecoupledMode {
    /// By η·λ, as PyTorch's AdamW does.
    #[default]
    Plain,
    /// By (η/η_peak)·λ.
    Relative,
    /// By η·λ where the step goes towards 0 too.
    Cautious,
    /// By η·λ, the factors 1 − η·λ of several steps multiplied in float64 and applied as one once they take
    /// 2⁻¹² of a weight: for η·λ that float32 rounds away.
    Accumulated,
}

/// A parameter as the penalty sees it.
#[derive(Clone, Copy, Debug)]
pub struct PenaltyParam<'a> {
    /// The dotted name.
    pub name: &'a str,
    /// Whether it is a convolution or linear weight, which gets the default λ.
    pub is_weight: bool,
}

/// Parameters that share their λs.
#[derive(Clone, Debug)]
pub struct ParamGroup {
    /// The pattern, or `weights` and `others` for what no pattern matches; the tensors that a pattern gives
    /// other rates than its weights are apart as `<pattern> (others)`.
    pub label: String,
    /// Indices into the list given to [`PenaltySpec::assign`], ascending.
    pub param_indices: Vec<usize>,
    pub l2: Lambda,
    pub decoupled: Lambda,
    pub decoupled_mode: DecoupledMode,
    pub l1: Lambda,
    pub l1_mode: L1Mode,
}

/// The λs of a group at one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LambdaValues {
    pub l2: f64,
    pub decoupled: f64,
    pub decoupled_mode: DecoupledMode,
    pub l1: f64,
    pub l1_mode: L1Mode,
}

impl LambdaValues {
    /// The same with relative decay as the plain decay that it is: λ/η_peak. 0 stands for no peak.
    pub fn as_plain(&self, peak: f64) -> Self {
        let is_relative = self.decoupled_mode == DecoupledMode::Relative && peak > 0.0;
        Self { decoupled: if is_relative { self.decoupled / peak } else { self.decoupled }, ..*self }
    }
}

impl PenaltySpec {
    /// Refuses NaN, negative and infinite λ, and `l2` beside `decoupled`; paths are relative to `penalty`.
    pub fn validate(&self) -> Result<(), Invalid> {
        validate(self.l2, self.decoupled, self.l1)?;
        for (i, group) in self.groups.iter().enumerate() {
            let here = |invalid: Invalid| invalid.under(i).under("groups");
            validate(group.l2, group.decoupled, group.l1).map_err(here)?;
            let has_mode = group.l1_mode.is_some() || group.decoupled_mode.is_some();
            if group.l2.or(group.decoupled).or(group.l1).is_none() && !has_mode {
                let message = "states nothing; add `l2`, `decoupled` or `l1` (0 for no penalty)";
                return Err(here(Invalid::new("", message)));
            }
        }
        let modes = |mode: L1Mode, decay: DecoupledMode| {
            let of_groups = self.groups.iter().map(|group| (group.l1_mode, group.decoupled_mode));
            let mut all = std::iter::once((self.l1_mode, self.decoupled_mode)).chain(of_groups);
            all.any(|(own, decoupled)| own == Some(mode) || decoupled == Some(decay))
        };
        if let (Some(path), true) = (self.tuned(), modes(L1Mode::Preconditioned, DecoupledMode::Accumulated))
        {
            let message = "`auto` follows what λ does in one step, which `l1_mode: preconditioned` and `decoupled_mode: accumulated` \
                           do not tell: give it a number";
            return Err(Invalid::new(path, message));
        }
        self.modes_have_their_lambdas()
    }

    /// A mode says how a λ acts. Without that λ it does nothing, and most likely another λ was meant:
    /// `decoupled` where `l2` stands.
    fn modes_have_their_lambdas(&self) -> Result<(), Invalid> {
        let lacks = |path: String, lambda: &str| {
            let message = format!(
                "says how `{lambda}` acts, and there is no `{lambda}` here: add it, or leave the mode out"
            );
            Err(Invalid::new(path, message))
        };
        let groups = || self.groups.iter().enumerate();
        if self.decoupled_mode.is_some()
            && self.decoupled.is_none()
            && groups().all(|(_, g)| g.decoupled.is_none())
        {
            return lacks("decoupled_mode".into(), "decoupled");
        }
        if self.l1_mode.is_some() && self.l1.is_none() && groups().all(|(_, g)| g.l1.is_none()) {
            return lacks("l1_mode".into(), "l1");
        }
        for (i, group) in groups() {
            // One that states `l2` inherits no `decoupled`.
            let inherited = self.decoupled.filter(|_| group.l2.is_none());
            if group.decoupled_mode.is_some() && group.decoupled.or(inherited).is_none() {
                return lacks(format!("groups.{i}.decoupled_mode"), "decoupled");
            }
            if group.l1_mode.is_some() && group.l1.or(self.l1).is_none() {
                return lacks(format!("groups.{i}.l1_mode"), "l1");
            }
        }
        Ok(())
    }

    /// The path of the first λ that the validation set tunes; None where there is none.
    pub fn tuned(&self) -> Option<String> {
        let own = [("l2".into(), self.l2), ("decoupled".into(), self.decoupled)];
        let groups = self.groups.iter().enumerate().flat_map(|(i, group)| {
            [(format!("groups.{i}.l2"), group.l2), (format!("groups.{i}.decoupled"), group.decoupled)]
        });
        let mut all = own.into_iter().chain(groups);
        all.find(|(_, lambda)| lambda.is_some_and(|lambda| lambda.auto().is_some())).map(|(path, _)| path)
    }

    /// The partition of all `params` into groups; none is empty, and together they hold every parameter once.
    /// The groups of the config come first and in its order. A pattern that gets no parameter is refused.
    pub fn assign(&self, params: &[PenaltyParam]) -> Result<Vec<ParamGroup>, Invalid> {
        let patterns: Vec<_> = self.groups.iter().map(|group| WildMatch::new(&group.pattern)).collect();
        let owner = |name: &str| patterns.iter().position(|pattern| pattern.matches(name));
        let owners: Vec<_> = params.iter().map(|param| owner(param.name)).collect();
        let members = |who: Option<usize>, decays: bool| -> Vec<usize> {
            (0..params.len()).filter(|&i| owners[i] == who && params[i].is_weight == decays).collect()
        };

        let mut groups = Vec::new();
        for (i, spec) in self.groups.iter().enumerate() {
            if !owners.contains(&Some(i)) {
                let message = self.unmatched(spec, &patterns[i], params);
                return Err(Invalid::new(format!("groups.{i}.match"), message));
            }
            let weights = self.group(&spec.pattern, Some(spec), true, members(Some(i), true));
            let others = self.group(&spec.pattern, Some(spec), false, members(Some(i), false));
            groups.extend(join(weights, others));
        }
        groups.push(self.group("weights", None, true, members(None, true)));
        groups.push(self.group("others", None, false, members(None, false)));
        groups.retain(|group| !group.param_indices.is_empty());
        Ok(groups)
    }

    fn group(&self, label: &str, spec: Option<&GroupSpec>, decays: bool, members: Vec<usize>) -> ParamGroup {
        let inherited = |lambda: Option<Lambda>| lambda.filter(|_| decays).unwrap_or_default();
        let (l2, decoupled) = match spec.map(|spec| (spec.l2, spec.decoupled)) {
            None | Some((None, None)) => (inherited(self.l2), inherited(self.decoupled)),
            Some((l2, decoupled)) => (l2.unwrap_or_default(), decoupled.unwrap_or_default()),
        };
        ParamGroup {
            label: label.into(),
            param_indices: members,
            l2,
            decoupled,
            decoupled_mode: spec
                .and_then(|spec| spec.decoupled_mode)
                .or(self.decoupled_mode)
                .unwrap_or_default(),
            l1: spec.and_then(|spec| spec.l1).unwrap_or_else(|| inherited(self.l1)),
            l1_mode: spec.and_then(|spec| spec.l1_mode).or(self.l1_mode).unwrap_or_default(),
        }
    }

    /// Why a group has no members.
    fn unmatched(&self, spec: &GroupSpec, pattern: &WildMatch, params: &[PenaltyParam]) -> String {
        let wanted = &spec.pattern;
        if let Some(taken) = params.iter().find(|param| pattern.matches(param.name)) {
            return format!(
                "every parameter that `{wanted}` matches, such as {}, belongs to an earlier group; move this one up",
                taken.name
            );
        }
        let close = nearest_names(wanted, params);
        if close.is_empty() {
            return format!("`{wanted}` matches no parameter; `tikhonov summary` lists their names");
        }
        format!("`{wanted}` matches no parameter; the nearest names are {}", close.join(", "))
    }
}

/// The names most like a pattern, best first: at most three.
fn nearest_names<'a>(pattern: &str, params: &[PenaltyParam<'a>]) -> Vec<&'a str> {
    let plain = pattern.replace(['*', '?'], "");
    let score = |name: &str| {
        // A pattern with a star is compared with as much of the name as it spells out.
        let cut = if pattern.ends_with('*') { plain.chars().count() } else { usize::MAX };
        let head: String = name.chars().take(cut).collect();
        strsim::jaro_winkler(&plain, &head).max(strsim::jaro_winkler(&plain, name))
    };
    let mut ranked: Vec<_> = params.iter().map(|param| (score(param.name), param.name)).collect();
    ranked.retain(|(score, _)| *score > 0.6);
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    ranked.into_iter().take(3).map(|(_, name)| name).collect()
}

/// One group where the two parts get the same rates, else both.
fn join(weights: ParamGroup, mut others: ParamGroup) -> Vec<ParamGroup> {
    if weights.param_indices.is_empty() {
        return vec![others];
    }
    if others.param_indices.is_empty() {
        return vec![weights];
    }
    if (weights.l2, weights.decoupled, weights.l1) == (others.l2, others.decoupled, others.l1) {
        let mut members = [weights.param_indices, others.param_indices].concat();
        members.sort_unstable();
        return vec![ParamGroup { param_indices: members, ..weights }];
    }
    others.label += " (others)";
    vec![weights, others]
}

impl ParamGroup {
    /// Whether any of its λs is ever above 0.
    pub fn is_active(&self) -> bool {
        [self.l2, self.decoupled, self.l1].iter().any(Lambda::is_active)
    }

    /// Whether a soft threshold makes exact zeros of its weights.
    pub fn is_sparse(&self) -> bool {
        self.l1.is_active() && self.l1_mode != L1Mode::Subgradient
    }

    /// How its λ₂ is tuned, where it is.
    pub fn auto(&self) -> Option<Auto> {
        self.l2.auto().or(self.decoupled.auto())
    }

    /// The λs at `clock`; those that are tuned, where they start.
    pub fn lambdas(&self, clock: ScheduleStep) -> LambdaValues {
        LambdaValues {
            l2: self.l2.at(clock),
            decoupled: self.decoupled.at(clock),
            decoupled_mode: self.decoupled_mode,
            l1: self.l1.at(clock),
            l1_mode: self.l1_mode,
        }
    }
}

fn validate(l2: Option<Lambda>, decoupled: Option<Lambda>, l1: Option<Lambda>) -> Result<(), Invalid> {
    for (key, lambda) in [("l2", l2), ("decoupled", decoupled), ("l1", l1)] {
        lambda.map_or(Ok(()), |lambda| lambda.validate()).map_err(|invalid| invalid.under(key))?;
    }
    if l1.is_some_and(|lambda| lambda.auto().is_some()) {
        let message = "only `l2` and `decoupled` can be tuned; give l1 a number, and sweep it";
        return Err(Invalid::new("l1.auto", message));
    }
    if l2.is_some_and(|lambda| lambda.is_active()) && decoupled.is_some_and(|lambda| lambda.is_active()) {
        let message = "`l2` and `decoupled` are two ways of one penalty: choose one";
        return Err(Invalid::new("decoupled", message));
    }
    Ok(())
}

/// λ₁‖w‖₁ + (λ₂/2)‖w‖² over all of `ws`, as a 0-dim float64 tensor on their device; nothing waits for the
/// device.
///
/// λ₂ is `l2` or `decoupled`. Decoupled decay is not the gradient of a term of the objective (with a
/// preconditioner it minimises something else); its (λ/2)‖w‖² is reported so that runs can be compared, of
/// relative decay with [`LambdaValues::as_plain`], so that runs with equal weights report equal penalties.
pub fn value(ws: &[&Tensor], rates: &LambdaValues) -> Result<Tensor> {
    let device = ws.first().map_or(Device::Cpu, |w| w.device());
    let mut total = Tensor::f_zeros([0; 0], (Kind::Double, device))?;
    if ws.is_empty() {
        return Ok(total);
    }
    if rates.l1 > 0.0 {
        let norms = kernels::norms(ws, 1.0, true)?;
        total = total.f_add(&norms.f_sum(Kind::Double)?.f_mul_scalar(rates.l1)?)?;
    }
    let quadratic = rates.l2 + rates.decoupled;
    if quadratic > 0.0 {
        let norms = kernels::norms(ws, 2.0, true)?;
        total = total.f_add(&norms.f_square()?.f_sum(Kind::Double)?.f_mul_scalar(quadratic / 2.0)?)?;
    }
    Ok(total)
}

/// ‖w‖₂ over all of `ws`, as a 0-dim float64 tensor on their device; nothing waits for the device.
pub fn norm(ws: &[&Tensor]) -> Result<Tensor> {
    if ws.is_empty() {
        return Ok(Tensor::f_zeros([0; 0], (Kind::Double, Device::Cpu))?);
    }
    Ok(kernels::norms(ws, 2.0, true)?.f_norm()?)
}

/// The share of exact zeros in all of `ws`, in [0, 1], as a 0-dim float64 tensor; nothing waits for the
/// device.
pub fn zeros(ws: &[&Tensor]) -> Result<Tensor> {
    if ws.is_empty() {
        return Ok(Tensor::f_zeros([0; 0], (Kind::Double, Device::Cpu))?);
    }
    let all: usize = ws.iter().map(|w| w.numel()).sum();
    Ok(kernels::zeros(ws)?.f_to_kind(Kind::Double)?.f_div_scalar(all.max(1) as f64)?)
}
