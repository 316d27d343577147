//! What is saved beside the weights, as JSON: numbers and strings as they are, objects by their class name.

use serde_json::{Map, Value as Json, json};

use super::PythonFile;
use super::heap::{Object, Value};

/// Values shown in all, elements of one list, characters of one string.
const MAX_VALUES: usize = 1000;
const MAX_ELEMENTS: usize = 16;
const MAX_TEXT: usize = 300;
const MAX_DEPTH: usize = 6;

impl PythonFile {
    /// Everything at the root except the weights at `weights`; long lists and deep trees are cut short.
    pub fn metadata(&self, weights: Value) -> Map<String, Json> {
        let mut left = MAX_VALUES;
        let items = self.heap.items(self.root).or_else(|| self.heap.items(self.heap.attributes(self.root)?));
        let mut metadata = Map::new();
        for &(key, value) in items.unwrap_or_default() {
            // A bare state_dict's own tensors are no metadata, nor is a module's machinery.
            let weight = value == weights || (self.root == weights && self.heap.tensor(value).is_some());
            if weight {
                continue;
            }
            if left == 0 {
                break;
            }
            if self.root == weights
                && self.heap.items(self.root).is_none()
                && self.heap.object(value).is_some()
            {
                continue;
            }
            metadata.insert(cut(&self.heap.key(key)), self.json(value, 0, &mut left));
        }
        metadata
    }

    /// A value as JSON. Bounded in depth and number, for a small file may describe an endless tree.
    pub fn json(&self, value: Value, depth: usize, left: &mut usize) -> Json {
        *left = left.saturating_sub(1);
        let object = match value {
            Value::None => return Json::Null,
            Value::Bool(flag) => return flag.into(),
            Value::Int(number) => return number.into(),
            // JSON has no NaN or infinity.
            Value::Float(number) if number.is_finite() => return number.into(),
            Value::Float(number) => return number.to_string().into(),
            Value::Ref(_) => self.heap.object(value),
        };
        let deep = depth >= MAX_DEPTH || *left == 0;
        match object {
            Some(Object::Str(text)) => cut(text).into(),
            Some(Object::Bytes(bytes)) => format!("<{} bytes>", bytes.len()).into(),
            Some(Object::BigInt(bytes)) => format!("<integer of {} bits>", 8 * bytes.len()).into(),
            Some(Object::Complex(re, im)) => format!("{re}{im:+}j").into(),
            Some(Object::Global(global)) => format!("<{}>", cut(&global.full_name())).into(),
            Some(Object::Storage(storage)) => format!("<storage of {}>", storage.len).into(),
            Some(Object::Tensor(tensor)) => {
                format!("<tensor {} {:?}>", tensor.dtype.name(), tensor.shape).into()
            }
            Some(Object::Tuple(values) | Object::List(values) | Object::Set(values)) if deep => {
                format!("<{} values>", values.len()).into()
            }
            Some(Object::Tuple(values) | Object::List(values) | Object::Set(values)) => {
                let mut list: Vec<_> = values
                    .iter()
                    .take(MAX_ELEMENTS)
                    .map(|&value| self.json(value, depth + 1, left))
                    .collect();
                if values.len() > MAX_ELEMENTS {
                    list.push(format!("<{} more>", values.len() - MAX_ELEMENTS).into());
                }
                list.into()
            }
            Some(Object::Dict(items)) if deep => format!("<dict of {} items>", items.len()).into(),
            Some(Object::Dict(items)) => self.object_json(items, Map::new(), depth, left),
            Some(Object::Record(record)) => {
                let class = format!("<{}>", cut(&self.heap.class_name(value).unwrap_or_default()));
                let state =
                    self.heap.attributes(value).and_then(|state| self.heap.items(state)).unwrap_or_default();
                let items = if record.items.is_empty() { state } else { &record.items };
                // A module's or an ndarray's insides say little; its name does.
                let plain =
                    items.iter().all(|item| !self.heap.str(item.0).is_some_and(|key| key.starts_with('_')));
                if items.is_empty() || deep || !plain {
                    return class.into();
                }
                self.object_json(items, Map::from_iter([("class".to_owned(), json!(class))]), depth, left)
            }
            None => Json::Null,
        }
    }

    fn object_json(
        &self,
        items: &[(Value, Value)],
        mut map: Map<String, Json>,
        depth: usize,
        left: &mut usize,
    ) -> Json {
        const MAX_ITEMS: usize = 64;
        for &(key, value) in items.iter().take(MAX_ITEMS) {
            map.insert(cut(&self.heap.key(key)), self.json(value, depth + 1, left));
        }
        if items.len() > MAX_ITEMS {
            map.insert("…".into(), format!("<{} more>", items.len() - MAX_ITEMS).into());
        }
        map.into()
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
