//! The reference as one page of Markdown.

use std::collections::HashMap;

use serde_json::Value;

use super::reference::{Key, Reference, flow};
use super::{find, join};
use crate::util::builtin;
use crate::util::yaml::Document;

/// What the page says before the keys.
const INTRODUCTION: &str = include_str!("introduction.md");

const LAYERS: &str = "model.layers";

/// Examples longer than this do not help.
const LONGEST: usize = 160;

pub fn markdown(reference: &Reference) -> String {
    let mut page = Page { reference, text: INTRODUCTION.to_owned(), seen: HashMap::new() };
    let root = reference.root();
    page.text += "\n## Sections\n\n";
    page.table("", &reference.keys(&root.schema));
    page.below("", &root);
    // The longest part, which most configs take from a model file.
    if let Ok(layers) = find(reference, LAYERS) {
        page.section(LAYERS, &layers);
    }
    page.text
}

struct Page<'a> {
    reference: &'a Reference,
    text: String,
    /// The heading under which the keys of a type are listed, by the type's schema.
    seen: HashMap<String, String>,
}

impl Page<'_> {
    /// A heading for each key of `key` that has keys of its own.
    fn below(&mut self, path: &str, key: &Key) {
        for key in self.reference.keys(&key.schema) {
            let path = join(path, &key.name);
            let keys = self.reference.keys(&key.schema);
            if keys.is_empty() || self.seen.get(&identity(&keys)) != Some(&path) {
                continue;
            }
            if path != LAYERS {
                self.section(&path, &key);
            }
        }
    }

    fn section(&mut self, path: &str, key: &Key) {
        let level = if path.contains('.') && path != LAYERS { "###" } else { "##" };
        self.text += &format!("\n{level} {path}\n\n");
        for paragraph in key.paragraphs() {
            self.text += &format!("{paragraph}\n\n");
        }
        if let Some(example) = example(path) {
            self.text += &format!("Example: `{example}`\n\n");
        }
        self.table(path, &self.reference.keys(&key.schema));
        self.below(path, key);
    }

    fn table(&mut self, path: &str, keys: &[Key]) {
        self.text += "| key | value | default | |\n|---|---|---|---|\n";
        for key in keys {
            let mut meaning = key.summary();
            for (value, doc) in self.reference.meanings(&key.schema) {
                meaning += &format!("<br>`{value}`: {doc}");
            }
            let below = self.reference.keys(&key.schema);
            if !below.is_empty() {
                let own = join(path, &key.name);
                let heading = self.seen.entry(identity(&below)).or_insert(own);
                let anchor: String = heading.chars().filter(|c| *c != '.').collect();
                meaning += &format!(" → [{heading}](#{anchor})");
            }
            let default = match self.reference.default(key) {
                Some(default) => format!("`{default}`"),
                None if key.is_required => "required".to_owned(),
                None => String::new(),
            };
            let kind = self.reference.kind(&key.schema);
            let cells = [format!("`{}`", key.name), kind, default, meaning];
            self.text += &format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | "));
        }
    }
}

/// Keys that are alike are listed once.
fn identity(keys: &[Key]) -> String {
    keys.iter().map(|key| format!("{}{}", key.name, key.schema)).collect()
}

/// How a shipped config writes the key.
pub fn example(path: &str) -> Option<String> {
    let written = |name| {
        let document = Document::parse(name, builtin::config(name)?).ok()?;
        let mut places = vec![&document.tree];
        for name in path.split('.').filter(|name| name.parse::<usize>().is_err()) {
            places = places.into_iter().flat_map(items).filter_map(|value| value.get(name)).collect();
        }
        let value = places.first().filter(|value| value.is_object() || value.is_array())?;
        let value = path.rsplit('.').next().map(|key| format!("{key}: {}", flow(value)))?;
        (value.chars().count() <= LONGEST).then_some(value)
    };
    builtin::configs().find_map(written)
}

/// The values of a list, or the value itself.
fn items(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(list) => list.iter().collect(),
        value => vec![value],
    }
}
