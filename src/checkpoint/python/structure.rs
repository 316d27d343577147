//! Finds the weights in an object tree: a bare state_dict, one nested under some key, a pickled module, a scripted one.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, bail};

use super::PythonFile;
use super::dtype::Dtype;
use super::heap::{Object, TensorInfo, Value};

/// Between mappings of equally many tensors, the first of these names wins; after them the first one in the file.
pub const PREFERRED: &[&str] = &[
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "params_ema",
    "ema",
    "ema_state_dict",
    "model_ema",
    "params",
    "weights",
    "generator",
];

/// Attributes nested deeper than this are no module.
const MAX_DEPTH: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    StateDict,
    /// A module that was pickled whole.
    Module,
    /// A module that TorchScript saved.
    Script,
    /// A list or tuple of tensors, or one tensor.
    Loose,
}

/// The weights that were chosen.
#[derive(Debug)]
pub struct Found {
    pub kind: Kind,
    /// Dotted path from the file's root; empty for the root itself.
    pub path: String,
    pub value: Value,
    /// In the order of PyTorch's `state_dict()`; each tensor once per name.
    pub tensors: Vec<(String, TensorInfo)>,
    /// Tensors of kinds that cannot be read: quantized, sparse and the like.
    pub strangers: Vec<Stranger>,
    /// The other candidates: path and number of tensors.
    pub others: Vec<(String, usize)>,
}

/// A tensor that is no view of one storage.
#[derive(Clone, Debug)]
pub struct Stranger {
    pub name: String,
    /// Empty where the file does not say it.
    pub shape: Vec<i64>,
    pub dtype: Option<Dtype>,
    /// Such as `sparse tensor`.
    pub what: &'static str,
}

/// What a state_dict's key may stand for.
enum Item<'a> {
    Tensor(&'a TensorInfo),
    /// The record of another kind of tensor.
    Stranger(Value, &'static str),
}

type Take<'t> = &'t mut dyn FnMut(String, Item) -> Result<()>;

impl Found {
    /// For people: `state_dict under "net"`.
    pub fn describe(&self) -> String {
        let kind = match self.kind {
            Kind::StateDict => "state_dict",
            Kind::Module => "pickled module",
            Kind::Script => "scripted module",
            Kind::Loose => "tensors without names",
        };
        if self.path.is_empty() { format!("bare {kind}") } else { format!("{kind} under `{}`", self.path) }
    }
}

impl PythonFile {
    /// The weights under `key` (a dotted path), or the candidate with the most tensors.
    pub fn find(&self, key: Option<&str>) -> Result<Found> {
        if let Some(key) = key {
            let value = self.lookup(key)?;
            let kind = self.kind_of(value);
            let kind = kind.with_context(|| format!("`{key}` holds no tensors ({})", self.summary(value)))?;
            return self.found(kind, key.to_owned(), value, Vec::new());
        }
        let mut candidates = self.candidates()?;
        let rank = |path: &str| {
            let last = path.rsplit('.').next().unwrap_or(path);
            PREFERRED.iter().position(|&name| name == last).unwrap_or(PREFERRED.len())
        };
        // Stable, so the file's order decides between equals; the root's own tensors first.
        candidates
            .sort_by_key(|(path, _, _, count)| (std::cmp::Reverse(*count), !path.is_empty(), rank(path)));
        if candidates.is_empty() {
            bail!("it holds no tensors ({})", self.summary(self.root));
        }
        let (path, value, kind, _) = candidates.remove(0);
        let others = candidates.into_iter().map(|(path, _, _, count)| (path, count)).collect();
        self.found(kind, path, value, others)
    }

    fn found(&self, kind: Kind, path: String, value: Value, others: Vec<(String, usize)>) -> Result<Found> {
        let (mut tensors, mut strangers) = (Vec::new(), Vec::new());
        self.collect(kind, value, &mut |name, item| {
            // The name, the tensor's record, and growth.
            self.budget.charge(3 * (24 + size_of::<TensorInfo>() as u64) + name.len() as u64)?;
            match item {
                Item::Tensor(tensor) => tensors.push((name, tensor.clone())),
                Item::Stranger(value, what) => {
                    let (shape, dtype) = self.sketch(value);
                    self.budget.charge(8 * shape.len() as u64)?;
                    strangers.push(Stranger { name, shape, dtype, what });
                }
            }
            Ok(())
        })?;
        let mut names = HashSet::new();
        self.budget.charge(32 * tensors.len() as u64)?;
        if let Some((name, _)) = tensors.iter().find(|(name, _)| !names.insert(name.as_str())) {
            bail!("two tensors are called `{name}`");
        }
        // Views may repeat a storage, so what they unfold to is bounded too: each one, and all together.
        let file = self.source.size();
        let mut total = 0u64;
        for (name, tensor) in &tensors {
            let bytes = tensor.numel() * tensor.dtype.size();
            total = total.saturating_add(bytes);
            if bytes > file.saturating_add(32 << 20)
                || total > file.saturating_mul(16).saturating_add(64 << 20)
            {
                bail!("`{name}` unfolds to {bytes} bytes, out of proportion to the file");
            }
        }
        Ok(Found { kind, path, value, tensors, strangers, others })
    }

    /// What `value` is when it is taken for weights.
    fn kind_of(&self, value: Value) -> Option<Kind> {
        let heap = &self.heap;
        if self.is_script(value) {
            return Some(Kind::Script);
        }
        if self.is_module(value) {
            return Some(Kind::Module);
        }
        if heap.items(value).is_some_and(|items| items.iter().any(|item| self.is_tensor(item.1))) {
            return Some(Kind::StateDict);
        }
        let loose = heap.tensor(value).is_some()
            || heap.sequence(value).is_some_and(|values| values.iter().any(|&v| heap.tensor(v).is_some()));
        loose.then_some(Kind::Loose)
    }

    /// Whether `value` is a tensor, be it one that cannot be read.
    fn is_tensor(&self, value: Value) -> bool {
        self.heap.tensor(value).is_some() || self.stranger(value).is_some()
    }

    /// What kind of tensor a record stands for, where no other code knows it.
    fn stranger(&self, value: Value) -> Option<&'static str> {
        let global = self.heap.global(self.heap.record(value)?.class)?;
        let kind = global.name.strip_prefix("_rebuild_")?;
        (&*global.module == "torch._utils").then(|| unreadable(kind))
    }

    /// Shape and dtype of a tensor that cannot be read, as far as its arguments tell them.
    fn sketch(&self, value: Value) -> (Vec<i64>, Option<Dtype>) {
        let heap = &self.heap;
        let args = heap.record(value).and_then(|record| heap.sequence(record.args)).unwrap_or_default();
        // Sparse tensors have (layout, their parts), the others their parts.
        let parts = args.get(1).and_then(|&parts| heap.sequence(parts));
        let is_numbers = |value: &Value| {
            let numbers = heap.sequence(*value).filter(|numbers| numbers.len() <= 64)?;
            let number = |value: &Value| if let Value::Int(number) = value { Some(*number) } else { None };
            numbers.iter().map(number).collect::<Option<Vec<i64>>>()
        };
        let of_tensor = |value: &Value| heap.tensor(*value).map(|tensor| tensor.dtype);
        match parts.filter(|parts| parts.iter().any(|part| of_tensor(part).is_some())) {
            Some(parts) => {
                let shape = parts.iter().find_map(is_numbers).unwrap_or_default();
                (shape, parts.iter().rev().find_map(of_tensor))
            }
            None => {
                let dtype = args.iter().find_map(|&value| match heap.object(value)? {
                    Object::Storage(storage) => storage.dtype,
                    Object::Global(global) => Dtype::from_name(&global.name),
                    _ => None,
                });
                (args.iter().find_map(is_numbers).unwrap_or_default(), dtype)
            }
        }
    }

    fn is_module(&self, value: Value) -> bool {
        // No module has thousands of attributes, and looking through as many at every visit would take for ever.
        let attributes = self.heap.attributes(value).and_then(|state| self.heap.items(state));
        attributes.is_some_and(|items| items.len() <= 4096)
            && ["_parameters", "_buffers", "_modules"]
                .iter()
                .all(|key| self.heap.attribute(value, key).is_some())
    }

    fn is_script(&self, value: Value) -> bool {
        self.container == super::Container::TorchScript
            && self.heap.record(value).is_some()
            && self.heap.class_name(value).is_some_and(|class| class.starts_with("__torch__."))
    }

    /// Every mapping, module or list that holds tensors directly: path, value, kind, number of tensors.
    fn candidates(&self) -> Result<Vec<(String, Value, Kind, usize)>> {
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut queue = std::collections::VecDeque::from([(String::new(), self.root, 0)]);
        while let Some((path, value, depth)) = queue.pop_front() {
            if let Value::Ref(index) = value {
                self.budget.charge(48)?;
                if !seen.insert(index) {
                    continue;
                }
            }
            if let Some(kind) = self.kind_of(value) {
                let mut count = 0;
                self.collect(kind, value, &mut |_, _| {
                    count += 1;
                    Ok(())
                })?;
                found.push((path.clone(), value, kind, count));
                if kind != Kind::StateDict {
                    continue;
                }
            }
            if depth == 6 {
                continue;
            }
            let items = self.heap.items(value);
            let attributes = self.heap.attributes(value).and_then(|state| self.heap.items(state));
            for &(key, child) in items.into_iter().chain(attributes).flatten() {
                // Moments of an optimiser are as many as the weights, and are not weights.
                let Some(key) = self.heap.str(key).filter(|key| !key.contains("optim") && key.len() < 256)
                else {
                    continue;
                };
                if matches!(child, Value::Ref(_)) && self.heap.tensor(child).is_none() {
                    self.budget.charge(3 * (64 + path.len() + key.len()) as u64)?;
                    queue.push_back((join(&path, key), child, depth + 1));
                }
            }
            if items.is_none() {
                for (index, &child) in
                    self.heap.sequence(value).unwrap_or_default().iter().take(64).enumerate()
                {
                    if matches!(child, Value::Ref(_)) {
                        self.budget.charge(3 * (80 + path.len()) as u64)?;
                        queue.push_back((join(&path, &index.to_string()), child, depth + 1));
                    }
                }
            }
        }
        Ok(found.into_iter().filter(|candidate| candidate.3 > 0).collect())
    }

    /// Gives every tensor of `value` with its dotted name to `take`.
    fn collect(&self, kind: Kind, value: Value, take: Take) -> Result<()> {
        match kind {
            Kind::StateDict => {
                let items = self.heap.items(value).unwrap_or_default();
                self.tensors_of(items, "", take)
            }
            Kind::Loose => match self.heap.tensor(value) {
                Some(tensor) => take("tensor".into(), Item::Tensor(tensor)),
                None => {
                    let values = self.heap.sequence(value).unwrap_or_default();
                    let tensors =
                        values.iter().enumerate().filter_map(|(i, &v)| Some((i, self.heap.tensor(v)?)));
                    tensors
                        .into_iter()
                        .try_for_each(|(index, tensor)| take(index.to_string(), Item::Tensor(tensor)))
                }
            },
            Kind::Module | Kind::Script => self.walk(kind, value, take),
        }
    }

    /// The tensors among a dict's items, under `prefix`.
    fn tensors_of(&self, items: &[(Value, Value)], prefix: &str, take: Take) -> Result<()> {
        // A key that a hostile file sets twice has its last value, as in Python.
        self.budget.charge(48 * items.len() as u64)?;
        let mut last = HashMap::new();
        for (index, (key, _)) in items.iter().enumerate() {
            if let Some(key) = self.heap.str(*key) {
                last.insert(key, index);
            }
        }
        for (index, &(key, value)) in items.iter().enumerate() {
            let Some(key) = self.heap.str(key).filter(|key| last.get(key) == Some(&index)) else { continue };
            if let Some(tensor) = self.heap.tensor(value) {
                self.budget.charge((prefix.len() + key.len()) as u64)?;
                take(join(prefix, key), Item::Tensor(tensor))?;
            } else if let Some(what) = self.stranger(value) {
                self.budget.charge((prefix.len() + key.len()) as u64)?;
                take(join(prefix, key), Item::Stranger(value, what))?;
            }
        }
        Ok(())
    }

    /// The module tree: parameters, buffers, then the submodules, as `state_dict()` goes.
    fn walk(&self, kind: Kind, root: Value, take: Take) -> Result<()> {
        // A stack of (prefix, module, depth), children pushed in reverse. A module that contains itself ends at
        // the depth; one that is shared appears under each of its names, and every visit is charged.
        let mut stack = vec![(String::new(), root, 0)];
        while let Some((prefix, module, depth)) = stack.pop() {
            if depth > MAX_DEPTH {
                bail!("modules nested deeper than {MAX_DEPTH} at `{prefix}`");
            }
            let children = match kind {
                Kind::Script => self.script_members(module, &prefix, take)?,
                _ => self.module_members(module, &prefix, take)?,
            };
            for (name, child) in children.into_iter().rev() {
                self.budget.charge(3 * 48 + (prefix.len() + name.len()) as u64)?;
                stack.push((join(&prefix, name), child, depth + 1));
            }
        }
        Ok(())
    }

    fn module_members(&self, module: Value, prefix: &str, take: Take) -> Result<Vec<(&str, Value)>> {
        let part =
            |key| self.heap.attribute(module, key).and_then(|dict| self.heap.items(dict)).unwrap_or_default();
        self.tensors_of(part("_parameters"), prefix, take)?;
        let transient: HashSet<&str> = (self.heap.attribute(module, "_non_persistent_buffers_set"))
            .and_then(|set| self.heap.sequence(set))
            .unwrap_or_default()
            .iter()
            .filter_map(|&name| self.heap.str(name))
            .collect();
        let buffers = part("_buffers");
        self.budget.charge(32 * buffers.len() as u64)?;
        let buffers: Vec<_> = (buffers.iter().copied())
            .filter(|(key, _)| self.heap.str(*key).is_none_or(|key| !transient.contains(key)))
            .collect();
        self.tensors_of(&buffers, prefix, take)?;
        let children = part("_modules");
        self.budget.charge(32 * children.len() as u64)?;
        let named = children.iter().filter_map(|&(key, child)| Some((self.heap.str(key)?, child)));
        Ok(named.filter(|(_, child)| self.is_module(*child)).collect())
    }

    fn script_members(&self, module: Value, prefix: &str, take: Take) -> Result<Vec<(&str, Value)>> {
        let items = self.heap.attributes(module).and_then(|state| self.heap.items(state)).unwrap_or_default();
        let class = self.heap.class_name(module).and_then(|class| self.classes.get(&class));
        self.budget.charge(64 * items.len() as u64)?;
        match class {
            Some(class) => {
                let by_name: HashMap<_, _> =
                    items.iter().filter_map(|i| Some((self.heap.str(i.0)?, *i))).collect();
                for names in [&class.parameters, &class.buffers] {
                    let members: Vec<_> =
                        names.iter().filter_map(|name| by_name.get(name.as_str()).copied()).collect();
                    self.tensors_of(&members, prefix, take)?;
                }
            }
            None => self.tensors_of(items, prefix, take)?,
        }
        let named = items.iter().filter_map(|&(key, child)| Some((self.heap.str(key)?, child)));
        Ok(named.filter(|(_, child)| self.is_script(*child)).collect())
    }

    /// The value at a dotted path. Keys may hold dots themselves: the longest key that exists wins at each step.
    pub fn lookup(&self, path: &str) -> Result<Value> {
        let mut value = self.root;
        let mut rest = path;
        while !rest.is_empty() {
            let mut cuts = rest.rmatch_indices('.').map(|(at, _)| at);
            let mut end = rest.len();
            value = loop {
                if let Some(child) = self.child(value, &rest[..end]) {
                    break child;
                }
                end = cuts.next().with_context(|| {
                    let done = path[..path.len() - rest.len()].trim_end_matches('.');
                    let place = if done.is_empty() { "the file".into() } else { format!("`{done}`") };
                    format!("no key `{rest}` in {place}, which is {}", self.summary(value))
                })?;
            };
            rest = rest.get(end + 1..).unwrap_or("");
        }
        Ok(value)
    }

    /// A dict's value, a list's element, a record's attribute, a module's child.
    pub fn child(&self, value: Value, key: &str) -> Option<Value> {
        let heap = &self.heap;
        heap.get(value, key)
            .or_else(|| heap.attribute(value, key))
            .or_else(|| {
                ["_modules", "_parameters", "_buffers"]
                    .iter()
                    .find_map(|part| heap.get(heap.attribute(value, part)?, key))
            })
            .or_else(|| heap.sequence(value)?.get(key.parse::<usize>().ok()?).copied())
            .or_else(|| {
                // Integer keys, as of an optimiser's state.
                let number = Value::Int(key.parse().ok()?);
                heap.items(value)?.iter().rev().find(|item| item.0 == number).map(|item| item.1)
            })
    }

    /// What a value is, in a few words, with the first keys of a dict.
    pub fn summary(&self, value: Value) -> String {
        match self.heap.object(value) {
            Some(Object::Dict(items)) => {
                let keys: Vec<_> = items.iter().filter_map(|item| self.heap.str(item.0)).take(8).collect();
                let more = if items.len() > keys.len() { ", …" } else { "" };
                format!("a dict with {} keys: {}{more}", items.len(), keys.join(", "))
            }
            Some(Object::List(values) | Object::Tuple(values) | Object::Set(values)) => {
                format!("a list of {} values", values.len())
            }
            Some(Object::Record(_) | Object::Global(_)) => {
                format!("an object of class {}", self.heap.class_name(value).unwrap_or_default())
            }
            Some(Object::Tensor(_)) => "a tensor".into(),
            Some(Object::Str(_)) => "a string".into(),
            _ => "a plain value".into(),
        }
    }
}

fn unreadable(kind: &str) -> &'static str {
    match kind {
        "qtensor" => "quantized tensor",
        "sparse_tensor" | "sparse_csr_tensor" => "sparse tensor",
        "meta_tensor_no_storage" => "tensor without data (device meta)",
        "nested_tensor" => "nested tensor",
        _ => "tensor of a special kind",
    }
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}
