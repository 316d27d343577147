//! What `optimizer.load_state_dict` of Python takes, from an optimiser's named state.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use tch::Tensor;

use super::Family;
use crate::optim::{Argument, OptimizerSpec};
use crate::penalty::{DecoupledMode, LambdaValues, ParamGroup};
use crate::pytorch::writer::Value;

/// An optimiser between two steps.
pub struct Resumable<'a> {
    pub spec: &'a OptimizerSpec,
    /// The learning rate of the next step.
    pub lr: f64,
    /// The highest rate of the run, of which relative decay is a share.
    pub peak: f64,
    /// What it trains, in definition order.
    pub params: &'a [(String, Tensor)],
    /// The penalty groups, a partition of `params`, and what each has for the next step.
    pub groups: &'a [ParamGroup],
    pub rates: &'a [LambdaValues],
    /// As [`Optimizer::state`](crate::optim::Optimizer::state) names it.
    pub state: &'a BTreeMap<String, Tensor>,
}

/// Parameters with one weight decay.
struct PythonGroup {
    members: Vec<usize>,
    weight_decay: f64,
    decoupled: bool,
}

/// The value of `optimizer.state_dict()`, and what of the penalty it cannot say. Penalty groups of the same
/// weight decay are one param group; with only one, `torch.optim.Adam(model.parameters())` loads it. Each
/// group also holds `param_names`.
pub fn state_dict(of: &Resumable) -> Result<(Value, Vec<String>)> {
    let mut notes = Vec::new();
    let groups = param_groups(of, &mut notes)?;
    if groups.len() > 1 {
        let decays: Vec<_> = (groups.iter())
            .map(|group| format!("{} parameters of weight_decay {}", group.members.len(), group.weight_decay))
            .collect();
        notes.push(format!(
            "{} param groups ({}): make Python's optimizer from the file's own with [{{**g, 'params': [params[n] for n in \
             g['param_names']]}} for g in file['optimizer']['param_groups']], params = dict(model.named_parameters())",
            groups.len(),
            decays.join(", ")
        ));
    }
    let (mut state, mut dicts) = (Vec::new(), Vec::new());
    let mut numbers = 0i64..;
    for group in &groups {
        let (mut ids, mut names) = (Vec::new(), Vec::new());
        for (&member, id) in group.members.iter().zip(&mut numbers) {
            let slots = slots(of, member)?;
            if !slots.is_empty() {
                state.push((Value::Int(id), Value::dict(slots)));
            }
            ids.push(Value::Int(id));
            names.push(Value::Str(of.params[member].0.clone()));
        }
        dicts.push(Value::dict(arguments(of, group, ids, names)));
    }
    let groups = Value::List(dicts);
    Ok((Value::dict([("state", Value::Dict(state)), ("param_groups", groups)]), notes))
}

fn param_groups(of: &Resumable, notes: &mut Vec<String>) -> Result<Vec<PythonGroup>> {
    ensure!(of.groups.len() == of.rates.len(), "{} groups, {} rates", of.groups.len(), of.rates.len());
    let decouples = matches!(of.spec, OptimizerSpec::Adam(_) | OptimizerSpec::AdamW(_));
    let class = of.spec.python_class();
    let mut merged: Vec<PythonGroup> = Vec::new();
    for (group, rates) in of.groups.iter().zip(of.rates) {
        if rates.l1 > 0.0 {
            notes.push(format!(
                "penalty group {}: torch.optim has no l1, so Python's steps go without its {}",
                group.label, rates.l1
            ));
        }
        if rates.decoupled > 0.0 && !decouples {
            notes.push(format!(
                "penalty group {}: torch.optim.{class} has no decoupled decay, so Python's steps go without its {}",
                group.label, rates.decoupled
            ));
        }
        match rates.decoupled_mode {
            DecoupledMode::Cautious if rates.decoupled > 0.0 && decouples => notes.push(format!(
                "penalty group {}: torch.optim has no cautious decay, so Python's steps decay every weight",
                group.label
            )),
            DecoupledMode::Relative if rates.decoupled > 0.0 && decouples => notes.push(format!(
                "penalty group {}: its weight_decay is the relative decay {} divided by the peak rate",
                group.label, rates.decoupled
            )),
            _ => {}
        }
        // Without any decay both forms are the same, so that AdamW's groups are all decoupled.
        let adamw = matches!(of.spec, OptimizerSpec::AdamW(_));
        let (weight_decay, decoupled) = match rates {
            LambdaValues { decoupled, .. } if *decoupled > 0.0 => {
                let is_relative = rates.decoupled_mode == DecoupledMode::Relative && of.peak > 0.0;
                let decay = if is_relative { decoupled / of.peak } else { *decoupled };
                (if decouples { decay } else { 0.0 }, decouples)
            }
            LambdaValues { l2, .. } => (*l2, adamw),
        };
        if decoupled && !adamw {
            notes.push(format!(
                "penalty group {}: decoupled decay with Adam is torch.optim.AdamW in Python",
                group.label
            ));
        }
        let twin = merged.iter_mut().find(|own| {
            own.weight_decay == weight_decay && (own.decoupled == decoupled || weight_decay == 0.0)
        });
        match twin {
            Some(own) => own.members.extend(&group.param_indices),
            None => {
                merged.push(PythonGroup { members: group.param_indices.clone(), weight_decay, decoupled })
            }
        }
    }
    for group in &mut merged {
        group.members.sort_unstable();
    }
    Ok(merged)
}

/// The state of one parameter; empty where Python makes it at the first step.
fn slots<'a>(of: &Resumable<'a>, member: usize) -> Result<Vec<(&'static str, Value)>> {
    let (name, param) = &of.params[member];
    let mut slots = Vec::new();
    for slot in of.spec.state_names() {
        let saved = of.state.get(&format!("{name}.{slot}"));
        let tensor = match saved {
            Some(tensor) => Some(tensor.shallow_clone()),
            // torch.optim.Adagrad has its state from the start on and misses it otherwise.
            None if Family::of(of.spec) == Family::Adagrad => of.spec.initial_state(slot, param)?,
            None => None,
        };
        match tensor {
            Some(tensor) => slots.push((slot, Value::Tensor(tensor))),
            None if slots.is_empty() => {}
            None => return None.with_context(|| format!("the optimizer's state lacks {name}.{slot}")),
        }
    }
    Ok(slots)
}

/// All that a param group of PyTorch 2.11 holds, in its order.
fn arguments(
    of: &Resumable,
    group: &PythonGroup,
    ids: Vec<Value>,
    names: Vec<Value>,
) -> Vec<(&'static str, Value)> {
    let mut items = vec![("param_names", Value::List(names)), ("lr", Value::Float(of.lr))];
    for (key, argument) in of.spec.arguments() {
        items.push((
            key,
            match argument {
                Argument::Number(number) => Value::Float(number),
                Argument::Flag(flag) => Value::Bool(flag),
                Argument::Pair(a, b) => Value::Tuple(vec![Value::Float(a), Value::Float(b)]),
            },
        ));
    }
    items.push(("weight_decay", Value::Float(group.weight_decay)));
    let family = Family::of(of.spec);
    for key in ["maximize", "differentiable"] {
        items.push((key, Value::Bool(false)));
    }
    if matches!(family, Family::Adam | Family::RmsProp) {
        items.push(("capturable", Value::Bool(false)));
    }
    items.push(("foreach", Value::None));
    if family != Family::RmsProp {
        items.push(("fused", Value::None));
    }
    if family == Family::Adam {
        items.push(("decoupled_weight_decay", Value::Bool(group.decoupled)));
    }
    // What a scheduler that is made afterwards starts from.
    if of.lr != of.spec.lr() {
        items.push(("initial_lr", Value::Float(of.spec.lr())));
    }
    items.push(("params", Value::List(ids)));
    items
}
