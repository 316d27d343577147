//! What a file says of its optimiser: param groups and the state of each parameter, nothing loaded yet.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::optim::{Argument, OptimizerSpec, TorchClass};
use crate::pytorch::reader::PythonFile;
use crate::pytorch::reader::heap::{TensorInfo, Value};
use crate::pytorch::weights;
use crate::util::exit_code::{ExitCode, WithExitCode};
use crate::util::rename::Rule;

/// An optimiser's state in a Python file.
pub struct PythonOptimizer {
    pub(super) file: PythonFile,
    /// Where in the file: a dotted path, empty for the root.
    pub key: String,
    pub(super) groups: Vec<ParamGroup>,
    /// The state of each parameter, in the order of the param groups; empty before the first step.
    pub(super) states: Vec<Vec<(String, Entry)>>,
    pub(super) class: TorchClass,
}

/// One of Python's param groups.
pub(super) struct ParamGroup {
    pub len: usize,
    /// Their names, which PyTorch 2.6 and newer save when it was given `named_parameters()`.
    pub names: Option<Vec<String>>,
    pub arguments: BTreeMap<String, Argument>,
}

/// One value of a parameter's state.
pub(super) enum Entry {
    Tensor(TensorInfo),
    /// PyTorch before 1.12 counts steps in an int.
    Number(f64),
}

impl PythonOptimizer {
    /// Looks into the file at `path`. `key` is the dotted path of `optimizer.state_dict()`; without it the
    /// only one in the file is taken. Errors exit with 4.
    pub fn open(path: &Path, key: Option<&str>) -> Result<PythonOptimizer> {
        let file = weights::open_python(path)?;
        of_file(file, key)
            .with_exit_code(ExitCode::Checkpoint, || format!("{}: the optimizer's state", path.display()))
    }

    /// Renames the parameters that the file has names for; rules that fit none of them are for other tensors.
    pub fn rename(&mut self, rules: &[Rule]) {
        for names in self.groups.iter_mut().filter_map(|group| group.names.as_mut()) {
            for rule in rules {
                let _ = rule.apply(names);
            }
        }
    }
}

fn of_file(file: PythonFile, key: Option<&str>) -> Result<PythonOptimizer> {
    let (key, value) = match key {
        Some(key) => (key.to_owned(), file.lookup(key)?),
        None => find(&file)?,
    };
    if !is_state(&file, value) {
        bail!("`{key}` has no `state` and `param_groups`; it is {}", file.summary(value));
    }
    let (groups, ids) = param_groups(&file, value)?;
    let class = class(&groups)?;
    let states = states(&file, value, &ids)?;
    Ok(PythonOptimizer { file, key, groups, states, class })
}

fn is_state(file: &PythonFile, value: Value) -> bool {
    file.heap.get(value, "state").is_some() && file.heap.get(value, "param_groups").is_some()
}

/// The only mapping with `state` and `param_groups`, near the root.
fn find(file: &PythonFile) -> Result<(String, Value)> {
    const DEPTH: usize = 4;
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut queue = VecDeque::from([(String::new(), file.root, 0)]);
    while let Some((path, value, depth)) = queue.pop_front() {
        let Value::Ref(index) = value else { continue };
        file.budget.charge(48)?;
        if !seen.insert(index) {
            continue;
        }
        if is_state(file, value) {
            found.push((path, value));
            continue;
        }
        if depth == DEPTH {
            continue;
        }
        let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        let mut visit = |key: &str, child: Value| -> Result<()> {
            if matches!(child, Value::Ref(_)) && key.len() < 256 {
                file.budget.charge(3 * (64 + path.len() + key.len()) as u64)?;
                queue.push_back((join(key), child, depth + 1));
            }
            Ok(())
        };
        for &(key, child) in file.heap.items(value).unwrap_or_default() {
            if let Some(key) = file.heap.str(key) {
                visit(key, child)?;
            }
        }
        for (index, &child) in file.heap.sequence(value).unwrap_or_default().iter().take(16).enumerate() {
            visit(&index.to_string(), child)?;
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => bail!(
            "nothing in the file has `state` and `param_groups`; save {{'model': model.state_dict(), 'optimizer': \
             optimizer.state_dict()}}"
        ),
        _ => {
            let keys: Vec<_> = found.iter().map(|(key, _)| format!("`{key}`")).collect();
            bail!("the file holds several: {}; name one: `optimizer: KEY`", keys.join(", "))
        }
    }
}

/// A parameter's number, or its name where a distributed optimiser was saved by names.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Id {
    Number(i64),
    Name(String),
}

fn id(file: &PythonFile, value: Value) -> Option<Id> {
    match value {
        Value::Int(number) => Some(Id::Number(number)),
        _ => file.heap.str(value).map(|name| Id::Name(name.to_owned())),
    }
}

fn param_groups(file: &PythonFile, value: Value) -> Result<(Vec<ParamGroup>, Vec<Id>)> {
    let heap = &file.heap;
    let list = heap.get(value, "param_groups").and_then(|list| heap.sequence(list));
    let list = list.context("`param_groups` is no list")?;
    let (mut groups, mut ids) = (Vec::new(), Vec::new());
    for (index, &group) in list.iter().enumerate() {
        let context = || format!("param_groups[{index}]");
        let params = heap.get(group, "params").and_then(|list| heap.sequence(list));
        let params = params.with_context(|| format!("{} has no list `params`", context()))?;
        file.budget.charge(64 * params.len() as u64)?;
        let own: Option<Vec<Id>> = params.iter().map(|&value| id(file, value)).collect();
        let own = own.with_context(|| format!("{}: a parameter that is no number", context()))?;
        let given = heap.get(group, "param_names").and_then(|list| heap.sequence(list));
        let given: Option<Vec<String>> =
            given.and_then(|names| names.iter().map(|&name| heap.str(name).map(str::to_owned)).collect());
        let as_ids = || {
            let name = |id: &Id| if let Id::Name(name) = id { Some(name.clone()) } else { None };
            own.iter().map(name).collect::<Option<Vec<_>>>()
        };
        let names = given.filter(|names| names.len() == own.len()).or_else(as_ids);
        let mut arguments = BTreeMap::new();
        for &(key, value) in heap.items(group).unwrap_or_default() {
            if let (Some(key), Some(argument)) = (heap.str(key), argument(file, value)) {
                arguments.insert(key.to_owned(), argument);
            }
        }
        groups.push(ParamGroup { len: own.len(), names, arguments });
        ids.extend(own);
    }
    let mut seen = HashSet::new();
    if !ids.iter().all(|id| seen.insert(id)) {
        bail!("`param_groups` lists a parameter twice");
    }
    Ok((groups, ids))
}

fn argument(file: &PythonFile, value: Value) -> Option<Argument> {
    let number = |value: Value| match value {
        Value::Int(number) => Some(number as f64),
        Value::Float(number) => Some(number),
        // A learning rate may be a tensor, for CUDA graphs.
        _ => {
            let info = file.heap.tensor(value).filter(|info| info.numel() == 1)?;
            let loaded = weights::tensors(file, &[("lr".into(), info.clone())]).ok()?;
            loaded.first()?.1.f_double_value(&[]).ok()
        }
    };
    match value {
        Value::Bool(flag) => Some(Argument::Flag(flag)),
        _ => match file.heap.sequence(value) {
            Some(&[a, b]) => Some(Argument::Pair(number(a)?, number(b)?)),
            _ => number(value).map(Argument::Number),
        },
    }
}

/// The class whose arguments the param groups have.
fn class(groups: &[ParamGroup]) -> Result<TorchClass> {
    let first = groups.first().context("`param_groups` is empty")?;
    let has = |key: &&str| first.arguments.contains_key(*key);
    let classes: Vec<_> =
        OptimizerSpec::torch_classes().into_iter().filter(|class| class.is_in_torch).collect();
    if let Some(class) = classes.iter().find(|class| class.marks.iter().all(has)) {
        return Ok(*class);
    }
    let given: Vec<_> = first.arguments.keys().map(String::as_str).collect();
    let known: Vec<_> = classes.iter().map(|class| class.name).collect();
    let (last, others) = known.split_last().context("no optimizer is known")?;
    bail!(
        "an optimizer with {}: only the state of {} and {last} can be taken over",
        given.join(", "),
        others.join(", ")
    )
}

/// The state of each of `ids`.
fn states(file: &PythonFile, value: Value, ids: &[Id]) -> Result<Vec<Vec<(String, Entry)>>> {
    let heap = &file.heap;
    let state = heap.get(value, "state").context("no `state`")?;
    let items = heap.items(state).unwrap_or_default();
    file.budget.charge(96 * items.len() as u64)?;
    // Of a key that occurs twice the last value counts.
    let by_id: std::collections::HashMap<Id, Value> =
        items.iter().filter_map(|&(key, value)| Some((id(file, key)?, value))).collect();
    let mut states = Vec::new();
    for id in ids {
        let mut entries: BTreeMap<&str, Option<Entry>> = BTreeMap::new();
        let slots = by_id.get(id).and_then(|&value| heap.items(value)).unwrap_or_default();
        file.budget.charge(256 * slots.len() as u64)?;
        for &(key, value) in slots {
            let Some(key) = heap.str(key) else { continue };
            let entry = match value {
                Value::Int(number) => Some(Entry::Number(number as f64)),
                Value::Float(number) => Some(Entry::Number(number)),
                _ => heap.tensor(value).map(|info| Entry::Tensor(info.clone())),
            };
            entries.insert(key, entry);
        }
        let present = entries.into_iter().filter_map(|(key, entry)| Some((key.to_owned(), entry?)));
        states.push(present.collect());
    }
    Ok(states)
}
