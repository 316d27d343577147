//! Which parameters a penalty acts on: the partition of a network's parameters into groups with their λs and
//! learning rates.

use std::collections::HashSet;

use anyhow::Result;
use wildmatch::WildMatch;

use super::form::Penalty;
use super::group::{Blocks, FreezeUntil};
use super::lambda::{Auto, Lambda};
use super::table::Declared;
use super::values::LambdaValues;
use super::{FORMS, GroupSpec, PenaltySpec};
use crate::schedule::ScheduleStep;
use crate::util::yaml::Invalid;

/// A parameter as the penalty sees it.
#[derive(Clone, Copy, Debug)]
pub struct PenaltyParam<'a> {
    /// The dotted name.
    pub name: &'a str,
    /// Whether it is a convolution or linear weight, which gets the default λ.
    pub is_weight: bool,
}

/// One form of penalty on the parameters of a group.
#[derive(Clone, Copy, Debug)]
pub struct Term {
    pub form: &'static dyn Penalty,
    /// The key of its mode in YAML, where it has modes.
    pub mode_key: Option<&'static str>,
    pub lambda: Lambda,
}

/// Parameters that share their λs and their learning rate.
#[derive(Clone, Debug)]
pub struct ParamGroup {
    /// The pattern, or `weights` and `others` for what no pattern matches; the tensors that a pattern gives
    /// other λs than its weights are apart as `<pattern> (others)`. With layer-wise decay each block of the
    /// network has its own, as `<pattern>, <block>`.
    pub label: String,
    /// Indices into the list given to [`PenaltySpec::assign`], ascending.
    pub param_indices: Vec<usize>,
    /// A factor on the scheduled learning rate.
    pub lr: f64,
    pub freeze_until: Option<FreezeUntil>,
    /// One for each form of the table, with λ = 0 where it does not act.
    pub terms: [Term; FORMS],
}

/// Whether a group says anything of the family of form `at`: then it inherits nothing of it.
pub(super) fn states_family(group: &[Declared; FORMS], at: usize) -> bool {
    let family = group[at].form.family();
    group.iter().any(|form| form.form.family() == family && form.lambda.is_some())
}

impl PenaltySpec {
    /// The partition of all `params` into groups; none is empty, and together they hold every parameter once.
    /// The groups of the config come first and in its order. A pattern that gets no parameter is refused.
    pub fn assign(&self, params: &[PenaltyParam]) -> Result<Vec<ParamGroup>, Invalid> {
        let patterns: Vec<_> = self.groups.iter().map(GroupSpec::matcher).collect();
        let owner = |name: &str| patterns.iter().position(|pattern| pattern.matches(name));
        let owners: Vec<_> = params.iter().map(|param| owner(param.name)).collect();
        let members = |who: Option<usize>, is_weight: bool| -> Vec<usize> {
            (0..params.len()).filter(|&i| owners[i] == who && params[i].is_weight == is_weight).collect()
        };

        let mut groups = Vec::new();
        for (i, spec) in self.groups.iter().enumerate() {
            if !owners.contains(&Some(i)) {
                let message = self.unmatched(spec, &patterns[i], params);
                return Err(Invalid::new(format!("groups.{i}.match"), message));
            }
            for (label, lr, block) in spec.rates(params) {
                let own = |is_weight| -> Vec<usize> {
                    let mut own = members(Some(i), is_weight);
                    own.retain(|&member| block.as_ref().is_none_or(|block| block.contains(&member)));
                    own
                };
                let weights = self.group(&label, Some(spec), true, own(true));
                let others = self.group(&label, Some(spec), false, own(false));
                groups.extend(join(weights, others).into_iter().map(|group| ParamGroup { lr, ..group }));
            }
        }
        groups.push(self.group("weights", None, true, members(None, true)));
        groups.push(self.group("others", None, false, members(None, false)));
        groups.retain(|group| !group.param_indices.is_empty());
        Ok(groups)
    }

    fn group(
        &self,
        label: &str,
        spec: Option<&GroupSpec>,
        is_weight: bool,
        param_indices: Vec<usize>,
    ) -> ParamGroup {
        let own = self.declared();
        let group = spec.map(GroupSpec::declared);
        let terms = std::array::from_fn(|at| {
            let whole = own[at];
            let stated = group.as_ref().map(|group| group[at]);
            let is_inherited = is_weight && !group.as_ref().is_some_and(|group| states_family(group, at));
            let inherited = whole.lambda.filter(|_| is_inherited);
            Term {
                form: stated.filter(|form| form.states_mode).unwrap_or(whole).form,
                mode_key: whole.mode_key,
                lambda: stated.and_then(|form| form.lambda).or(inherited).unwrap_or_default(),
            }
        });
        let freeze_until = spec.and_then(|spec| spec.freeze_until);
        ParamGroup { label: label.into(), param_indices, lr: 1.0, freeze_until, terms }
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

impl GroupSpec {
    pub(super) fn matcher(&self) -> WildMatch {
        WildMatch::new(&self.pattern)
    }

    /// The parts that differ in their rates: label, factor on the scheduled rate, and the indices of the
    /// network's parameters among which theirs are, None for all.
    fn rates(&self, params: &[PenaltyParam]) -> Vec<(String, f64, Option<HashSet<usize>>)> {
        let lr = self.lr.unwrap_or(1.0);
        let Some(decay) = self.lr_decay else { return vec![(self.pattern.clone(), lr, None)] };
        let blocks = Blocks::of(params);
        let part = |(at, name): (usize, &String)| {
            let members = (0..params.len()).filter(|&i| blocks.at(i) == at).collect();
            (format!("{}, {name}", self.pattern), lr * blocks.factor(decay, at), Some(members))
        };
        blocks.names.iter().enumerate().map(part).collect()
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

/// One group where the two parts get the same λs, else both.
fn join(weights: ParamGroup, mut others: ParamGroup) -> Vec<ParamGroup> {
    if weights.param_indices.is_empty() {
        return vec![others];
    }
    if others.param_indices.is_empty() {
        return vec![weights];
    }
    let lambdas = |group: &ParamGroup| group.terms.map(|term| term.lambda);
    if lambdas(&weights) == lambdas(&others) {
        let mut param_indices = [weights.param_indices, others.param_indices].concat();
        param_indices.sort_unstable();
        return vec![ParamGroup { param_indices, ..weights }];
    }
    others.label += " (others)";
    vec![weights, others]
}

impl ParamGroup {
    /// The forms whose λ is ever above 0.
    pub fn active(&self) -> impl Iterator<Item = &Term> {
        self.terms.iter().filter(|term| term.lambda.is_active())
    }

    /// Whether any of its λs is ever above 0.
    pub fn is_active(&self) -> bool {
        self.active().next().is_some()
    }

    /// Whether its parameters train otherwise than by the schedule alone.
    pub fn has_own_rate(&self) -> bool {
        self.lr != 1.0 || self.freeze_until.is_some()
    }

    /// Whether a form makes exact zeros of its weights.
    pub fn is_sparse(&self) -> bool {
        self.active().any(|term| term.form.is_sparse())
    }

    /// The form whose λ is tuned, and how; None where none is.
    pub fn tuned(&self) -> Option<(&Term, Auto)> {
        self.terms.iter().find_map(|term| Some((term, term.lambda.auto()?)))
    }

    /// The λs at `step`; those that are tuned, where they start.
    pub fn lambdas(&self, step: ScheduleStep) -> LambdaValues {
        LambdaValues::new(self.terms.map(|term| term.form), self.terms.map(|term| term.lambda.at(step)))
    }
}
