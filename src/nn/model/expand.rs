//! The model language: arguments, formulas, blocks, repeats and names become a plain tree of layer specs.
//!
//! - A mapping names its layers as PyTorch names attributes, a list numbers them like `nn.Sequential`; either
//!   inside the other is a sequence with its own prefix. A name that starts with `_` adds nothing to the
//!   parameter names; `__x` is the name `_x`.
//! - A layer is `relu` or `{conv2d: {out_channels: 16, kernel_size: 3}}`; input sizes are inferred.
//! - `{residual: {layers: …, shortcut: …}}` adds, `multiply` and `subtract` (shortcut − layers) likewise,
//!   `{concat: […]}` joins channels, `{sequential: …}` is a sequence; their children live at their own prefix.
//! - `{aux: {weight: 0.4, layers: …}}` hands on its input; its layers learn in training (auxiliary.rs).
//! - `{repeat: {times: 3, layers: …}}` in a list, or under a silent name, goes on in its parent: lists keep
//!   counting, mapping names count by `{i}` (from 0; `{i + 1}` too; another letter by `index: j`).
//! - `{if: {test: "${bias}", layers: …, else: …}}` does so too, with the layers or with the others.
//! - `{$block: {width: 8}}` is the layer or block that the argument `block` names. In the place of a list or
//!   mapping of layers it is the layers of that block (or of the block `block`), without a level of their own.
//! - No child is called as a composite or nearly so (naming.rs): a slip must not become a name.
//! - `args:` declares arguments with defaults (null: must be given), used as `$width` or
//!   `"${width * 2}"`; `blocks:` declares layer types with arguments of their own.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::auxiliary::AuxiliaryItem;
use super::block::{Block, COMPOSITES, single};
use super::expr::is_name;
use super::joined::Join;
use super::naming::Kinds;
use super::scope::{Scope, arguments, fill, merge, name};
use super::tree::segment;
use crate::nn::layers::{LayerSpec, Shape};
use crate::util::yaml::{self, Invalid, nearest};

/// More layers than this are a mistake in a `repeat`.
const MAX_LAYERS: usize = 10_000;
/// Sequences inside sequences; blocks that hold blocks count too.
const MAX_DEPTH: usize = 48;

const NO_LAYERS: &str = "holds no layers; write `identity` for a layer that does nothing";

/// One place in the network, before shapes are known.
#[derive(Debug)]
pub struct Item {
    /// The name as written (`conv1`, `_relu`) or the number in a list.
    pub label: String,
    /// The key path in the model file.
    pub source: String,
    pub body: Body,
}

#[derive(Debug)]
pub enum Body {
    Layer(LayerSpec),
    Sequence(Vec<Item>),
    Join { join: Join, layers: Vec<Item>, shortcut: Option<Vec<Item>> },
    Concat(Vec<Item>),
    Auxiliary(AuxiliaryItem),
}

pub struct Expanded {
    pub input: Shape,
    pub layers: Vec<Item>,
    /// The model's arguments with their values.
    pub args: Scope,
}

/// Expands a description whose arguments hold their final values.
pub fn expand(
    args: &Map<String, Value>,
    blocks: &BTreeMap<String, Block>,
    input: &Value,
    layers: &Value,
) -> Result<Expanded, Invalid> {
    let globals = arguments(args, &Scope::new(), "args")?;
    for (name, block) in blocks {
        let path = format!("blocks.{name}");
        if !is_name(name) {
            return Err(Invalid::new(path, "a block's name is made of letters, digits and `_`"));
        }
        let taken = LayerSpec::kinds().chain(COMPOSITES).chain(["layers", "shortcut", "times"]);
        if taken.into_iter().any(|kind| kind == name) {
            return Err(Invalid::new(
                path,
                format!("`{name}` is a word of the language already; call the block something else"),
            ));
        }
        if let Some(arg) = block.args.keys().find(|arg| !is_name(arg)) {
            let path = format!("{path}.args.{arg}");
            return Err(Invalid::new(path, "an argument's name is made of letters, digits and `_`"));
        }
    }
    let input: Shape =
        yaml::decode(&fill(input, &globals, "input")?).map_err(|invalid| invalid.under("input"))?;
    let mut expander = Expander { blocks, globals: &globals, stack: Vec::new(), depth: 0, layers: 0 };
    let layers = expander.children(layers, "layers", &globals)?;
    Ok(Expanded { input, layers, args: globals })
}

/// Whether a value can only be the arguments of a layer, so that the key above it must be a layer's name.
fn looks_like_arguments(map: &Map<String, Value>) -> bool {
    map.values().any(|value| match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
        Value::String(text) => text.starts_with('$'),
        Value::Array(list) => list.iter().any(Value::is_number),
        Value::Object(_) => false,
    })
}

struct Expander<'a> {
    blocks: &'a BTreeMap<String, Block>,
    globals: &'a Scope,
    stack: Vec<String>,
    depth: usize,
    layers: usize,
}

impl Expander<'_> {
    /// The children of a composite: a list is numbered, a mapping names them.
    fn children(&mut self, value: &Value, source: &str, scope: &Scope) -> Result<Vec<Item>, Invalid> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Invalid::new(source, format!("more than {MAX_DEPTH} levels inside each other")));
        }
        let mut items = Vec::new();
        self.splice(value, source, scope, &mut 0, &mut items)?;
        self.depth -= 1;
        if items.is_empty() {
            return Err(Invalid::new(source, NO_LAYERS));
        }
        Ok(items)
    }

    fn splice(
        &mut self,
        value: &Value,
        source: &str,
        scope: &Scope,
        next: &mut usize,
        into: &mut Vec<Item>,
    ) -> Result<(), Invalid> {
        match value {
            Value::Array(list) if list.is_empty() => return Err(Invalid::new(source, NO_LAYERS)),
            Value::Object(map) if map.is_empty() => return Err(Invalid::new(source, NO_LAYERS)),
            // The layers of a block without a level of their own.
            Value::Object(map) if map.len() == 1 && map.keys().all(|key| key.starts_with('$')) => {
                for (key, args) in map {
                    let source = format!("{source}.{key}");
                    let kind = self.named(key, &source, scope)?;
                    self.within(&kind, args, &source, scope, |expander, layers, source, scope| {
                        expander.splice(layers, source, scope, next, into)
                    })?;
                }
            }
            Value::Array(list) => {
                for (index, value) in list.iter().enumerate() {
                    let source = format!("{source}.{index}");
                    match single(value) {
                        Some((kind @ ("repeat" | "if"), args)) => {
                            self.spliced(kind, args, &format!("{source}.{kind}"), scope, next, into)?;
                        }
                        _ => {
                            into.push(self.item(next.to_string(), value, source, scope)?);
                            *next += 1;
                        }
                    }
                }
            }
            Value::Object(map) => {
                let parent = source.rsplit('.').next().unwrap_or(source);
                for (key, value) in map {
                    let source = format!("{source}.{key}");
                    let label = name(key, scope).map_err(|message| Invalid::new(source.clone(), message))?;
                    if let Some(message) = self.kinds().refuse_name(&label, value, parent) {
                        return Err(Invalid::new(source, message));
                    }
                    match single(value) {
                        Some((kind @ ("repeat" | "if"), args)) if segment(&label).is_none() => {
                            self.spliced(kind, args, &format!("{source}.{kind}"), scope, &mut 0, into)?;
                        }
                        _ => into.push(self.item(label, value, source, scope)?),
                    }
                }
            }
            other => {
                let message = format!("expected a mapping or a list of layers, got {other}");
                return Err(Invalid::new(source, message));
            }
        }
        Ok(())
    }

    /// A `repeat` or an `if`, whose layers go on in their parent.
    fn spliced(
        &mut self,
        kind: &str,
        value: &Value,
        source: &str,
        scope: &Scope,
        next: &mut usize,
        into: &mut Vec<Item>,
    ) -> Result<(), Invalid> {
        if kind == "repeat" {
            return self.repeat(value, source, scope, next, into);
        }
        let map = keys(value, source, &["test", "layers", "else"], &["test", "layers"])?;
        let path = format!("{source}.test");
        let branch = match fill(&map["test"], scope, &path)? {
            Value::Bool(true) => "layers",
            Value::Bool(false) => "else",
            other => {
                let message =
                    format!("{other} is neither true nor false; write \"${{n == 2}}\" or $argument");
                return Err(Invalid::new(path, message));
            }
        };
        match map.get(branch) {
            None | Some(Value::Null) => Ok(()),
            Some(layers) => self.splice(layers, &format!("{source}.{branch}"), scope, next, into),
        }
    }

    fn repeat(
        &mut self,
        value: &Value,
        source: &str,
        scope: &Scope,
        next: &mut usize,
        into: &mut Vec<Item>,
    ) -> Result<(), Invalid> {
        let map = keys(value, source, &["times", "layers", "index"], &["times", "layers"])?;
        let path = format!("{source}.times");
        // A formula may come to 0, as `depth - 1` does.
        let least = i64::from(!map["times"].is_string());
        let times = fill(&map["times"], scope, &path)?;
        let times =
            times.as_i64().filter(|times| (least..=MAX_LAYERS as i64).contains(times)).ok_or_else(|| {
                let range = format!("expected an integer from {least} to {MAX_LAYERS}");
                Invalid::new(path, format!("{times} is out of range: {range}"))
            })?;
        let index = match map.get("index") {
            None => "i",
            Some(Value::String(name)) if is_name(name) => name,
            Some(other) => {
                let message = format!("{other} is no name: letters, digits and `_` are");
                return Err(Invalid::new(format!("{source}.index"), message));
            }
        };
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Invalid::new(source, format!("more than {MAX_DEPTH} levels inside each other")));
        }
        let mut scope = scope.clone();
        for i in 0..times {
            scope.insert(index.into(), i.into());
            self.splice(&map["layers"], &format!("{source}.layers"), &scope, next, into)?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn item(&mut self, label: String, value: &Value, source: String, scope: &Scope) -> Result<Item, Invalid> {
        self.layers += 1;
        if self.layers > MAX_LAYERS {
            return Err(Invalid::new(
                source,
                format!("more than {MAX_LAYERS} layers; check `times` and the blocks"),
            ));
        }
        let body = self.body(value, &source, scope)?;
        Ok(Item { label, source, body })
    }

    fn body(&mut self, value: &Value, source: &str, scope: &Scope) -> Result<Body, Invalid> {
        match value {
            Value::String(text) if text.starts_with('$') => {
                let value = fill(value, scope, source)?;
                match value {
                    Value::String(_) => self.body(&value, source, &Scope::new()),
                    other => Err(Invalid::new(source, format!("`{text}` is {other}, which is no layer"))),
                }
            }
            Value::String(kind) => self.layer(kind, &Value::Null, source, source, scope),
            Value::Array(_) => Ok(Body::Sequence(self.children(value, source, scope)?)),
            Value::Object(map) => {
                if let Some((kind, args)) = single(value) {
                    let inner = format!("{source}.{kind}");
                    if kind.starts_with('$') {
                        let kind = self.named(kind, &inner, scope)?;
                        return self.layer(&kind, args, source, &inner, scope);
                    }
                    if COMPOSITES.contains(&kind) {
                        return self.composite(kind, args, &inner, scope);
                    }
                    // `linear: {linear: {…}}` inside a sequence names a layer after its type.
                    if self.is_kind(kind) {
                        return self.layer(kind, args, source, &inner, scope);
                    }
                }
                let key = source.rsplit('.').next().unwrap_or(source);
                if looks_like_arguments(map) {
                    return Err(Invalid::new(source, self.kinds().no_layer(key)));
                }
                if let Some((kind, args)) = single(value) {
                    let inner = format!("{source}.{kind}");
                    if args.as_object().is_some_and(|args| args.is_empty() || looks_like_arguments(args)) {
                        return Err(Invalid::new(inner, self.kinds().no_layer(kind)));
                    }
                    if let Some(message) = self.kinds().refuse_composite(kind, args) {
                        return Err(Invalid::new(inner, message));
                    }
                }
                Ok(Body::Sequence(self.children(value, source, scope)?))
            }
            other => {
                let message = format!("{other} is no layer; write NAME: {{TYPE: {{ARGUMENT: VALUE}}}}");
                Err(Invalid::new(source, message))
            }
        }
    }

    fn composite(&mut self, kind: &str, args: &Value, source: &str, scope: &Scope) -> Result<Body, Invalid> {
        if let Some(join) = Join::of(kind) {
            let map = keys(args, source, &["layers", "shortcut"], &["layers"])?;
            let layers = self.children(&map["layers"], &format!("{source}.layers"), scope)?;
            let shortcut = match map.get("shortcut") {
                None | Some(Value::Null) => None,
                Some(value) => Some(self.branch(value, &format!("{source}.shortcut"), scope)?)
                    .filter(|items| !items.is_empty()),
            };
            return Ok(Body::Join { join, layers, shortcut });
        }
        match kind {
            "aux" => self.auxiliary(args, source, scope),
            "concat" => Ok(Body::Concat(self.children(args, source, scope)?)),
            "repeat" | "if" => {
                let mut items = Vec::new();
                self.spliced(kind, args, source, scope, &mut 0, &mut items)?;
                if items.is_empty() {
                    return Err(Invalid::new(source, NO_LAYERS));
                }
                Ok(Body::Sequence(items))
            }
            _ => Ok(Body::Sequence(self.children(args, source, scope)?)),
        }
    }

    fn auxiliary(&mut self, args: &Value, source: &str, scope: &Scope) -> Result<Body, Invalid> {
        let known = ["weight", "from", "resize", "layers"];
        let map = keys(args, source, &known, &["weight", "layers"])?;
        let filled = |key: &str| {
            let path = format!("{source}.{key}");
            let value = map.get(key).map_or(Ok(Value::Null), |value| fill(value, scope, &path));
            value.map(|value| (value, path))
        };
        let (value, path) = filled("weight")?;
        let weight = value.as_f64().filter(|weight| *weight >= 0.0 && weight.is_finite());
        let message = || format!("{value} is no weight of a loss: expected a number from 0 up");
        let weight = weight.ok_or_else(|| Invalid::new(path, message()))?;
        let from = match filled("from")? {
            (Value::Null, _) => None,
            (Value::String(name), _) => Some(name),
            (other, path) => {
                let message = format!("{other} is no name of a layer before, such as `backbone.layer3`");
                return Err(Invalid::new(path, message));
            }
        };
        let resize = match filled("resize")? {
            (Value::Null, _) => None,
            (mode, path) => {
                let spec = yaml::decode(&json!({"like": "input", "mode": mode}));
                Some(spec.map_err(|invalid| Invalid::new(path, invalid.message))?)
            }
        };
        let layers = self.children(&map["layers"], &format!("{source}.layers"), scope)?;
        Ok(Body::Auxiliary(AuxiliaryItem { weight, from, resize, layers }))
    }

    /// A shortcut: children, or one layer or composite alone, which then adds nothing to the names. Empty where
    /// it is an `if` that gives nothing: the input itself.
    fn branch(&mut self, value: &Value, source: &str, scope: &Scope) -> Result<Vec<Item>, Invalid> {
        if let Some(("if", args)) = single(value) {
            let mut items = Vec::new();
            self.spliced("if", args, &format!("{source}.if"), scope, &mut 0, &mut items)?;
            return Ok(items);
        }
        let alone = match single(value) {
            Some((kind, args)) => {
                COMPOSITES.contains(&kind)
                    || self.is_kind(kind)
                        && !args.is_array()
                        && !single(args).is_some_and(|(inner, _)| self.is_kind(inner))
            }
            None => value.is_string(),
        };
        if alone {
            return Ok(vec![self.item("_shortcut".into(), value, source.to_string(), scope)?]);
        }
        self.children(value, source, scope)
    }

    /// A layer or a block. `source` is where it stands, `inner` where its arguments stand.
    fn layer(
        &mut self,
        kind: &str,
        args: &Value,
        source: &str,
        inner: &str,
        scope: &Scope,
    ) -> Result<Body, Invalid> {
        if self.blocks.contains_key(kind) {
            return self.block(kind, args, inner, scope);
        }
        if !self.is_kind(kind) {
            return Err(Invalid::new(source, self.kinds().no_layer(kind)));
        }
        let args = match fill(args, scope, inner)? {
            Value::Null => Value::Object(Map::new()),
            args => args,
        };
        let tagged = Value::Object(Map::from_iter([(kind.to_string(), args)]));
        let spec = if LayerSpec::is_activation(kind) {
            yaml::decode(&tagged).map(LayerSpec::Activation)
        } else {
            yaml::decode(&tagged)
        };
        Ok(Body::Layer(spec.map_err(|invalid| invalid.under(source))?))
    }

    /// The layer or block that a key `$name` means: the argument's value, or the block of that name.
    fn named(&self, key: &str, source: &str, scope: &Scope) -> Result<String, Invalid> {
        let name = key.trim_start_matches('$');
        if !scope.contains_key(name) && self.blocks.contains_key(name) {
            return Ok(name.to_owned());
        }
        match fill(&key.into(), scope, source)? {
            Value::String(kind) => Ok(kind),
            other => Err(Invalid::new(source, format!("`{key}` is {other}, which is no layer"))),
        }
    }

    fn block(&mut self, kind: &str, args: &Value, inner: &str, scope: &Scope) -> Result<Body, Invalid> {
        self.within(kind, args, inner, scope, |expander, layers, source, scope| {
            expander.children(layers, source, scope).map(Body::Sequence)
        })
    }

    /// What `read` makes of the layers of the block `kind`, its arguments in scope.
    fn within<T>(
        &mut self,
        kind: &str,
        args: &Value,
        inner: &str,
        scope: &Scope,
        read: impl FnOnce(&mut Self, &Value, &str, &Scope) -> Result<T, Invalid>,
    ) -> Result<T, Invalid> {
        let blocks = self.blocks;
        let Some(block) = blocks.get(kind) else {
            return Err(Invalid::new(inner, self.kinds().no_layer(kind)));
        };
        if self.stack.iter().any(|name| name == kind) {
            let chain = [self.stack.as_slice(), &[kind.to_string()]].concat().join("` → `");
            return Err(Invalid::new(inner, format!("a block cannot hold itself: `{chain}`")));
        }
        let given = match fill(args, scope, inner)? {
            Value::Null => Map::new(),
            Value::Object(map) => map,
            other => {
                let message = format!("expected the arguments of block `{kind}` as a mapping, got {other}");
                return Err(Invalid::new(inner, message));
            }
        };
        let place = format!("block `{kind}`");
        let merged = merge(&block.args, given, &place, false).map_err(|invalid| invalid.under(inner))?;
        if let Some(missing) = merged.iter().find(|(_, value)| value.is_null()) {
            return Err(Invalid::new(inner, format!("block `{kind}` wants the argument `{}`", missing.0)));
        }
        let scope = arguments(&merged, self.globals, &format!("blocks.{kind}.args"))?;
        self.stack.push(kind.to_string());
        let result = read(self, &block.layers, &format!("blocks.{kind}.layers"), &scope)?;
        self.stack.pop();
        Ok(result)
    }

    fn kinds(&self) -> Kinds<'_> {
        Kinds(self.blocks)
    }

    fn is_kind(&self, kind: &str) -> bool {
        self.kinds().is_layer(kind)
    }
}

/// A mapping with these keys and no others.
fn keys<'a>(
    value: &'a Value,
    path: &str,
    known: &[&str],
    needed: &[&str],
) -> Result<&'a Map<String, Value>, Invalid> {
    let listed = || known.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(" and ");
    let Value::Object(map) = value else {
        return Err(Invalid::new(path, format!("expected a mapping with {}, got {value}", listed())));
    };
    if let Some(key) = map.keys().find(|key| !known.contains(&key.as_str())) {
        let hint = nearest(key, known.iter().copied())
            .map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        let message = format!("unknown key{hint} (expected {})", listed());
        return Err(Invalid::new(format!("{path}.{key}"), message));
    }
    match needed.iter().find(|key| !map.contains_key(**key)) {
        Some(key) => Err(Invalid::new(path, format!("`{key}` is missing"))),
        None => Ok(map),
    }
}
