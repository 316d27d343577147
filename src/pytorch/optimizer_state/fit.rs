//! Which parameter's state each number in a Python file is, and where the file's optimiser differs from the
//! config's.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Result, bail};
use tch::{Kind, Tensor};

use super::read::{Entry, PythonOptimizer};
use super::shown;
use crate::optim::{Argument, OptimizerSpec};
use crate::penalty::LambdaValues;
use crate::pytorch::name_matching::{KeyMatch, Named, match_keys};
use crate::pytorch::weights;
use crate::util::exit_code::{ExitCode, WithExitCode};

/// Names in one line of a message.
const NAMED: usize = 4;

/// A parameter that the file's optimiser may know.
#[derive(Clone, Debug)]
pub struct Known<'a> {
    pub name: &'a str,
    pub shape: &'a [i64],
    /// Its penalty at the first step. None where this run does not train it: its state is left out.
    pub lambdas: Option<LambdaValues>,
    /// The factor on the scheduled learning rate.
    pub lr: f64,
}

/// State that an [`Optimizer`](crate::optim::Optimizer) takes, and what the user should know of it.
#[derive(Debug)]
pub struct Fitted {
    /// `<parameter>.<PyTorch's name>`, on the CPU.
    pub state: BTreeMap<String, Tensor>,
    pub notes: Vec<String>,
}

impl PythonOptimizer {
    /// The state for `params`, which are in Python's order of definition: that of `model.parameters()`.
    /// Their numbers or names and shapes must fit; values in which the file's optimiser differs from `spec`
    /// are notes. Errors exit with 4 and list everything that does not fit.
    pub fn fit(&self, params: &[Known], spec: &OptimizerSpec) -> Result<Fitted> {
        self.fitted(params, spec).with_exit_code(ExitCode::Checkpoint, || match self.key.as_str() {
            "" => "the optimizer's state does not fit".to_owned(),
            key => format!("the optimizer's state under `{key}` does not fit"),
        })
    }

    fn fitted(&self, params: &[Known], spec: &OptimizerSpec) -> Result<Fitted> {
        let class = spec.torch_class();
        if self.class.family != class.family {
            bail!(
                "it is of {}, and the config's optimizer is {}",
                self.class.family,
                class.name.to_lowercase()
            );
        }
        let mut notes = Vec::new();
        let order = self.order(params, &mut notes)?;
        self.compare_arguments(spec, &mut notes);
        self.compare_rates(params, &order, spec, &mut notes);
        self.compare_decay(params, &order, &mut notes);
        let state = self.state(params, &order, spec, &mut notes)?;
        Ok(Fitted { state, notes })
    }

    /// For each of the file's parameters its index in `params`.
    fn order(&self, params: &[Known], notes: &mut Vec<String>) -> Result<Vec<Option<usize>>> {
        let shapes: Vec<Option<&[i64]>> = self.states.iter().map(|entries| shape(entries)).collect();
        let names: Option<Vec<&str>> = (self.groups.iter())
            .map(|group| group.names.as_ref())
            .collect::<Option<Vec<_>>>()
            .map(|names| names.into_iter().flatten().map(String::as_str).collect());
        if let Some(names) = names {
            return by_name(params, &names, &shapes);
        }
        let trained: Vec<usize> = (0..params.len()).filter(|&i| params[i].lambdas.is_some()).collect();
        let all: Vec<usize> = (0..params.len()).collect();
        let count = self.states.len();
        let listed = match () {
            () if count == all.len() => all,
            () if count == trained.len() => trained,
            () => {
                let frozen = params.len() - trained.len();
                let ours =
                    if frozen == 0 { String::new() } else { format!(", {frozen} of them not trained") };
                bail!(
                    "its {} param groups hold {count} parameters, the network has {}{ours}",
                    self.groups.len(),
                    params.len()
                )
            }
        };
        let fits = |order: &[usize]| {
            order.iter().zip(&shapes).all(|(&i, shape)| shape.is_none_or(|shape| shape == params[i].shape))
        };
        if self.groups.len() == 1 && fits(&listed) {
            return Ok(listed.into_iter().map(Some).collect());
        }
        let mut fitting: Vec<Vec<usize>> = Vec::new();
        for order in self.candidates(params, &listed) {
            if fits(&order) && !fitting.contains(&order) {
                fitting.push(order);
            }
        }
        if fitting.len() > 1 {
            // Where the shapes do not decide, the weight decay of the groups may.
            let strangers = |order: &Vec<usize>| {
                let decays = self.groups.iter().flat_map(|group| {
                    std::iter::repeat_n(group.arguments.get("weight_decay").copied(), group.len)
                });
                let ours = order.iter().map(|&i| {
                    params[i].lambdas.map(|lambdas| {
                        Argument::Number(lambdas.weight_decay().map_or(0.0, |(_, lambda)| lambda))
                    })
                });
                decays.zip(ours).filter(|(theirs, ours)| ours.is_some() && theirs != ours).count()
            };
            let least = fitting.iter().map(strangers).min();
            fitting.retain(|order| Some(strangers(order)) == least);
        }
        const REMEDY: &str = "with PyTorch 2.6 or newer give the optimizer `model.named_parameters()`, so that it saves the names";
        match fitting.len() {
            1 => {
                let order = fitting.remove(0);
                if order != listed {
                    let sizes: Vec<_> = self.groups.iter().map(|group| group.len.to_string()).collect();
                    let first: Vec<_> = (order.iter().take(NAMED)).map(|&i| params[i].name).collect();
                    notes.push(format!(
                        "the file's param groups (of {} parameters) are taken to begin with {}",
                        sizes.join(" and "),
                        first.join(", ")
                    ));
                }
                Ok(order.into_iter().map(Some).collect())
            }
            0 => {
                let pairs = listed.iter().zip(&shapes).enumerate();
                let wrong: Vec<_> = pairs
                    .filter_map(|(id, (&i, shape))| {
                        let shape = shape.filter(|shape| *shape != params[i].shape)?;
                        let (name, wanted) = (params[i].name, params[i].shape);
                        Some(format!("  parameter {id} has shape {shape:?} there; {name} is {wanted:?}"))
                    })
                    .collect();
                bail!("the shapes of its parameters are others:\n{}\n{REMEDY}", listing(&wrong))
            }
            _ => bail!("its param groups fit the parameters in {} orders; {REMEDY}", fitting.len()),
        }
    }

    /// Orders in which `listed` may have been given to several param groups: as defined; by penalty; matrices
    /// apart from vectors. Within a group the order of definition holds.
    fn candidates(&self, params: &[Known], listed: &[usize]) -> Vec<Vec<usize>> {
        let mut orders = vec![listed.to_vec()];
        let mut partition = |mut parts: Vec<Vec<usize>>| {
            parts.retain(|part| !part.is_empty());
            for _ in 0..2 {
                let sizes = parts.iter().map(Vec::len);
                if sizes.eq(self.groups.iter().map(|group| group.len)) {
                    orders.push(parts.concat());
                }
                parts.reverse();
            }
        };
        let (matrices, vectors) = listed.iter().partition(|&&i| params[i].shape.len() > 1);
        partition(vec![matrices, vectors]);
        type Rates = (Option<LambdaValues>, f64);
        let mut by_rates: Vec<(Rates, Vec<usize>)> = Vec::new();
        for &i in listed {
            let rates = (params[i].lambdas, params[i].lr);
            match by_rates.iter_mut().find(|(known, _)| *known == rates) {
                Some((_, part)) => part.push(i),
                None => by_rates.push((rates, vec![i])),
            }
        }
        partition(by_rates.into_iter().map(|(_, part)| part).collect());
        orders
    }

    fn compare_arguments(&self, spec: &OptimizerSpec, notes: &mut Vec<String>) {
        for (index, group) in self.groups.iter().enumerate() {
            let place = if self.groups.len() > 1 { format!(" (param group {index})") } else { String::new() };
            let mut differs = |key: &str, theirs: Argument, ours: Argument| {
                if theirs != ours {
                    let (theirs, ours) = (shown(theirs), shown(ours));
                    notes.push(format!("optimizer: {key} was {theirs} in the file{place}, is {ours} here"));
                }
            };
            let get = |key: &str| group.arguments.get(key).copied();
            for (key, ours) in spec.arguments() {
                if let Some(theirs) = get(key) {
                    differs(key, theirs, ours);
                }
            }
            if let Some(maximize) = get("maximize") {
                differs("maximize", maximize, Argument::Flag(false));
            }
        }
    }

    /// The rates, each parameter's with its group's factor.
    fn compare_rates(
        &self,
        params: &[Known],
        order: &[Option<usize>],
        spec: &OptimizerSpec,
        notes: &mut Vec<String>,
    ) {
        let mut ids = order.iter();
        for (index, group) in self.groups.iter().enumerate() {
            let place = if self.groups.len() > 1 { format!(" (param group {index})") } else { String::new() };
            let own = ids.by_ref().take(group.len).filter_map(|index| index.map(|i| &params[i]));
            let mut factors: Vec<f64> = Vec::new();
            for param in own.filter(|param| param.lambdas.is_some()) {
                if !factors.contains(&param.lr) {
                    factors.push(param.lr);
                }
            }
            if factors.is_empty() {
                factors.push(1.0);
            }
            let rate = ["initial_lr", "lr"].iter().find_map(|key| group.arguments.get(*key).copied());
            let Some(theirs) = rate else { continue };
            for ours in factors.into_iter().map(|factor| Argument::Number(spec.lr() * factor)) {
                if theirs != ours {
                    let (theirs, ours) = (shown(theirs), shown(ours));
                    notes.push(format!("optimizer: lr was {theirs} in the file{place}, is {ours} here"));
                }
            }
        }
    }

    /// Weight decay has two forms here; the file says which it meant since PyTorch 2.7.
    fn compare_decay(&self, params: &[Known], order: &[Option<usize>], notes: &mut Vec<String>) {
        let mut differing: Vec<(String, Vec<&str>)> = Vec::new();
        let mut ids = order.iter();
        for group in &self.groups {
            let Some(&Argument::Number(theirs)) = group.arguments.get("weight_decay") else { continue };
            let form = match group.arguments.get("decoupled_weight_decay") {
                Some(Argument::Flag(true)) => Some("decoupled"),
                Some(_) => Some("l2"),
                None if self.class.decoupled_weight_decay => None,
                None => Some("l2"),
            };
            for &index in ids.by_ref().take(group.len) {
                let Some(param) = index.map(|i| &params[i]) else { continue };
                let Some(lambdas) = param.lambdas else { continue };
                let (ours, own_form) =
                    lambdas.weight_decay().map_or((0.0, "l2"), |(form, lambda)| (lambda, form.key()));
                if theirs == ours && (ours == 0.0 || form.is_none_or(|form| form == own_form)) {
                    continue;
                }
                let text = format!(
                    "weight decay was {theirs} ({}) in the file, is {ours} ({own_form}) here",
                    form.unwrap_or("of a form that it does not say")
                );
                match differing.iter_mut().find(|(known, _)| *known == text) {
                    Some((_, names)) => names.push(param.name),
                    None => differing.push((text, vec![param.name])),
                }
            }
        }
        for (text, names) in differing {
            notes.push(format!("optimizer: {text}, for {}", counted(&names)));
        }
    }

    fn state(
        &self,
        params: &[Known],
        order: &[Option<usize>],
        spec: &OptimizerSpec,
        notes: &mut Vec<String>,
    ) -> Result<BTreeMap<String, Tensor>> {
        let tensors = spec.state_spec();
        let slots: Vec<&str> = tensors.iter().map(|tensor| tensor.name).collect();
        let mut state = BTreeMap::new();
        let (mut wanted, mut fresh, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
        let mut absent: BTreeMap<&str, Vec<&Known>> = BTreeMap::new();
        let mut unused: BTreeMap<&str, ()> = BTreeMap::new();
        for (entries, index) in self.states.iter().zip(order) {
            let Some(param) = index.map(|i| &params[i]).filter(|param| param.lambdas.is_some()) else {
                continue;
            };
            unused.extend(
                entries.iter().map(|(key, _)| (key.as_str(), ())).filter(|(key, ())| !slots.contains(key)),
            );
            if !entries.iter().any(|(key, _)| slots.contains(&key.as_str())) {
                fresh.push(param.name);
                continue;
            }
            for tensor in &tensors {
                let slot = tensor.name;
                let name = format!("{}.{slot}", param.name);
                match entries.iter().find(|(key, _)| key == slot).map(|(_, entry)| entry) {
                    Some(Entry::Tensor(info)) => {
                        let fits = if tensor.scalar { info.numel() == 1 } else { info.shape == param.shape };
                        if !fits {
                            wrong.push(format!(
                                "  {name} has shape {:?} there; {} is {:?}",
                                info.shape, param.name, param.shape
                            ));
                        }
                        wanted.push((name, info.clone()));
                    }
                    Some(Entry::Number(number)) if tensor.scalar => {
                        state.insert(name, Tensor::from(*number as f32));
                    }
                    Some(Entry::Number(_)) => wrong.push(format!("  {name} is a number, not a tensor")),
                    None => absent.entry(slot).or_default().push(param),
                }
            }
        }
        // amsgrad, momentum or centered switched on: what it remembers starts as at a run's start.
        let moving = self.states.iter().zip(order).filter(|(entries, index)| {
            index.is_some_and(|i| params[i].lambdas.is_some())
                && entries.iter().any(|(key, _)| slots.contains(&key.as_str()))
        });
        let moving = moving.count();
        for (slot, lacking) in absent {
            let optional = tensors.iter().any(|tensor| tensor.name == slot && tensor.optional);
            if !optional || lacking.len() < moving {
                wrong.extend(lacking.iter().map(|param| format!("  {}.{slot} is missing", param.name)));
                continue;
            }
            for param in &lacking {
                let start = Tensor::f_zeros(param.shape, (Kind::Float, tch::Device::Cpu))?;
                state.insert(format!("{}.{slot}", param.name), start);
            }
            notes.push(format!("optimizer: the file has no {slot}; it starts from zero"));
        }
        if !wrong.is_empty() {
            bail!("{} mistakes:\n{}", wrong.len(), listing(&wrong));
        }
        unused.remove("step");
        if !unused.is_empty() {
            let names: Vec<_> = unused.into_keys().collect();
            notes.push(format!(
                "optimizer: the file's {} is left out, for it is switched off here",
                names.join(", ")
            ));
        }
        if !fresh.is_empty() && !slots.is_empty() {
            notes.push(format!("optimizer: the file has no state for {}", counted(&fresh)));
        }
        for (name, tensor) in weights::tensors(&self.file, &wanted)? {
            let is_scalar = tensors.iter().any(|own| own.scalar && name.ends_with(&format!(".{}", own.name)));
            let tensor = if is_scalar { tensor.f_reshape([0i64; 0])? } else { tensor };
            state.insert(name, tensor);
        }
        Ok(state)
    }
}

/// The parameter's shape, as its state tells it.
fn shape(entries: &[(String, Entry)]) -> Option<&[i64]> {
    entries.iter().find_map(|(key, entry)| match entry {
        Entry::Tensor(info) if key != "step" => Some(info.shape.as_slice()),
        _ => None,
    })
}

/// By the names that the file has for its parameters; only those with state matter.
fn by_name(params: &[Known], names: &[&str], shapes: &[Option<&[i64]>]) -> Result<Vec<Option<usize>>> {
    let own: HashMap<&str, &[i64]> = params.iter().map(|param| (param.name, param.shape)).collect();
    let wanted: Vec<Named> = params.iter().map(|param| (param.name, param.shape)).collect();
    // Without state there is no shape to compare.
    let found: Vec<Named> = (names.iter().zip(shapes))
        .map(|(&name, shape)| (name, shape.or_else(|| own.get(name).copied()).unwrap_or_default()))
        .collect();
    let fit = match_keys(&wanted, &found);
    let has_state = |name: &str| names.iter().zip(shapes).any(|(n, shape)| *n == name && shape.is_some());
    let unexpected = fit.unexpected.iter().filter(|(name, _)| has_state(name)).cloned().collect();
    let stripped = fit.stripped.as_deref().unwrap_or("");
    let mismatched = (fit.mismatched.iter())
        .filter(|(name, ..)| has_state(name) || has_state(&format!("{stripped}{name}")))
        .cloned()
        .collect();
    let wrong = KeyMatch { unexpected, mismatched, ..KeyMatch::default() };
    if !wrong.is_complete() {
        bail!("{wrong}");
    }
    let mut order = vec![None; names.len()];
    for (param, id) in fit.mapping {
        order[id] = Some(param);
    }
    Ok(order)
}

/// `12 parameters (conv1.weight, …)`.
fn counted(names: &[&str]) -> String {
    let more = if names.len() > NAMED { ", …" } else { "" };
    let first = names[..names.len().min(NAMED)].join(", ");
    format!("{} parameters ({first}{more})", names.len())
}

/// At most 20 lines.
fn listing(lines: &[String]) -> String {
    const LINES: usize = 20;
    let mut text = lines[..lines.len().min(LINES)].join("\n");
    if lines.len() > LINES {
        text += &format!("\n  … and {} more", lines.len() - LINES);
    }
    text
}
