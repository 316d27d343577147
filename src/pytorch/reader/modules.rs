//! What a module that was pickled whole says of itself beside its tensors: its class, `eps`, `stride` and the
//! like.

use anyhow::Result;
use serde_json::{Map, Value as Json};

use super::PythonFile;
use super::heap::Value;
use super::kind::Kind;
use super::lookup::join;
use super::structure::Found;

/// One module of the tree.
#[derive(Clone, Debug)]
pub struct Module {
    /// As in the names of its tensors; empty for the whole.
    pub path: String,
    /// Such as `torch.nn.modules.conv.Conv2d`.
    pub class: String,
    /// Its plain attributes: numbers, texts, and tuples of them.
    pub attributes: Map<String, Json>,
}

impl PythonFile {
    /// The modules of `found` that have attributes or no children, parents first; none where no module was
    /// pickled.
    pub fn modules(&self, found: &Found) -> Result<Vec<Module>> {
        const MAX_DEPTH: usize = 64;
        if found.kind != Kind::Module {
            return Ok(Vec::new());
        }
        let mut modules = Vec::new();
        let mut stack = vec![(String::new(), found.value, 0)];
        while let Some((path, module, depth)) = stack.pop() {
            let children = self.heap.attribute(module, "_modules").and_then(|dict| self.heap.items(dict));
            let children = children.unwrap_or_default();
            for &(key, child) in children.iter().rev() {
                if depth < MAX_DEPTH && self.is_module(child) {
                    let key = self.heap.key(key);
                    self.budget.charge(3 * (64 + path.len() + key.len()) as u64)?;
                    stack.push((join(&path, &key), child, depth + 1));
                }
            }
            let attributes = self.plain_attributes(module)?;
            if !attributes.is_empty() || children.is_empty() {
                let class = self.heap.class_name(module).unwrap_or_default();
                self.budget.charge((128 + class.len()) as u64)?;
                modules.push(Module { path, class, attributes });
            }
        }
        Ok(modules)
    }

    fn plain_attributes(&self, module: Value) -> Result<Map<String, Json>> {
        let mut attributes = Map::new();
        let items = self.heap.attributes(module).and_then(|state| self.heap.items(state));
        for &(key, value) in items.unwrap_or_default() {
            let Some(key) = self.heap.str(key) else { continue };
            if key.starts_with('_') || key == "training" || key.len() > 64 || !self.is_plain(value, 1) {
                continue;
            }
            self.budget.charge(512 + key.len() as u64)?;
            attributes.insert(key.to_owned(), self.json(value, 0, &mut 16));
        }
        Ok(attributes)
    }

    fn is_plain(&self, value: Value, depth: usize) -> bool {
        match value {
            Value::Ref(_) => {
                self.heap.str(value).is_some_and(|text| text.len() <= 64)
                    || (depth > 0
                        && self.heap.sequence(value).is_some_and(|values| {
                            values.len() <= 8 && values.iter().all(|&value| self.is_plain(value, depth - 1))
                        }))
            }
            _ => true,
        }
    }
}
