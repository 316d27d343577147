//! Values by their dotted path, and what a value is in a few words.

use anyhow::{Context, Result};

use super::PythonFile;
use super::heap::{Object, Value};

/// How a key names the file's root.
pub const ROOT: &str = ".";

impl PythonFile {
    /// The value at a dotted path; [`ROOT`] is the file's root. Keys may hold dots themselves: the longest
    /// key that exists wins at each step.
    pub fn lookup(&self, path: &str) -> Result<Value> {
        let mut value = self.root;
        let mut rest = if path == ROOT && self.child(value, path).is_none() { "" } else { path };
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
                // Keys that are no text, such as the integers of an optimiser's state.
                heap.items(value)?.iter().rev().find(|item| heap.key(item.0) == key).map(|item| item.1)
            })
    }

    /// What a value is, in a few words, with the first keys of a dict.
    pub fn summary(&self, value: Value) -> String {
        match self.heap.object(value) {
            Some(Object::Dict(items)) => {
                let keys: Vec<_> = items.iter().take(8).map(|item| self.heap.key(item.0)).collect();
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

pub(super) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}
