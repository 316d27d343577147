//! Refuses names of children that are probably misspelt keywords and would give another network:
//! `residul: {layers: […]}` would be a sequence without its skip connection.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::block::{Block, COMPOSITES, single};
use crate::nn::layers::LayerSpec;
use crate::util::yaml::nearest;

/// Keys of the composites themselves.
const PARTS: [&str; 3] = ["layers", "shortcut", "times"];
/// Names of composites in other frameworks.
const FOREIGN: [(&str, &str); 13] = [
    ("add", "residual"),
    ("sum", "residual"),
    ("skip", "residual"),
    ("cat", "concat"),
    ("concatenate", "concat"),
    ("parallel", "concat"),
    ("stack", "concat"),
    ("loop", "repeat"),
    ("seq", "sequential"),
    ("mul", "multiply"),
    ("product", "multiply"),
    ("sub", "subtract"),
    ("minus", "subtract"),
];

/// The layer types that a description knows.
#[derive(Clone, Copy)]
pub struct Kinds<'a>(pub &'a BTreeMap<String, Block>);

impl<'a> Kinds<'a> {
    /// Whether `kind` is a layer or a block.
    pub fn is_layer(self, kind: &str) -> bool {
        self.0.contains_key(kind) || LayerSpec::kinds().any(|known| known == kind)
    }

    /// Whether `value` can only be one layer or one composite, so that the key above it can only be a name.
    fn is_call(self, value: &Value) -> bool {
        let called = |kind: &str| self.is_layer(kind) || COMPOSITES.contains(&kind);
        value.is_string() || single(value).is_some_and(|(kind, _)| called(kind))
    }

    /// Why the child `name` with the value `value`, below the key `parent`, cannot have this name.
    pub fn refuse_name(self, name: &str, value: &Value, parent: &str) -> Option<String> {
        if PARTS.contains(&name) && name != parent {
            return Some(format!(
                "`{name}` is no name for a layer: it is a key of `residual`, `multiply`, `subtract`, `aux` or `repeat`, and none of them is above it"
            ));
        }
        if COMPOSITES.contains(&name) {
            return Some(format!(
                "`{name}` is no name for a layer but a composite, which wants one: write NAME: {{{name}: …}}, or \
                 `- {name}: …` in a list"
            ));
        }
        let bare = name.trim_start_matches('_');
        let numbered = COMPOSITES.contains(&bare.trim_end_matches(|c: char| c.is_ascii_digit() || c == '_'));
        // `f`, `id` and `max` are names; a misspelt `if` or `aux` is refused by its keys.
        let near = nearest(bare, COMPOSITES.into_iter().filter(|kind| !["aux", "if"].contains(kind)));
        let taken = match single(value) {
            Some((kind, _)) if COMPOSITES.contains(&kind) => None,
            _ if self.is_call(value) => {
                near.filter(|near| !numbered && strsim::damerau_levenshtein(bare, near) == 1)
            }
            _ => near,
        };
        if let Some(near) = taken {
            return Some(format!(
                "unknown composite `{name}`; did you mean `{near}`? A layer of that name is written {name}: {{sequential: …}}"
            ));
        }
        match self.block_of(bare, value)? {
            block if block == name => Some(self.no_layer(name)),
            block => Some(format!("unknown block `{name}`; did you mean `{block}`?")),
        }
    }

    /// The block of which `name` is probably a misspelling, because its value has arguments instead of
    /// layers.
    fn block_of(self, name: &str, value: &Value) -> Option<&'a str> {
        let given = value.as_object().filter(|given| !given.is_empty())?;
        let takes = |block: &Block| given.keys().all(|key| block.args.contains_key(key));
        let blocks = self.0.iter().filter(|(_, block)| takes(block));
        nearest(name, blocks.map(|(block, _)| block.as_str()))
    }

    /// The error for the only key of a mapping if it is an unknown composite rather than a name.
    pub fn refuse_composite(self, name: &str, value: &Value) -> Option<String> {
        if self.is_call(value) {
            return None;
        }
        let foreign = FOREIGN.iter().find(|(word, _)| *word == name).map(|(_, ours)| *ours);
        let parts = |map: &Map<String, Value>| PARTS.iter().any(|part| map.contains_key(*part));
        if foreign.is_none() && !value.as_object().is_some_and(parts) {
            return None;
        }
        let hint = match foreign.or_else(|| nearest(name, COMPOSITES.into_iter())) {
            Some(ours) => format!("did you mean `{ours}`?"),
            None => format!("composites are {}", COMPOSITES.join(", ")),
        };
        Some(format!(
            "unknown composite `{name}`; {hint} A layer of that name is written {{sequential: {{{name}: …}}}}"
        ))
    }

    /// The error for `kind` where a layer is expected.
    pub fn no_layer(self, kind: &str) -> String {
        if self.is_layer(kind) {
            return format!(
                "`{kind}` is a layer that wants a name: write NAME: {{{kind}: {{…}}}}, or `- {kind}: {{…}}` in a list"
            );
        }
        let mut known: Vec<&str> = LayerSpec::kinds().chain(COMPOSITES).collect();
        known.extend(self.0.keys().map(String::as_str));
        match nearest(kind, known.iter().copied()) {
            Some(near) => format!("unknown layer `{kind}`; did you mean `{near}`?"),
            None => {
                known.sort_unstable();
                format!("unknown layer `{kind}`; layers are {}", known.join(", "))
            }
        }
    }
}
