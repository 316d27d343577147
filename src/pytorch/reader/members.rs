//! The tensors of a structure with the names that `state_dict()` would give them.

use std::collections::{HashMap, HashSet};

use anyhow::{Result, bail};

use super::PythonFile;
use super::heap::{TensorInfo, Value};
use super::kind::Kind;
use super::lookup::join;

/// Attributes nested deeper than this are no module.
const MAX_DEPTH: usize = 64;

/// What a state_dict's key may be.
pub(super) enum Item<'a> {
    Tensor(&'a TensorInfo),
    /// The record of another kind of tensor.
    Stranger(Value, &'static str),
}

pub(super) type Take<'t> = &'t mut dyn FnMut(String, Item) -> Result<()>;

impl PythonFile {
    /// Gives every tensor of `value` with its dotted name to `take`.
    pub(super) fn collect(&self, kind: Kind, value: Value, take: Take) -> Result<()> {
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
            Kind::Nested => self.nested(value, "", 0, take),
        }
    }

    /// The tensors of dicts in dicts under their joined keys.
    fn nested(&self, value: Value, prefix: &str, depth: usize, take: Take) -> Result<()> {
        const DEEPEST: usize = 8;
        let items = self.heap.items(value).unwrap_or_default();
        self.tensors_of(items, prefix, take)?;
        for &(key, child) in items {
            if depth < DEEPEST && self.heap.items(child).is_some() {
                let key = self.heap.key(key);
                self.budget.charge((64 + prefix.len() + key.len()) as u64)?;
                self.nested(child, &join(prefix, &key), depth + 1, take)?;
            }
        }
        Ok(())
    }

    /// The tensors among a dict's items, under `prefix`.
    fn tensors_of(&self, items: &[(Value, Value)], prefix: &str, take: Take) -> Result<()> {
        // A key that a hostile file sets twice has its last value, as in Python.
        self.budget.charge(48 * items.len() as u64)?;
        let mut last = HashMap::new();
        for (index, &(key, _)) in items.iter().enumerate() {
            // 1 and "1" are two keys.
            let is_text = self.heap.str(key).is_some();
            let key = self.heap.key(key);
            self.budget.charge(if is_text { 0 } else { key.len() as u64 })?;
            last.insert((is_text, key), index);
        }
        for (index, &(key, value)) in items.iter().enumerate() {
            let is_text = self.heap.str(key).is_some();
            let key = self.heap.key(key);
            if last.get(&(is_text, key.clone())) != Some(&index) {
                continue;
            }
            let key = &*key;
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
        // A stack of (prefix, module, depth), children pushed in reverse. A module that contains itself ends
        // at the depth; one that is shared appears under each of its names, and every visit is charged.
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
}
