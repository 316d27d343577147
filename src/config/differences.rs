//! How two resolved configs differ.

use serde_json::{Map, Value};

/// The keys at which `new` is not `old`, each with `was …, is …`; where a run happens is no difference.
pub fn differences(old: &Value, new: &Value) -> Vec<(String, String)> {
    let mut changed = Vec::new();
    compare("", old, new, &mut changed);
    changed
}

fn compare(path: &str, old: &Value, new: &Value, changed: &mut Vec<(String, String)>) {
    if let (Value::Object(old), Value::Object(new)) = (old, new) {
        let mut keys: Vec<_> = old.keys().chain(new.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let side = |side: &Map<String, Value>| side.get(key).cloned().unwrap_or(Value::Null);
            compare(&path, &side(old), &side(new), changed);
        }
    } else if old != new
        && !["output", "device", "threads", "model.torchscript", "model.exported"].contains(&path)
    {
        changed.push((path.to_owned(), format!("was {old}, is {new}")));
    }
}
