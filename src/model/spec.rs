//! How a run config names its network.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::{Model, scope};
use crate::exit::{Exit, fail};
use crate::shipped;
use crate::yaml::{Document, Invalid, nearest};

/// `small-cnn`, `my.yaml`, `{name: resnet18, args: {classes: 5}}`, `{file: my.yaml, args: {…}}`, or a whole model
/// in place: `{input: […], layers: {…}}`.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelSpec {
    Shipped { name: String, args: Map<String, Value> },
    File { file: String, args: Map<String, Value> },
    Inline(Map<String, Value>),
}

impl<'de> Deserialize<'de> for ModelSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut map = match Value::deserialize(deserializer)? {
            Value::String(name) if name.ends_with(".yaml") || name.ends_with(".yml") => {
                return Ok(Self::File { file: name, args: Map::new() });
            }
            Value::String(name) => return Ok(Self::Shipped { name, args: Map::new() }),
            Value::Object(map) => map,
            other => {
                let message = format!("expected a model's name, a .yaml file or a mapping, got {other}");
                return Err(D::Error::custom(message));
            }
        };
        let word = |map: &mut Map<String, Value>, key: &'static str| match map.remove(key) {
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(D::Error::custom(format!("`{key}` must be text, got {other}"))),
            None => Ok(None),
        };
        let (name, file) = (word(&mut map, "name")?, word(&mut map, "file")?);
        if name.is_none() && file.is_none() {
            if map.contains_key("layers") {
                return Ok(Self::Inline(map));
            }
            return Err(D::Error::custom(
                "expected `name`, `file`, or a whole model with `input` and `layers`",
            ));
        }
        let args = match map.remove("args") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(args)) => args,
            Some(other) => return Err(D::Error::custom(format!("`args` must be a mapping, got {other}"))),
        };
        if let Some(key) = map.keys().next() {
            return Err(D::Error::unknown_field(key, &["name", "file", "args"]));
        }
        match (name, file) {
            (Some(name), None) => Ok(Self::Shipped { name, args }),
            (None, Some(file)) => Ok(Self::File { file, args }),
            _ => Err(D::Error::custom("give `name` or `file`, not both")),
        }
    }
}

impl Serialize for ModelSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Shipped { name: text, args } | Self::File { file: text, args } if args.is_empty() => {
                text.serialize(serializer)
            }
            Self::Shipped { name, args } => json!({"name": name, "args": args}).serialize(serializer),
            Self::File { file, args } => json!({"file": file, "args": args}).serialize(serializer),
            Self::Inline(map) => map.serialize(serializer),
        }
    }
}

/// Where a mistake stands: in the run config, or in the model's own file.
pub(super) enum Problem {
    Config(Invalid),
    File(anyhow::Error),
}

impl Problem {
    pub fn into_error(self, key: &str) -> anyhow::Error {
        match self {
            Self::Config(invalid) => fail(Exit::Usage, invalid.under(key)),
            Self::File(error) => error,
        }
    }
}

impl ModelSpec {
    /// Checks the whole model. A mistake in a file of its own keeps that file's name and line in its message.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.model().map(drop).map_err(|problem| match problem {
            Problem::Config(invalid) => invalid,
            Problem::File(error) => Invalid::new("", format!("{error:#}")),
        })
    }

    /// The same model with its description and final arguments in place, independent of any file.
    pub fn inlined(&self) -> anyhow::Result<Self> {
        let (_, tree, _) = self.resolve().map_err(|problem| problem.into_error("model"))?;
        match tree {
            Value::Object(map) => Ok(Self::Inline(map)),
            _ => Err(fail(Exit::Usage, "a model is a mapping with `input` and `layers`")),
        }
    }

    pub(super) fn model(&self) -> Result<Model, Problem> {
        let (name, tree, document) = self.resolve()?;
        Model::from_tree(name, &tree).map_err(|invalid| match document {
            Some(document) => Problem::File(document.invalid_at("", invalid)),
            None => Problem::Config(invalid),
        })
    }

    /// The name, the tree with the arguments laid over their defaults, and the file that it came from.
    fn resolve(&self) -> Result<(String, Value, Option<Document>), Problem> {
        let (name, document, args) = match self {
            Self::Inline(map) => return Ok(("inline".into(), Value::Object(map.clone()), None)),
            Self::File { file, args } => (file, Document::read(file).map_err(Problem::File)?, args),
            Self::Shipped { name, args } => {
                let text = shipped::model(name).ok_or_else(|| Problem::Config(unknown(name, args)))?;
                let document =
                    Document::parse(format!("<built-in> {name}.yaml"), text).map_err(Problem::File)?;
                (name, document, args)
            }
        };
        let mut tree = document.tree.clone();
        if !args.is_empty() {
            let declared = tree.get("args").and_then(Value::as_object).cloned().unwrap_or_default();
            let merged = scope::merge(&declared, args.clone(), &format!("model `{name}`"))
                .map_err(|invalid| Problem::Config(invalid.under("args")))?;
            if let Value::Object(map) = &mut tree {
                map.insert("args".into(), Value::Object(merged));
            }
        }
        Ok((name.clone(), tree, Some(document)))
    }
}

fn unknown(name: &str, args: &Map<String, Value>) -> Invalid {
    let hint = match nearest(name, shipped::models()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            let names: Vec<_> = shipped::models().collect();
            format!("shipped are {}; a file of your own ends in .yaml", names.join(", "))
        }
    };
    let path = if args.is_empty() { "" } else { "name" };
    Invalid::new(path, format!("unknown model `{name}`; {hint}"))
}
