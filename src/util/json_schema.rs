//! JSON Schemas of the YAML files, derived from the specs and their doc comments by schemars.

use schemars::JsonSchema;
use serde_json::{Map, Value, json};

// Two forms of one value, for the schema alone. Without a doc comment, which would be the value's
// description.
#[derive(JsonSchema)]
#[serde(untagged)]
pub enum Either<A, B> {
    One(A),
    Other(B),
}

/// Makes a schema that schemars derived accept what [`yaml`](crate::util::yaml) accepts beyond serde: a
/// choice by its name alone where its keys all have defaults (`task: regression`), and nothing in the place
/// of an empty mapping (`adam:`). Number formats and null defaults, which say nothing here, are left out.
pub fn finish(schema: &mut Value) {
    let definitions = schema["$defs"].clone();
    walk(schema, &mut |object| {
        if object.get("format").is_some_and(|format| format != "path") {
            object.remove("format");
        }
        if object.get("default").is_some_and(Value::is_null) {
            object.remove("default");
        }
        for forms in ["oneOf", "anyOf"] {
            let Some(Value::Array(variants)) = object.get_mut(forms) else { continue };
            let names: Vec<_> = variants.iter().filter_map(|variant| choice(variant, &definitions)).collect();
            if !names.is_empty() {
                variants.insert(0, json!({"enum": names}));
            }
        }
        if object.get("type").is_some_and(|kind| kind == "object") && !object.contains_key("required") {
            object.insert("type".into(), json!(["object", "null"]));
        }
    });
}

/// The name of a choice that can be written without its keys.
fn choice(variant: &Value, definitions: &Value) -> Option<Value> {
    let [name] = variant["required"].as_array()?.as_slice() else { return None };
    let mut body = &variant["properties"][name.as_str()?];
    while let Some(reference) = body["$ref"].as_str() {
        body = definitions.get(reference.strip_prefix("#/$defs/")?)?;
    }
    let is_mapping = body["type"] == "object" || body["type"] == json!(["object", "null"]);
    (is_mapping && body.get("required").is_none()).then(|| name.clone())
}

/// Calls `visit` on every schema below `value`, the innermost first.
fn walk(value: &mut Value, visit: &mut impl FnMut(&mut Map<String, Value>)) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(|value| walk(value, visit)),
        Value::Object(object) => {
            for (key, value) in object.iter_mut() {
                match (key.as_str(), value) {
                    ("default" | "enum" | "const" | "required", _) => {}
                    ("properties" | "$defs", Value::Object(schemas)) => {
                        schemas.values_mut().for_each(|schema| walk(schema, visit));
                    }
                    (_, value) => walk(value, visit),
                }
            }
            visit(object);
        }
        _ => {}
    }
}
