//! Infers arguments of a shipped model that the config leaves out from the data: `classes`, `channels`,
//! `size`, `shape`.

use serde_json::json;

use super::RunConfig;
use crate::nn::model::{ModelSource, family};
use crate::tasks::ModelArgs;

/// Fills them in, and returns a message for each that differs from the model's default. Arguments that cannot
/// be inferred without reading the data keep the model's default.
pub fn fit_model(spec: &mut RunConfig) -> Vec<String> {
    let mut lines = Vec::new();
    let ModelSource::Shipped { name, args } = &mut spec.model.source else { return lines };
    let Some(declared) = family::declared(name) else { return lines };
    let is_open = |key: &&str| declared.contains_key(*key) && !args.contains_key(*key);
    // Looks at the data only if an argument is missing.
    if !["channels", "size", "shape", "classes"].iter().any(is_open) {
        return lines;
    }
    let Some((shape, classes)) = spec.data.outline() else { return lines };
    let &[channels, height, width] = shape.as_slice() else { return lines };
    let is_whole = height > 0 && width > 0;
    let ModelArgs { channels, classes, is_sized } = spec.task.task().model_args(channels, classes);
    // Other networks work at any size: that of the model is one to count by.
    let is_sized = is_sized && is_whole;
    let found = [
        ("channels", Some(json!(channels))),
        ("size", (is_sized && height == width).then(|| json!(height))),
        ("shape", is_sized.then(|| json!([channels, height, width]))),
        ("classes", classes.map(|classes| json!(classes))),
    ];
    for (key, value) in found {
        let (Some(value), Some(own)) = (value, declared.get(key)) else { continue };
        // One output channel is enough for two classes.
        let tells_two = key == "classes" && *own == json!(1) && value == json!(2);
        if args.contains_key(key) || *own == value || tells_two {
            continue;
        }
        lines.push(format!(
            "model: `{key}` is {value}, as in the data (`{name}` has {own} where nothing is said)"
        ));
        args.insert(key.into(), value);
    }
    lines
}
