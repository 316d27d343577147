//! What `optimizer.load_state_dict` of Python takes, from an optimiser's named state.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use tch::Tensor;

use crate::optim::{Argument, OptimizerSpec};
use crate::penalty::{LambdaValues, ParamGroup, StepRates, TorchDecay};
use crate::pytorch::writer::Value;

/// An optimiser between two steps.
pub struct Resumable<'a> {
    pub spec: &'a OptimizerSpec,
    /// The learning rate of the next step, which each group has a factor of.
    pub lr: f64,
    /// The highest rate of the run, of which relative decay is a share.
    pub peak: f64,
    /// What it trains, in definition order.
    pub params: &'a [(String, Tensor)],
    /// The penalty groups, a partition of `params`, and what each has for the next step.
    pub groups: &'a [ParamGroup],
    pub lambdas: &'a [LambdaValues],
    /// As [`Optimizer::state`](crate::optim::Optimizer::state) names it.
    pub state: &'a BTreeMap<String, Tensor>,
}

/// Parameters with one weight decay and one learning rate.
struct PythonGroup {
    members: Vec<usize>,
    weight_decay: f64,
    decoupled: bool,
    /// A factor on the scheduled rate.
    lr: f64,
}

/// The value of `optimizer.state_dict()`, and what of the penalty it cannot say. Penalty groups of the same
/// weight decay and rate are one param group; with only one, `torch.optim.Adam(model.parameters())` loads it. Each
/// group also holds `param_names`.
pub fn state_dict(of: &Resumable) -> Result<(Value, Vec<String>)> {
    let mut notes = Vec::new();
    let groups = param_groups(of, &mut notes)?;
    if groups.len() > 1 {
        let has_rates = groups.iter().any(|group| group.lr != 1.0);
        let decays: Vec<_> = (groups.iter())
            .map(|group| {
                let rate = if has_rates { format!(", lr {}", of.lr * group.lr) } else { String::new() };
                format!("{} parameters of weight_decay {}{rate}", group.members.len(), group.weight_decay)
            })
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
    ensure!(of.groups.len() == of.lambdas.len(), "{} groups, {} λs", of.groups.len(), of.lambdas.len());
    let class = of.spec.torch_class().name;
    // Without any decay both kinds are the same, so that AdamW's groups are all decoupled.
    let is_adamw = of.spec.refuses(TorchDecay::L2);
    let mut merged: Vec<PythonGroup> = Vec::new();
    for (group, lambdas) in of.groups.iter().zip(of.lambdas) {
        let lr = group.lr;
        let rates = StepRates { lr: of.lr * lr, peak: of.peak * lr, steady_state: None };
        let mut note = |text: String| notes.push(format!("penalty group {}: {text}", group.label));
        let (mut weight_decay, mut decoupled) = (0.0, is_adamw);
        for (_, form, lambda) in lambdas.active() {
            let lost = |what: &str| format!("{what}, so Python's steps go without its {lambda}");
            match form.torch() {
                None => note(lost(&format!("torch.optim has no {}", form.key()))),
                Some(kind) if !of.spec.fuses(kind) => {
                    note(lost(&format!("torch.optim.{class} has no {} decay", form.key())));
                }
                Some(kind) => {
                    form.torch_difference(lambda).into_iter().for_each(&mut note);
                    weight_decay = form.weight_decay(lambda, &rates);
                    decoupled = kind == TorchDecay::Decoupled;
                }
            }
        }
        if let (true, Some(twin)) = (decoupled, of.spec.torch_class().decoupled_class) {
            note(format!("decoupled decay with {class} is torch.optim.{twin} in Python"));
        }
        let twin = merged.iter_mut().find(|own| {
            own.lr == lr
                && own.weight_decay == weight_decay
                && (own.decoupled == decoupled || weight_decay == 0.0)
        });
        match twin {
            Some(own) => own.members.extend(&group.param_indices),
            None => {
                let members = group.param_indices.clone();
                merged.push(PythonGroup { members, weight_decay, decoupled, lr });
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
            None if of.spec.torch_class().state_from_start => of.spec.initial_state(slot, param)?,
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
    let mut items = vec![("param_names", Value::List(names)), ("lr", Value::Float(of.lr * group.lr))];
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
    let class = of.spec.torch_class();
    for key in ["maximize", "differentiable"] {
        items.push((key, Value::Bool(false)));
    }
    if class.capturable {
        items.push(("capturable", Value::Bool(false)));
    }
    items.push(("foreach", Value::None));
    if class.fused {
        items.push(("fused", Value::None));
    }
    if class.decoupled_weight_decay {
        items.push(("decoupled_weight_decay", Value::Bool(group.decoupled)));
    }
    // What a scheduler that is made afterwards starts from.
    if of.lr != of.spec.lr() {
        items.push(("initial_lr", Value::Float(of.spec.lr() * group.lr)));
    }
    items.push(("params", Value::List(ids)));
    items
}
