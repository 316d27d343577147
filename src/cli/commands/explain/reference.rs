//! Keys, types and documentation out of a JSON Schema.

use serde_json::{Map, Value, json};

use crate::sweep::format_value;
use crate::util::yaml::any_of;

/// A schema to look keys up in.
pub struct Reference {
    root: Value,
    definitions: Value,
}

/// One key of a mapping, or one of the choices that a mapping of one key names.
#[derive(Clone)]
pub struct Key {
    pub name: String,
    pub schema: Value,
    /// What is written beside the key, and beside the type of its value.
    docs: Vec<String>,
    pub is_required: bool,
    is_choice: bool,
}

/// One way to write a value.
struct Form {
    schema: Map<String, Value>,
    /// The one key of a mapping that names a choice.
    choice: Option<String>,
}

impl Key {
    /// All that is known of it.
    pub fn paragraphs(&self) -> Vec<String> {
        self.docs.iter().flat_map(|doc| doc.split("\n\n")).map(|text| text.replace('\n', " ")).collect()
    }

    /// The first paragraph.
    pub fn summary(&self) -> String {
        self.paragraphs().into_iter().next().unwrap_or_default()
    }
}

impl Reference {
    pub fn new(root: Value) -> Self {
        Self { definitions: root["$defs"].clone(), root }
    }

    /// The config as a whole.
    pub fn root(&self) -> Key {
        self.key("", &self.root, None, false)
    }

    fn key(&self, name: &str, schema: &Value, variant: Option<&Map<String, Value>>, required: bool) -> Key {
        let mut docs = Vec::new();
        let beside = variant.and_then(|variant| variant.get("description"));
        let places = [beside.cloned(), schema.get("description").cloned(), self.about(schema)];
        for doc in places.into_iter().flatten() {
            let doc = doc.as_str().unwrap_or_default().to_owned();
            if !docs.contains(&doc) {
                docs.push(doc);
            }
        }
        Key {
            name: name.to_owned(),
            schema: schema.clone(),
            docs,
            is_required: required,
            is_choice: variant.is_some(),
        }
    }

    /// The documentation of the type that a schema refers to.
    fn about(&self, schema: &Value) -> Option<Value> {
        let reference = |schema: &Value| schema["$ref"].as_str().map(str::to_owned);
        let optional = || schema["anyOf"].as_array()?.iter().find_map(reference);
        let items = || reference(&schema["items"]);
        let name = reference(schema).or_else(optional).or_else(items)?;
        self.definitions.get(name.strip_prefix("#/$defs/")?)?.get("description").cloned()
    }

    /// The definition that a schema refers to, under the keys beside the reference.
    fn resolve(&self, schema: &Value) -> Map<String, Value> {
        let mut own = schema.as_object().cloned().unwrap_or_default();
        let Some(Value::String(reference)) = own.remove("$ref") else { return own };
        let name = reference.trim_start_matches("#/$defs/");
        let mut whole = self.resolve(&self.definitions[name]);
        whole.append(&mut own);
        whole
    }

    fn forms(&self, schema: &Value) -> Vec<Form> {
        let schema = self.resolve(schema);
        let Some(Value::Array(variants)) = schema.get("oneOf").or(schema.get("anyOf")) else {
            let is_null = schema.get("type").is_some_and(|kind| kind == "null");
            return if is_null { Vec::new() } else { vec![Form { schema, choice: None }] };
        };
        let mut forms = Vec::new();
        for variant in variants {
            let choice = match (variant["required"].as_array().map(Vec::as_slice), variant.as_object()) {
                (Some([name]), Some(_)) => name.as_str().map(str::to_owned),
                _ => None,
            };
            match (choice, variant.as_object()) {
                (Some(name), Some(schema)) => {
                    forms.push(Form { schema: schema.clone(), choice: Some(name) });
                }
                _ => forms.extend(self.forms(variant)),
            }
        }
        forms
    }

    /// The keys that a value may have, those of the items where it is a list.
    pub fn keys(&self, schema: &Value) -> Vec<Key> {
        let mut keys: Vec<Key> = Vec::new();
        let mut push = |key: Key| match keys.iter().any(|known| known.name == key.name) {
            true => {}
            false => keys.push(key),
        };
        for Form { schema, choice } in self.forms(schema) {
            if let Some(items) = schema.get("items") {
                self.keys(items).into_iter().for_each(&mut push);
            }
            let Some(Value::Object(properties)) = schema.get("properties") else { continue };
            let required = schema.get("required").and_then(Value::as_array);
            for (name, property) in properties {
                let is_required = required.is_some_and(|required| required.contains(&json!(name)));
                let variant = (choice.as_ref() == Some(name)).then_some(&schema);
                push(self.key(name, property, variant, is_required && choice.is_none()));
            }
        }
        // What may stand beside every choice comes after them.
        keys.sort_by_key(|key| !key.is_choice && self.has_choices(schema));
        keys
    }

    fn has_choices(&self, schema: &Value) -> bool {
        self.forms(schema).iter().any(|form| form.choice.is_some())
    }

    /// The dotted paths of all keys.
    pub fn paths(&self) -> Vec<String> {
        fn below(reference: &Reference, path: &str, schema: &Value, paths: &mut Vec<String>) {
            for key in reference.keys(schema) {
                let path = super::join(path, &key.name);
                paths.push(path.clone());
                below(reference, &path, &key.schema, paths);
            }
        }
        let mut paths = Vec::new();
        below(self, "", &self.root, &mut paths);
        paths
    }

    /// Values that are words, with what they mean, where that is written.
    pub fn meanings(&self, schema: &Value) -> Vec<(String, String)> {
        let meaning = |form: Form| {
            let value = form.schema.get("const")?.as_str()?.to_owned();
            Some((value, form.schema.get("description")?.as_str()?.replace('\n', " ")))
        };
        self.forms(schema).into_iter().filter_map(meaning).collect()
    }

    /// Type, range, and default.
    pub fn facts(&self, key: &Key) -> String {
        let kind = self.kind(&key.schema);
        match self.default(key) {
            Some(default) => format!("{kind}; default {default}"),
            None if key.is_required => format!("{kind}; required"),
            None => kind,
        }
    }

    pub fn default(&self, key: &Key) -> Option<String> {
        let default = match key.schema.get("default") {
            Some(default) => default,
            // What serde leaves out where it is false.
            None if key.schema["type"] == "boolean" && !key.is_required => &Value::Bool(false),
            None => return None,
        };
        let says_nothing = match default {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        (!says_nothing).then(|| flow(default))
    }

    /// The type of a value, and its range.
    pub fn kind(&self, schema: &Value) -> String {
        let (mut kinds, mut choices) = (Vec::new(), Vec::new());
        for form in self.forms(schema) {
            match form.choice {
                Some(name) => choices.push(name),
                None => kinds.extend(self.simple(&form.schema)),
            }
        }
        match choices.len() {
            0 | 1 => kinds.extend(choices),
            // A mapping beside them has what may stand beside every choice.
            _ => kinds = [choices, kinds.into_iter().filter(|kind| kind != "mapping").collect()].concat(),
        }
        let mut different: Vec<String> = Vec::new();
        for kind in kinds {
            if !different.contains(&kind) {
                different.push(kind);
            }
        }
        alternatives(&different)
    }

    fn simple(&self, schema: &Map<String, Value>) -> Vec<String> {
        if let Some(value) = schema.get("const") {
            return vec![flow(value)];
        }
        if let Some(Value::Array(values)) = schema.get("enum") {
            return values.iter().map(flow).collect();
        }
        let kinds = match schema.get("type") {
            Some(Value::String(kind)) => vec![kind.as_str()],
            Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
            _ => vec!["any"],
        };
        let kind = |kind: &str| match kind {
            "boolean" => "true or false".to_owned(),
            "integer" => format!("integer{}", range(schema)),
            "number" => format!("number{}", range(schema)),
            "string" if schema.get("format").is_some_and(|format| format == "path") => "path".to_owned(),
            "string" => "text".to_owned(),
            "array" => self.list(schema),
            "object" => "mapping".to_owned(),
            _ => "any value".to_owned(),
        };
        kinds.into_iter().filter(|kind| *kind != "null").map(kind).collect()
    }

    fn list(&self, schema: &Map<String, Value>) -> String {
        if let Some(Value::Array(items)) = schema.get("prefixItems") {
            let items: Vec<_> = items.iter().map(|item| self.kind(item)).collect();
            return format!("[{}]", items.join(", "));
        }
        let Some(items) = schema.get("items") else { return "list".to_owned() };
        let item = self.kind(items);
        match (schema.get("minItems"), schema.get("maxItems")) {
            (Some(least), Some(most)) if least == most && *least == json!(2) => format!("[{item}, {item}]"),
            _ if item.len() > 40 => "list".to_owned(),
            _ => format!("list of {item}"),
        }
    }
}

/// `a, b or c`
fn alternatives(words: &[String]) -> String {
    if words.is_empty() { "any value".to_owned() } else { any_of(words) }
}

/// The interval of a number, such as ` in [0, 1)`.
fn range(schema: &Map<String, Value>) -> String {
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    let (from, above) = (bound("minimum"), bound("exclusiveMinimum"));
    let (to, below) = (bound("maximum"), bound("exclusiveMaximum"));
    match (from, above, to.or(below)) {
        (Some(from), None, None) => format!(" ≥ {from}"),
        (_, Some(above), None) => format!(" > {above}"),
        (_, _, Some(end)) if from.or(above).is_some() => {
            let open = if above.is_some() { '(' } else { '[' };
            let close = if below.is_some() { ')' } else { ']' };
            format!(" in {open}{}, {end}{close}", above.or(from).unwrap_or_default())
        }
        _ => String::new(),
    }
}

/// A value as YAML writes it on one line.
pub fn flow(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() || text.contains(|c| "{}[],&*#?|<>=!%@:`\"'".contains(c)) => {
            format!("{text:?}")
        }
        Value::Array(list) => format!("[{}]", list.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let entries = map.iter().map(|(key, value)| format!("{key}: {}", flow(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        other => format_value(other),
    }
}
