//! Finds the weights in an object tree: a bare state_dict, one nested under some key, a pickled module, a
//! scripted one.

use std::collections::HashSet;

use anyhow::{Context, Result, bail};

use super::heap::{TensorInfo, Value};
use super::kind::Kind;
use super::lookup::{ROOT, join};
use super::members::Item;
use super::stranger::UnsupportedTensor;
use super::{Container, PythonFile};

/// Between mappings of equally many tensors the averaged ones win, as in timm, BasicSR and YOLO, and as runs
/// of our own are judged; then the first of these names; after them the first one in the file.
const PREFERRED: &[&str] =
    &["state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "generator"];

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
    pub strangers: Vec<UnsupportedTensor>,
    /// Whether the tensors are numpy's.
    pub is_numpy: bool,
    /// The other candidates: path ([`ROOT`](super::ROOT) for the root itself) and number of tensors.
    pub others: Vec<(String, usize)>,
}

impl Found {
    /// Adds the tensors of another part; an error where both have one of the same name.
    pub fn join(&mut self, other: Found) -> Result<()> {
        let names: HashSet<&str> = self.tensors.iter().map(|(name, _)| name.as_str()).collect();
        if let Some((name, _)) = other.tensors.iter().find(|(name, _)| names.contains(name.as_str())) {
            bail!("`{name}` is in `{}` and in `{}`: give only one of these keys", self.path, other.path);
        }
        self.path = format!("{} + {}", self.path, other.path);
        self.tensors.extend(other.tensors);
        self.strangers.extend(other.strangers);
        Ok(())
    }

    /// As a message says it: `state_dict under "net"`.
    pub fn describe(&self) -> String {
        let kind = match self.kind {
            Kind::StateDict => "state_dict",
            Kind::Module => "pickled module",
            Kind::Script => "scripted module",
            Kind::Loose => "tensors without names",
            Kind::Nested => "tree of dicts",
        };
        let numpy = if self.is_numpy { " of numpy arrays" } else { "" };
        match self.path.as_str() {
            "" | ROOT => format!("bare {kind}{numpy}"),
            path => format!("{kind}{numpy} under `{path}`"),
        }
    }
}

/// Whether the last name of a path says that it is a moving average.
fn is_averaged(path: &str) -> bool {
    let last = path.rsplit('.').next().unwrap_or(path);
    last.split('_').any(|word| ["ema", "swa", "averaged"].contains(&word))
}

impl PythonFile {
    /// The weights under `key` (a dotted path), or the candidate with the most tensors.
    pub fn find(&self, key: Option<&str>) -> Result<Found> {
        self.find_raw(key, false)
    }

    /// The same; with `raw` not those of a moving average where others of as many tensors are beside them.
    pub fn find_raw(&self, key: Option<&str>, raw: bool) -> Result<Found> {
        if let Some(key) = key {
            let value = self.lookup(key)?;
            let kind = self.kind_of(value).or_else(|| self.is_nested(value).then_some(Kind::Nested));
            let kind = kind.with_context(|| format!("`{key}` holds no tensors ({})", self.summary(value)))?;
            return self.found(kind, key.to_owned(), value, Vec::new());
        }
        let mut candidates = self.candidates()?;
        let rank = |path: &str| {
            let last = path.rsplit('.').next().unwrap_or(path);
            PREFERRED.iter().position(|&name| name == last).unwrap_or(PREFERRED.len())
        };
        // Stable, so the file's order decides between equals; the root's own tensors first.
        candidates.sort_by_key(|candidate| {
            let (path, value, kind, count) = candidate;
            let order = (!path.is_empty(), !is_averaged(path), rank(path));
            (self.is_numpy(*kind, *value), std::cmp::Reverse(*count), order)
        });
        if candidates.is_empty() && self.container == Container::TorchScript {
            bail!(
                "a frozen TorchScript program, whose weights are constants without names: take what it was before torch.jit.freeze, \
                 or its state_dict"
            );
        }
        if candidates.is_empty() {
            bail!("it holds no tensors ({})", self.summary(self.root));
        }
        // An average has one tensor more: `n_averaged`.
        let raw = candidates.iter().position(|(path, _, _, count)| {
            raw && is_averaged(&candidates[0].0) && !is_averaged(path) && count + 1 >= candidates[0].3
        });
        let (path, value, kind, _) = candidates.remove(raw.unwrap_or(0));
        let name = |path: String| if path.is_empty() { ROOT.to_owned() } else { path };
        let others = candidates.into_iter().map(|(path, _, _, count)| (name(path), count)).collect();
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
                    let (shape, dtype) = self.shape_hint(value);
                    self.budget.charge(8 * shape.len() as u64)?;
                    strangers.push(UnsupportedTensor { name, shape, dtype, what });
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
        let is_numpy = !tensors.is_empty() && tensors.iter().all(|(_, tensor)| self.is_array(tensor));
        Ok(Found { kind, path, value, tensors, strangers, is_numpy, others })
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
        // A tuple with an array in it is numpy's random state, or the like.
        let is_torch = |value: Value| heap.tensor(value).is_some_and(|tensor| !self.is_array(tensor));
        let loose = heap.tensor(value).is_some()
            || heap.sequence(value).is_some_and(|values| {
                values.iter().any(|&v| is_torch(v))
                    || (!values.is_empty() && values.iter().all(|&v| heap.tensor(v).is_some()))
            });
        loose.then_some(Kind::Loose)
    }

    /// Whether `value` is a tensor, be it one that cannot be read.
    fn is_tensor(&self, value: Value) -> bool {
        self.heap.tensor(value).is_some() || self.stranger(value).is_some()
    }

    /// Whether its bytes are in the pickle, as numpy's are.
    fn is_array(&self, tensor: &TensorInfo) -> bool {
        self.storages.get(tensor.storage as usize).is_some_and(|storage| storage.inline.is_some())
    }

    /// Whether the first tensor is an array of numpy's.
    fn is_numpy(&self, kind: Kind, value: Value) -> bool {
        let mut values = self.heap.items(value).into_iter().flatten().map(|item| item.1);
        let listed = || self.heap.sequence(value).unwrap_or_default().iter().copied();
        let first = match kind {
            Kind::Module | Kind::Script => return false,
            Kind::Loose => self.heap.tensor(value).or_else(|| listed().find_map(|v| self.heap.tensor(v))),
            Kind::StateDict | Kind::Nested => values.find_map(|value| self.heap.tensor(value)),
        };
        first.is_some_and(|tensor| self.is_array(tensor))
    }

    /// A dict of dicts with tensors in them.
    fn is_nested(&self, value: Value) -> bool {
        let items = self.heap.items(value).unwrap_or_default();
        items.iter().any(|&(_, child)| self.kind_of(child) == Some(Kind::StateDict))
            || items.iter().any(|&(_, child)| {
                let below = self.heap.items(child).unwrap_or_default();
                below.iter().any(|&(_, child)| self.kind_of(child) == Some(Kind::StateDict))
            })
    }

    pub(super) fn is_module(&self, value: Value) -> bool {
        // No module has thousands of attributes, and looking through as many at every visit would take for
        // ever.
        let attributes = self.heap.attributes(value).and_then(|state| self.heap.items(state));
        attributes.is_some_and(|items| items.len() <= 4096)
            && ["_parameters", "_buffers", "_modules"]
                .iter()
                .all(|key| self.heap.attribute(value, key).is_some())
    }

    pub(super) fn is_script(&self, value: Value) -> bool {
        self.container == Container::TorchScript
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
            // One array, as numpy's random state has, holds no weights.
            let is_stray = depth > 0 && self.heap.tensor(value).is_some_and(|tensor| self.is_array(tensor));
            if let Some(kind) = self.kind_of(value).filter(|_| !is_stray) {
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
            // Moments of an optimiser are as many as the weights, and are not weights.
            let is_optimizer =
                |value| ["state", "param_groups"].iter().all(|key| self.heap.get(value, key).is_some());
            if is_optimizer(value) {
                continue;
            }
            for &(key, child) in items.into_iter().chain(attributes).flatten() {
                let key = self.heap.key(key);
                if key.contains("optim") || key.len() >= 256 {
                    continue;
                }
                if matches!(child, Value::Ref(_)) && self.heap.tensor(child).is_none() {
                    self.budget.charge(3 * (64 + path.len() + key.len()) as u64)?;
                    queue.push_back((join(&path, &key), child, depth + 1));
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
