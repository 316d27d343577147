//! Finds the weights in an object tree: a bare state_dict, one nested under some key, a pickled module, a scripted one.

use std::collections::HashSet;

use anyhow::{Context, Result, bail};

use super::PythonFile;
use super::heap::{TensorInfo, Value};
use super::lookup::join;
use super::members::Item;
use super::stranger::Stranger;

/// Between mappings of equally many tensors, the first of these names wins; after them the first one in the file.
const PREFERRED: &[&str] = &[
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

    pub(super) fn is_module(&self, value: Value) -> bool {
        // No module has thousands of attributes, and looking through as many at every visit would take for ever.
        let attributes = self.heap.attributes(value).and_then(|state| self.heap.items(state));
        attributes.is_some_and(|items| items.len() <= 4096)
            && ["_parameters", "_buffers", "_modules"]
                .iter()
                .all(|key| self.heap.attribute(value, key).is_some())
    }

    pub(super) fn is_script(&self, value: Value) -> bool {
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
}
