//! The words of the model language: composites, and blocks of the user's own.

use serde::Deserialize;
use serde_json::{Map, Value};

/// What composes layers.
pub const COMPOSITES: [&str; 8] =
    ["aux", "concat", "if", "multiply", "repeat", "residual", "sequential", "subtract"];

/// A layer type of the user's own.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// Arguments and their defaults; null for one that must be given.
    #[serde(default)]
    pub args: Map<String, Value>,
    pub layers: Value,
}

/// The only entry of a mapping.
pub fn single(value: &Value) -> Option<(&str, &Value)> {
    let map = value.as_object().filter(|map| map.len() == 1)?;
    map.iter().next().map(|(key, value)| (key.as_str(), value))
}
