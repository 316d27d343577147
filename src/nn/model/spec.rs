//! The `model:` section of a run config.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::init::Init;
use super::{InitFrom, Model, family, scripted};
use crate::nn::layers::{Activation, LayerSpec};
use crate::util::exit_code::{ExitCode, fail};
use crate::util::json_schema::Either;
use crate::util::yaml::{self, Document, Invalid};

/// The network and, optionally, its initial weights: every form of [`ModelSource`] that is a mapping takes
/// `init_from` beside its own keys.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    pub source: ModelSource,
    pub init_from: Option<InitFrom>,
}

/// `small-cnn`, `my.yaml`, `{name: resnet18, args: {classes: 5}}`, `{file: my.yaml, args: {…}}`, or a whole
/// model in place: `{input: […], layers: {…}}`.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelSource {
    Shipped {
        name: String,
        args: Map<String, Value>,
    },
    /// `variant` is one of those that the file declares.
    File {
        file: String,
        variant: Option<String>,
        args: Map<String, Value>,
    },
    Inline(Map<String, Value>),
    /// `{torchscript: net.pt, input: [3, 32, 32]}`: a program and the shape of one sample; `{exported:
    /// net.pt2}` knows its shape, and `input` is empty until it is looked up. A run folder adds the checksum
    /// `sha256`.
    Program {
        language: Language,
        file: String,
        input: Vec<i64>,
        sha256: Option<String>,
    },
}

/// What Python wrote a network as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// `torch.jit.script(net).save(FILE)`.
    TorchScript,
    /// `torch.export.save(program, FILE)`.
    Exported,
}

impl Language {
    /// The key of the file's name.
    pub fn key(self) -> &'static str {
        match self {
            Self::TorchScript => "torchscript",
            Self::Exported => "exported",
        }
    }
}

impl JsonSchema for ModelSpec {
    fn schema_name() -> Cow<'static, str> {
        "ModelSpec".into()
    }

    /// Looser than the model language, whose layers may also be blocks of the user and whose values formulas.
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let layer = json!({"anyOf": [
            generator.subschema_for::<LayerSpec>(),
            generator.subschema_for::<Activation>(),
            generator.subschema_for::<Composite>(),
            {"type": ["string", "object"], "description": "A layer by its name, a block, or a name with its layer."},
        ]});
        let layers = json!({
            "description": "The layers: a list numbers them like `nn.Sequential`, a mapping names them as \
                PyTorch names attributes.",
            "anyOf": [{"type": "array", "items": layer}, {"type": "object"}],
        });
        json_schema!({
            "description": "A shipped network or a model file by its name, or a mapping.",
            "anyOf": [{"type": "string"}, {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "description": "A shipped network; `tikhonov init` writes them out."},
                    "file": {"type": "string", "format": "path", "description": "A model file of your own."},
                    "variant": {"type": "string", "description": "One of the `variants` of `file`."},
                    "args": {"type": "object", "description": "Arguments of the model, in the place of its \
                        defaults. In a whole model: its arguments and their defaults, used as `$width` or \
                        `${width * 2}`."},
                    "torchscript": {"type": "string", "format": "path", "description": "A TorchScript program of \
                        Python's, trained as it is."},
                    "exported": {"type": "string", "format": "path", "description": "A .pt2 file of \
                        torch.export.save, trained as it is."},
                    "sha256": {"type": "string", "description": "The checksum of `torchscript` or `exported`, \
                        which a run folder keeps."},
                    "input": {"type": "array", "description": "The shape of one sample, [F] or [C, H, W]; of \
                        `torchscript` and of a whole model. `exported` knows its own."},
                    "layers": layers,
                    "blocks": {"type": "object", "description": "Layer types of your own: `args` with defaults, \
                        and `layers`."},
                    "blocks_of": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
                        "description": "Shipped networks or .yaml files whose `blocks` are used too, and their `args` with the defaults."},
                    "order": {"type": "array", "items": {"type": "string"}, "description": "Names of siblings \
                        in the order of PyTorch's `state_dict()`, where it is not that of computation."},
                    "variants": {"type": "object", "description": "Arguments by the name of a variant."},
                    "published": {"type": ["string", "object"], "description": "The files of weights that fit, for \
                        `tikhonov models`."},
                    "init": {"type": "object", "description": "Initial weights by type of layer (`conv2d`, \
                        `conv_transpose2d`, `linear`) or by a pattern of names (`*.bias`): \
                        `{conv2d: kaiming_normal}`. PyTorch's when absent.",
                        "additionalProperties": generator.subschema_for::<Init>()},
                    "init_from": Either::<String, InitFrom>::json_schema(generator),
                },
                "additionalProperties": false,
            }],
        })
    }
}

/// The schema of layers that are made of layers.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
enum Composite {
    /// Layers one after the other, with their own prefix of names.
    Sequential(Value),
    /// Joins the channels of what its branches output.
    Concat(Vec<Value>),
    /// Adds the output of `layers` and that of `shortcut` (the input itself when absent).
    Residual {
        /// The layers.
        layers: Value,
        /// The layers of the other branch.
        shortcut: Option<Value>,
    },
    /// Multiplies the output of `layers` by that of `shortcut` (the input itself when absent); [C, 1, 1] goes
    /// with [C, H, W].
    Multiply {
        /// The layers.
        layers: Value,
        /// The layers of the other branch.
        shortcut: Option<Value>,
    },
    /// Subtracts the output of `layers` from that of `shortcut` (the input itself when absent).
    Subtract {
        /// The layers.
        layers: Value,
        /// The layers of the other branch.
        shortcut: Option<Value>,
    },
    /// An auxiliary head: hands on its input; in training its layers learn what the network learns.
    Aux {
        /// Of its loss, which is added to the network's.
        weight: f64,
        /// The layer before, by its name, whose output the head takes; what comes into its place when absent.
        from: Option<String>,
        /// Brings its answer to the height and width of the network's: `bilinear` or `nearest`.
        resize: Option<String>,
        /// The layers.
        layers: Value,
    },
    /// The layers `times` times, in the place of this entry; `{i}` in a name is the number, from 0.
    Repeat {
        /// How often: an integer or a formula.
        times: Value,
        /// The layers.
        layers: Value,
    },
}

impl<'de> Deserialize<'de> for ModelSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut map = match Value::deserialize(deserializer)? {
            Value::String(text) => return Ok(Self { source: ModelSource::named(text), init_from: None }),
            Value::Object(map) => map,
            other => {
                let message = format!("expected a model's name, a .yaml file or a mapping, got {other}");
                return Err(D::Error::custom(message));
            }
        };
        let init_from = match map.remove("init_from") {
            None | Some(Value::Null) => None,
            Some(Value::String(file)) => Some(InitFrom::new(file)),
            Some(value) => {
                Some(yaml::decode(&value).map_err(|invalid| D::Error::custom(invalid.under("init_from")))?)
            }
        };
        ModelSource::of_mapping(map).map(|source| Self { source, init_from })
    }
}

impl ModelSource {
    /// A name alone is a shipped model's, or a file's.
    fn named(text: String) -> Self {
        match text.ends_with(".yaml") || text.ends_with(".yml") {
            true => Self::File { file: text, variant: None, args: Map::new() },
            false => Self::Shipped { name: text, args: Map::new() },
        }
    }

    fn of_mapping<E: Error>(mut map: Map<String, Value>) -> Result<Self, E> {
        let word = |map: &mut Map<String, Value>, key: &'static str| match map.remove(key) {
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(E::custom(format!("`{key}` must be text, got {other}"))),
            None => Ok(None),
        };
        for language in [Language::TorchScript, Language::Exported] {
            let Some(file) = word(&mut map, language.key())? else { continue };
            let sha256 = word(&mut map, "sha256")?;
            let input = map.remove("input");
            if let Some(key) = map.keys().next() {
                let known: &'static [&'static str] = match language {
                    Language::TorchScript => &["torchscript", "input", "init_from"],
                    Language::Exported => &["exported", "input", "init_from"],
                };
                return Err(E::unknown_field(key, known));
            }
            let input: Vec<i64> = match (input, language) {
                (None, Language::Exported) => Vec::new(),
                (input, _) => yaml::decode(&input.unwrap_or_default())
                    .map_err(|_| E::custom("`input` must be the shape of one sample, such as [3, 32, 32]"))?,
            };
            return Ok(Self::Program { language, file, input, sha256 });
        }
        let (name, file) = (word(&mut map, "name")?, word(&mut map, "file")?);
        let variant = if file.is_some() { word(&mut map, "variant")? } else { None };
        if name.is_none() && file.is_none() {
            if map.contains_key("layers") {
                return Ok(Self::Inline(map));
            }
            return Err(E::custom("expected `name`, `file`, or a whole model with `input` and `layers`"));
        }
        let args = match map.remove("args") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(args)) => args,
            Some(other) => return Err(E::custom(format!("`args` must be a mapping, got {other}"))),
        };
        if let Some(key) = map.keys().next() {
            return Err(E::unknown_field(key, &["name", "file", "variant", "args", "init_from"]));
        }
        match (name, file) {
            (Some(name), None) => Ok(Self::Shipped { name, args }),
            (None, Some(file)) => Ok(Self::File { file, variant, args }),
            _ => Err(E::custom("give `name` or `file`, not both")),
        }
    }
}

impl Serialize for ModelSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut value = self.source.value();
        if let Some(init_from) = &self.init_from {
            if let Value::String(text) = value {
                let key = if matches!(self.source, ModelSource::File { .. }) { "file" } else { "name" };
                value = json!({key: text});
            }
            value["init_from"] = json!(init_from);
        }
        value.serialize(serializer)
    }
}

impl ModelSource {
    fn value(&self) -> Value {
        match self {
            Self::Shipped { name: text, args } | Self::File { file: text, variant: None, args }
                if args.is_empty() =>
            {
                json!(text)
            }
            Self::Shipped { name, args } => json!({"name": name, "args": args}),
            Self::File { file, variant: None, args } => json!({"file": file, "args": args}),
            Self::File { file, variant, args } => json!({"file": file, "variant": variant, "args": args}),
            Self::Inline(map) => Value::Object(map.clone()),
            Self::Program { language, file, input, sha256 } => {
                let mut value = json!({language.key(): file});
                if !input.is_empty() {
                    value["input"] = json!(input);
                }
                if let Some(sha256) = sha256 {
                    value["sha256"] = json!(sha256);
                }
                value
            }
        }
    }
}

/// An error in the run config, or in the model's own file.
pub(super) enum Problem {
    Config(Invalid),
    File(anyhow::Error),
}

impl Problem {
    pub fn into_error(self, key: &str) -> anyhow::Error {
        match self {
            Self::Config(invalid) => fail(ExitCode::Usage, invalid.under(key)),
            Self::File(error) => error,
        }
    }
}

impl ModelSpec {
    /// Whether it is a program of Python's, which is run to learn what it answers.
    pub fn is_program(&self) -> bool {
        matches!(self.source, ModelSource::Program { .. })
    }

    /// Checks the whole model. A mistake in a file of its own keeps that file's name and line in its message.
    pub fn validate(&self) -> Result<(), Invalid> {
        if let ModelSource::Program { language, input, .. } = &self.source {
            // The file itself is checked when it is opened (exit 4).
            let is_known = input.is_empty() && *language == Language::Exported;
            let is_shape = is_known
                || matches!(input.len(), 1..=3) && input.iter().all(|extent| (1..=1 << 24).contains(extent));
            let message = "expected the shape of one sample, [F] or [C, H, W], each at least 1";
            return is_shape.then_some(()).ok_or_else(|| Invalid::new("input", message));
        }
        self.model().map(drop).map_err(|problem| match problem {
            Problem::Config(invalid) => invalid,
            Problem::File(error) => Invalid::new("", format!("{error:#}")),
        })
    }

    /// The same model with its description and final arguments in place, independent of any file.
    pub fn inlined(&self) -> anyhow::Result<Self> {
        if let ModelSource::Program { language, file, input, sha256: known } = &self.source {
            let file = match std::path::absolute(file) {
                Ok(path) => path.to_string_lossy().into_owned(),
                Err(_) => file.clone(),
            };
            let sha256 = match known {
                Some(known) => known.clone(),
                None => scripted::fingerprint(&file)?,
            };
            let input = scripted::input(*language, &file, input)?;
            let source = ModelSource::Program { language: *language, file, input, sha256: Some(sha256) };
            return Ok(Self { source, init_from: self.init_from.clone() });
        }
        let (_, tree, _) = self.source.resolve().map_err(|problem| problem.into_error("model"))?;
        match tree {
            Value::Object(map) => {
                Ok(Self { source: ModelSource::Inline(map), init_from: self.init_from.clone() })
            }
            _ => Err(fail(ExitCode::Usage, "a model is a mapping with `input` and `layers`")),
        }
    }

    pub(super) fn model(&self) -> Result<Model, Problem> {
        let mut model = self.source.model()?;
        if let Some(init_from) = &self.init_from {
            let mark = init_from.mark(&mut model.params);
            mark.map_err(|invalid| Problem::Config(invalid.under("init_from")))?;
        }
        Ok(model)
    }
}

impl ModelSource {
    fn model(&self) -> Result<Model, Problem> {
        if let Self::Program { language, file, input, sha256 } = self {
            if let Some(known) = sha256
                && scripted::fingerprint(file).map_err(Problem::File)? != *known
            {
                let message = format!(
                    "{file} is not the program that this run was started with; put that one back under this \
                     name (a run folder keeps its own as program.pt)"
                );
                return Err(Problem::File(fail(ExitCode::Checkpoint, message)));
            }
            let open = || Model::from_program(*language, file, &scripted::input(*language, file, input)?);
            return open().map_err(Problem::File);
        }
        let (name, tree, document) = self.resolve()?;
        Model::from_tree(name, &tree).map_err(|invalid| match document {
            Some(document) => Problem::File(document.invalid_at("", invalid)),
            None => Problem::Config(invalid),
        })
    }

    /// The name, the tree with arguments in the place of their defaults, and the document it was read from.
    fn resolve(&self) -> Result<(String, Value, Option<Document>), Problem> {
        let (name, document, variant, args, folder) = match self {
            Self::Inline(map) => {
                let tree = family::with_blocks(Value::Object(map.clone()), None)?;
                return Ok(("inline".into(), family::chosen(tree, "inline", None, &Map::new())?, None));
            }
            // It has no tree: see `model`.
            Self::Program { file, .. } => return Ok((file.clone(), Value::Null, None)),
            Self::File { file, variant, args } => {
                let document = Document::read(file).map_err(Problem::File)?;
                (file, document, variant.clone(), args, std::path::Path::new(file).parent())
            }
            Self::Shipped { name, args } => {
                let shipped = family::shipped(name).map_err(Problem::File)?;
                let shipped = shipped.ok_or_else(|| family::unknown(name, !args.is_empty()))?;
                (name, shipped.document, shipped.variant, args, None)
            }
        };
        let tree = family::with_blocks(document.tree.clone(), folder)?;
        let tree = family::chosen(tree, name, variant.as_deref(), args)?;
        Ok((name.clone(), tree, Some(document)))
    }
}
