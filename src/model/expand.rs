//! The model language: arguments, formulas, blocks, repeats and names become a plain tree of layer specs.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::expr::{evaluate, is_name, lookup};
use crate::layers::{LayerSpec, Shape};
use crate::yaml::{self, Invalid, nearest};

/// More layers than this are a mistake in a `repeat`.
const MAX_LAYERS: usize = 10_000;
/// Sequences inside sequences; blocks that hold blocks count too.
const MAX_DEPTH: usize = 48;
const COMPOSITES: [&str; 4] = ["concat", "repeat", "residual", "sequential"];

/// A layer type of the user's own.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// Arguments and their defaults; null for one that must be given.
    #[serde(default)]
    args: Map<String, Value>,
    layers: Value,
}

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
    Residual { layers: Vec<Item>, shortcut: Option<Vec<Item>> },
    Concat(Vec<Item>),
}

pub struct Expanded {
    pub input: Shape,
    pub layers: Vec<Item>,
}

type Scope = Map<String, Value>;

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
        if LayerSpec::kinds().chain(COMPOSITES).any(|kind| kind == name) {
            return Err(Invalid::new(
                path,
                format!("`{name}` is a layer already; call the block something else"),
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
    Ok(Expanded { input, layers })
}

/// Evaluates arguments in order: each may use those before it, and those of `outer`.
fn arguments(args: &Map<String, Value>, outer: &Scope, path: &str) -> Result<Scope, Invalid> {
    let mut scope = outer.clone();
    for (name, value) in args {
        let path = format!("{path}.{name}");
        if !is_name(name) {
            return Err(Invalid::new(path, "an argument's name is made of letters, digits and `_`"));
        }
        if value.is_null() {
            return Err(Invalid::new(path, "has no default: give it a value"));
        }
        let value = fill(value, &scope, &path)?;
        scope.insert(name.clone(), value);
    }
    Ok(scope)
}

/// Replaces `$name` and `${formula}` in a value, however deep.
fn fill(value: &Value, scope: &Scope, path: &str) -> Result<Value, Invalid> {
    Ok(match value {
        Value::String(text) => match text.strip_prefix('$') {
            Some(name) if is_name(name) => lookup(name, scope).cloned(),
            Some(rest) => match rest.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
                Some(formula) if is_name(formula.trim()) => lookup(formula.trim(), scope).cloned(),
                Some(formula) => evaluate(formula, scope),
                None => {
                    Err(format!("`{text}`: a `$` starts an argument: $name, or \"${{name * 2}}\" in quotes"))
                }
            },
            None => Ok(value.clone()),
        }
        .map_err(|message| Invalid::new(path, message))?,
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(index, value)| fill(value, scope, &format!("{path}.{index}")))
            .collect::<Result<_, _>>()?,
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| Ok((key.clone(), fill(value, scope, &format!("{path}.{key}"))?)))
            .collect::<Result<Map<_, _>, Invalid>>()?
            .into(),
        plain => plain.clone(),
    })
}

/// The only entry of a mapping.
fn single(value: &Value) -> Option<(&str, &Value)> {
    let map = value.as_object().filter(|map| map.len() == 1)?;
    map.iter().next().map(|(key, value)| (key.as_str(), value))
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
        let before = into.len();
        match value {
            Value::Array(list) => {
                for (index, value) in list.iter().enumerate() {
                    let source = format!("{source}.{index}");
                    if let Some(("repeat", repeat)) = single(value) {
                        self.repeat(repeat, &format!("{source}.repeat"), scope, next, into)?;
                    } else {
                        into.push(self.item(next.to_string(), value, source, scope)?);
                        *next += 1;
                    }
                }
            }
            Value::Object(map) => {
                for (key, value) in map {
                    let source = format!("{source}.{key}");
                    let label = name(key, scope).map_err(|message| Invalid::new(source.clone(), message))?;
                    match single(value) {
                        Some(("repeat", repeat)) if label.starts_with('_') => {
                            self.repeat(repeat, &format!("{source}.repeat"), scope, &mut 0, into)?;
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
        if into.len() == before {
            return Err(Invalid::new(
                source,
                "holds no layers; write `identity` for a layer that does nothing",
            ));
        }
        Ok(())
    }

    fn repeat(
        &mut self,
        value: &Value,
        source: &str,
        scope: &Scope,
        next: &mut usize,
        into: &mut Vec<Item>,
    ) -> Result<(), Invalid> {
        let map = keys(value, source, &["times", "layers"], &["times", "layers"])?;
        let path = format!("{source}.times");
        let times = fill(&map["times"], scope, &path)?;
        let times =
            times.as_i64().filter(|times| (1..=MAX_LAYERS as i64).contains(times)).ok_or_else(|| {
                Invalid::new(
                    path,
                    format!("{times} is out of range: expected an integer from 1 to {MAX_LAYERS}"),
                )
            })?;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Invalid::new(source, format!("more than {MAX_DEPTH} levels inside each other")));
        }
        let mut scope = scope.clone();
        for i in 0..times {
            scope.insert("i".into(), i.into());
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
                    return Err(Invalid::new(source, self.no_layer(key)));
                }
                if let Some((kind, Value::Object(args))) = single(value)
                    && (args.is_empty() || looks_like_arguments(args))
                {
                    return Err(Invalid::new(format!("{source}.{kind}"), self.no_layer(kind)));
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
        match kind {
            "residual" => {
                let map = keys(args, source, &["layers", "shortcut"], &["layers"])?;
                let layers = self.children(&map["layers"], &format!("{source}.layers"), scope)?;
                let shortcut = match map.get("shortcut") {
                    None | Some(Value::Null) => None,
                    Some(value) => Some(self.branch(value, &format!("{source}.shortcut"), scope)?),
                };
                Ok(Body::Residual { layers, shortcut })
            }
            "concat" => Ok(Body::Concat(self.children(args, source, scope)?)),
            "repeat" => {
                let mut items = Vec::new();
                self.repeat(args, source, scope, &mut 0, &mut items)?;
                Ok(Body::Sequence(items))
            }
            _ => Ok(Body::Sequence(self.children(args, source, scope)?)),
        }
    }

    /// A shortcut: children, or one layer alone, which then adds nothing to the names.
    fn branch(&mut self, value: &Value, source: &str, scope: &Scope) -> Result<Vec<Item>, Invalid> {
        let alone = match single(value) {
            Some((kind, args)) => {
                self.is_kind(kind)
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
            return Err(Invalid::new(source, self.no_layer(kind)));
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

    fn block(&mut self, kind: &str, args: &Value, inner: &str, scope: &Scope) -> Result<Body, Invalid> {
        let blocks = self.blocks;
        let Some(block) = blocks.get(kind) else {
            return Err(Invalid::new(inner, self.no_layer(kind)));
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
        let merged = merge(&block.args, given, &place).map_err(|invalid| invalid.under(inner))?;
        if let Some(missing) = merged.iter().find(|(_, value)| value.is_null()) {
            return Err(Invalid::new(inner, format!("block `{kind}` wants the argument `{}`", missing.0)));
        }
        let scope = arguments(&merged, self.globals, &format!("blocks.{kind}.args"))?;
        self.stack.push(kind.to_string());
        let items = self.children(&block.layers, &format!("blocks.{kind}.layers"), &scope)?;
        self.stack.pop();
        Ok(Body::Sequence(items))
    }

    fn is_kind(&self, kind: &str) -> bool {
        self.blocks.contains_key(kind) || LayerSpec::kinds().any(|known| known == kind)
    }

    fn no_layer(&self, kind: &str) -> String {
        if self.is_kind(kind) {
            return format!(
                "`{kind}` is a layer that wants a name: write NAME: {{{kind}: {{…}}}}, or `- {kind}: {{…}}` in a list"
            );
        }
        let mut known: Vec<&str> = LayerSpec::kinds().chain(COMPOSITES).collect();
        known.extend(self.blocks.keys().map(String::as_str));
        match nearest(kind, known.iter().copied()) {
            Some(near) => format!("unknown layer `{kind}`; did you mean `{near}`?"),
            None => {
                known.sort_unstable();
                format!("unknown layer `{kind}`; layers are {}", known.join(", "))
            }
        }
    }
}

/// Lays given arguments over the declared ones: none unknown, and none of another type than its default.
pub fn merge(
    declared: &Map<String, Value>,
    given: Map<String, Value>,
    place: &str,
) -> Result<Map<String, Value>, Invalid> {
    let mut merged = declared.clone();
    for (name, value) in given {
        let Some(default) = merged.get(&name) else {
            let hint = match nearest(&name, declared.keys().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None if declared.is_empty() => "it has none".to_string(),
                None => {
                    let known: Vec<_> = declared.keys().map(|key| format!("`{key}`")).collect();
                    format!("its arguments are {}", known.join(", "))
                }
            };
            return Err(Invalid::new(name.clone(), format!("{place} has no argument `{name}`; {hint}")));
        };
        let formula = default.as_str().is_some_and(|text| text.starts_with('$'));
        if !default.is_null() && !formula && kind(default) != kind(&value) {
            let message = format!("expected {}, as the default {default} is, got {value}", kind(default));
            return Err(Invalid::new(name, message));
        }
        merged.insert(name, value);
    }
    Ok(merged)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
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

/// A child's name, its `{formulas}` evaluated.
fn name(key: &str, scope: &Scope) -> Result<String, String> {
    let mut name = String::new();
    let mut rest = key;
    while let Some((plain, formula)) = rest.split_once('{') {
        let (formula, after) =
            formula.split_once('}').ok_or_else(|| format!("`{key}`: the `{{` is never closed"))?;
        name.push_str(plain);
        name.push_str(&evaluate(formula, scope)?.to_string());
        rest = after;
    }
    name.push_str(rest);
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(format!("`{name}` is no name for a layer: letters, digits and `_` are"));
    }
    Ok(name)
}
