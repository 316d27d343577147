//! The checked tree: every layer with its place, its names and its shapes.

use super::expand::{Body, Item};
use super::joined::Join;
use super::scripted::Script;
use crate::nn::layers::{LayerSpec, Param, Shape, ShapeError, Upsample, shown};
use crate::util::yaml::Invalid;

/// Limit of values in one tensor of one sample, and in one weight.
const MAX_VALUES: i64 = 1 << 40;

/// A layer or a composite in its place.
#[derive(Debug)]
pub(crate) struct Node {
    /// The name as written: `conv1`, `0`, or `_relu`, which adds nothing to the parameter names.
    pub label: String,
    /// The prefix of its parameters: `layer1.0.conv1`; empty at the root.
    pub path: String,
    /// Its path with the silent names in it, for messages.
    pub place: String,
    /// The key path in the model file.
    pub source: String,
    pub op: Op,
    pub input: Shape,
    pub output: Shape,
    /// Of `Join`: the layers, then the shortcut where it has one.
    pub children: Vec<Node>,
}

/// What a node computes.
#[derive(Debug)]
pub(crate) enum Op {
    Layer(LayerSpec),
    /// One child after the other.
    Sequential,
    /// A TorchScript program: the whole network.
    Script(Script),
    /// The first child and the second, or the input.
    Join(Join),
    /// All children on the same input, joined along the channels.
    Concat,
    /// The output of the only child, a sequence, resized to the height and width of its input.
    Like(Upsample),
}

impl Node {
    /// The layers, in definition order.
    pub fn leaves(&self) -> Vec<&Node> {
        if let Op::Layer(_) | Op::Script(_) = self.op {
            return vec![self];
        }
        self.children.iter().flat_map(Node::leaves).collect()
    }

    /// A layer's tensors under their full names.
    pub fn params(&self) -> Vec<Param> {
        let spec = match &self.op {
            Op::Layer(spec) => spec,
            Op::Script(script) => return script.params.clone(),
            _ => return Vec::new(),
        };
        let mut params = spec.layer().params(&self.input);
        for param in &mut params {
            param.name = join(&self.path, &param.name);
        }
        params
    }

    /// Whether its tensor belongs to the module around it.
    pub fn is_bare_parameter(&self) -> bool {
        matches!(&self.op, Op::Layer(spec) if spec.layer().is_bare_parameter())
    }

    /// The name as written, without the `_` of a silent one.
    pub fn name(&self) -> &str {
        self.label.strip_prefix('_').unwrap_or(&self.label)
    }

    /// The shape that comes out where `input` comes in; None where it does not fit, or not the weights.
    pub fn output_of(&self, input: &[i64]) -> Option<Shape> {
        let (first, rest) = match &self.op {
            Op::Layer(spec) => {
                let layer = spec.layer();
                let output = layer.output_shape(input).ok().filter(|output| volume(output).is_some())?;
                return (layer.params(input) == layer.params(&self.input)).then_some(output);
            }
            Op::Sequential => {
                return self.children.iter().try_fold(input.to_vec(), |shape, child| child.output_of(&shape));
            }
            Op::Join(join) => {
                let (layers, shortcut) = self.children.split_first()?;
                let other = match shortcut.first() {
                    Some(shortcut) => shortcut.output_of(input)?,
                    None => input.to_vec(),
                };
                return join.shape(&layers.output_of(input)?, &other);
            }
            Op::Concat => self.children.split_first()?,
            Op::Like(upsample) => {
                let layers = self.children.first()?.output_of(input)?;
                return upsample.like_shape(&layers, input).ok().filter(|output| volume(output).is_some());
            }
            Op::Script(_) => return None,
        };
        let mut output = first.output_of(input)?;
        for branch in rest {
            let other = branch.output_of(input)?;
            if other[1..] != output[1..] {
                return None;
            }
            output[0] += other[0];
        }
        Some(output)
    }

    /// What it computes, as text.
    pub fn structure(&self) -> Result<String, serde_json::Error> {
        let composite = match &self.op {
            Op::Layer(spec) => return serde_json::to_string(spec),
            Op::Script(_) => "script",
            Op::Sequential => "sequential",
            Op::Join(join) => join.word(),
            Op::Concat => "concat",
            Op::Like(upsample) => &format!("upsample{}", serde_json::to_string(upsample)?),
        };
        let children: Vec<_> = self.children.iter().map(Node::structure).collect::<Result<_, _>>()?;
        Ok(format!("{composite}[{}]", children.join(",")))
    }

    pub fn multiply_adds(&self) -> u64 {
        match &self.op {
            Op::Layer(spec) => spec.layer().multiply_adds(&self.input, &self.output),
            _ => 0,
        }
    }

    pub fn min_batch(&self) -> i64 {
        match &self.op {
            Op::Layer(spec) => spec.layer().min_batch(&self.input),
            _ => 1,
        }
    }
}

/// What a label adds to the parameter names: nothing where it starts with `_`, `_x` where it is `__x`.
pub(super) fn segment(label: &str) -> Option<&str> {
    match label.strip_prefix('_') {
        Some(rest) if rest.starts_with('_') => Some(rest),
        Some(_) => None,
        None => Some(label),
    }
}

/// `a.b`, or `b` where `a` is empty.
pub(crate) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_string() } else { format!("{prefix}.{name}") }
}

/// Follows the shapes through the layers.
pub(super) fn check(layers: Vec<Item>, input: &[i64]) -> Result<Node, Invalid> {
    if !matches!(input.len(), 1..=3) || input.iter().any(|extent| *extent < 1) || volume(input).is_none() {
        let message = format!("{} is no input: expected [F] or [C, H, W], each at least 1", shown(input));
        return Err(Invalid::new("input", message));
    }
    let root =
        Place { label: String::new(), path: String::new(), place: String::new(), source: "layers".into() };
    sequence(root, layers, input, "the input")
}

#[derive(Clone)]
struct Place {
    label: String,
    path: String,
    place: String,
    source: String,
}

impl Place {
    fn child(&self, item: &Item) -> Self {
        Self {
            label: item.label.clone(),
            path: segment(&item.label).map_or_else(|| self.path.clone(), |name| join(&self.path, name)),
            place: join(&self.place, &item.label),
            source: item.source.clone(),
        }
    }

    /// The same place: the silent sequences inside a `composite`.
    fn inside(&self, composite: &str, key: &str) -> Self {
        Self {
            label: format!("_{key}"),
            path: self.path.clone(),
            place: self.place.clone(),
            source: format!("{}.{composite}.{key}", self.source),
        }
    }

    fn invalid(&self, argument: Option<String>, message: String) -> Invalid {
        let path = match argument {
            Some(argument) => format!("{}.{argument}", self.source),
            None => self.source.clone(),
        };
        // One line of the file may be many layers.
        let many = self.source.starts_with("blocks.") || self.source.contains(".repeat.");
        let message = if many { format!("{message} (at `{}`)", self.place) } else { message };
        Invalid::new(path, message)
    }

    fn node(self, op: Op, input: &[i64], output: Shape, children: Vec<Node>) -> Node {
        let Place { label, path, place, source } = self;
        Node { label, path, place, source, op, input: input.to_vec(), output, children }
    }
}

fn grow(parent: &Place, item: Item, input: &[i64], from: &str) -> Result<Node, Invalid> {
    let place = parent.child(&item);
    match item.body {
        Body::Layer(spec) => layer(place, spec, input, from),
        Body::Sequence(items) => sequence(place, items, input, from),
        Body::Join { join, layers, shortcut } => {
            let word = join.word();
            let mut children = vec![sequence(place.inside(word, "layers"), layers, input, from)?];
            if let Some(shortcut) = shortcut {
                children.push(sequence(place.inside(word, "shortcut"), shortcut, input, from)?);
            }
            let (other, what) =
                children.get(1).map_or((input, "the input"), |shortcut| (&shortcut.output, "the shortcut"));
            match join.shape(&children[0].output, other) {
                Some(output) => Ok(place.node(Op::Join(join), input, output, children)),
                None => {
                    let message = join.misfit(&shown(&children[0].output), what, &shown(other));
                    Err(place.invalid(None, message))
                }
            }
        }
        Body::Concat(items) => {
            let children = items
                .into_iter()
                .map(|item| grow(&place, item, input, from))
                .collect::<Result<Vec<_>, _>>()?;
            let output = joined(&children).map_err(|message| place.invalid(None, message))?;
            Ok(place.node(Op::Concat, input, output, children))
        }
    }
}

fn sequence(place: Place, items: Vec<Item>, input: &[i64], from: &str) -> Result<Node, Invalid> {
    let mut children: Vec<Node> = Vec::with_capacity(items.len());
    for item in items {
        if let (Some(before), Body::Layer(LayerSpec::Upsample(spec))) = (children.last(), &item.body)
            && spec.like.is_some()
        {
            let from = format!("`{}`", before.place);
            children = vec![like(&place, &item, spec.clone(), children, input, &from)?];
            continue;
        }
        let child = match children.last() {
            Some(before) => grow(&place, item, &before.output, &format!("`{}`", before.place))?,
            None => grow(&place, item, input, from)?,
        };
        children.push(child);
    }
    let output = children.last().map_or_else(|| input.to_vec(), |child| child.output.clone());
    Ok(place.node(Op::Sequential, input, output, children))
}

/// `upsample: {like: input}` after the layers `before` of the sequence at `parent`, whose input is `input`.
fn like(
    parent: &Place,
    item: &Item,
    spec: Upsample,
    before: Vec<Node>,
    input: &[i64],
    from: &str,
) -> Result<Node, Invalid> {
    // What is resized belongs to the parent's module, whatever the upsampling is called.
    let place = Place { path: parent.path.clone(), ..parent.child(item) };
    let last = before.last().map_or_else(|| input.to_vec(), |node| node.output.clone());
    let output = fits(&place, "upsample", &last, spec.like_shape(&last, input), from)?;
    let inside = Place { label: "_layers".into(), place: parent.place.clone(), ..place.clone() };
    let layers = inside.node(Op::Sequential, input, last, before);
    Ok(place.node(Op::Like(spec), input, output, vec![layers]))
}

/// What the shape rule of a `kind` says to `input`, with its place where it refuses.
fn fits(
    place: &Place,
    kind: &str,
    input: &[i64],
    rule: Result<Shape, ShapeError>,
    from: &str,
) -> Result<Shape, Invalid> {
    let output = rule.map_err(|misfit| match misfit {
        ShapeError::Input { wants, remedy } => place
            .invalid(None, format!("{kind} wants {wants} but got {} from {from}; {remedy}", shown(input))),
        ShapeError::Argument { name, message } => place.invalid(Some(format!("{kind}.{name}")), message),
    })?;
    if volume(&output).is_none() {
        let message =
            format!("{kind} would give {}, which is too large; check its arguments", shown(&output));
        return Err(place.invalid(None, message));
    }
    Ok(output)
}

fn layer(place: Place, spec: LayerSpec, input: &[i64], from: &str) -> Result<Node, Invalid> {
    let output = fits(&place, spec.kind(), input, spec.layer().output_shape(input), from)?;
    if let Some(param) = spec.layer().params(input).iter().find(|param| volume(&param.shape).is_none()) {
        let message = format!("its {} would be {}, which is too large", param.name, shown(&param.shape));
        return Err(place.invalid(None, message));
    }
    Ok(place.node(Op::Layer(spec), input, output, Vec::new()))
}

/// The shape of all outputs joined along the first dimension.
fn joined(children: &[Node]) -> Result<Shape, String> {
    let shapes = || children.iter().map(|child| shown(&child.output)).collect::<Vec<_>>().join(", ");
    let Some(first) = children.first() else { return Err("concat has no branches".into()) };
    let rest = &first.output[1..];
    if children.iter().any(|child| &child.output[1..] != rest) {
        return Err(format!(
            "concat joins along the channels, but its branches differ elsewhere: {}",
            shapes()
        ));
    }
    let channels = children.iter().fold(0i64, |sum, child| sum.saturating_add(child.output[0]));
    let output = [&[channels], rest].concat();
    volume(&output).map(|_| output).ok_or_else(|| format!("concat of {} is too large", shapes()))
}

/// The number of values, if every extent is at least 1 and the number is within the limit.
fn volume(shape: &[i64]) -> Option<i64> {
    shape.iter().try_fold(1i64, |product, extent| {
        product.checked_mul(*extent).filter(|product| (1..=MAX_VALUES).contains(product) && *extent >= 1)
    })
}

impl Param {
    /// The number of values.
    pub fn count(&self) -> i64 {
        self.shape.iter().product()
    }
}
