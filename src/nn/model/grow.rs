//! Follows the shapes through the layers: the expanded items become the checked tree.

use std::collections::HashMap;

use super::auxiliary::{Auxiliary, AuxiliaryItem};
use super::expand::{Body, Item};
use super::tree::{Node, Op, join, segment, volume};
use crate::nn::layers::{LayerSpec, Shape, ShapeError, Upsample, shown};
use crate::util::yaml::{Invalid, nearest};

/// Follows the shapes through the layers.
pub(super) fn check(layers: Vec<Item>, input: &[i64]) -> Result<Node, Invalid> {
    if !matches!(input.len(), 1..=3) || input.iter().any(|extent| *extent < 1) || volume(input).is_none() {
        let message = format!("{} is no input: expected [F] or [C, H, W], each at least 1", shown(input));
        return Err(Invalid::new("input", message));
    }
    let root =
        Place { label: String::new(), path: String::new(), place: String::new(), source: "layers".into() };
    let mut grower = Grower::default();
    let mut root = grower.sequence(root, layers, input, "the input")?;
    grower.heads.iter().try_for_each(|head| head.fits(&root.output))?;
    for (index, name) in grower.taps.iter().enumerate() {
        mark(&mut root, name, index);
    }
    Ok(root)
}

/// What is known of the layers so far.
#[derive(Default)]
struct Grower {
    /// What they give, by their names; None where several are called so.
    outputs: HashMap<String, Option<Shape>>,
    /// The names of those whose output auxiliary heads take.
    taps: Vec<String>,
    heads: Vec<Head>,
    is_in_head: bool,
}

/// An auxiliary head whose answer must fit the network's.
struct Head {
    place: Place,
    answer: Shape,
    is_resized: bool,
}

impl Head {
    fn fits(&self, output: &[i64]) -> Result<(), Invalid> {
        let fits = match (self.answer.as_slice(), output) {
            (&[channels, ..], &[wanted, _, _]) if self.is_resized => channels == wanted,
            (answer, output) => answer == output && !self.is_resized,
        };
        if fits {
            return Ok(());
        }
        let remedy = match (self.is_resized, output.len()) {
            (true, 3) => "they must have the same channels",
            (true, _) => "leave `resize` out, which is for images",
            (false, 3) => {
                "they must be equal; `resize: bilinear` brings it to the network's height and width"
            }
            (false, _) => "they must be equal",
        };
        let message = format!(
            "an auxiliary head learns what the network learns, but it gives {} and the network {}: {remedy}",
            shown(&self.answer),
            shown(output)
        );
        Err(self.place.invalid(None, message))
    }
}

/// The names of a node that `from` may say: its place, and its path where that is its own.
fn names(node: &Node) -> impl Iterator<Item = &String> {
    let own_path = segment(&node.label).is_some() && node.path != node.place;
    [Some(&node.place), own_path.then_some(&node.path)].into_iter().flatten()
}

/// The node called `name`.
pub(super) fn find<'n>(node: &'n mut Node, name: &str) -> Option<&'n mut Node> {
    let holds_items = matches!(node.op, Op::Sequential | Op::Concat);
    for child in &mut node.children {
        if holds_items && names(child).any(|known| known == name) {
            return Some(child);
        }
        if let Some(found) = find(child, name) {
            return Some(found);
        }
    }
    None
}

/// Shows `each` every node that [`find`] finds, in the order of definition, those inside others before them.
pub(super) fn places(node: &Node, each: &mut impl FnMut(&Node)) {
    let holds_items = matches!(node.op, Op::Sequential | Op::Concat);
    for child in &node.children {
        places(child, each);
        if holds_items && !child.place.is_empty() {
            each(child);
        }
    }
}

/// Gives the node called `name` the number of a tap.
fn mark(node: &mut Node, name: &str, tap: usize) {
    // The other composites hold the silent sequences of [`Place::inside`].
    let holds_items = matches!(node.op, Op::Sequential | Op::Concat);
    for child in &mut node.children {
        if holds_items && names(child).any(|known| known == name) {
            child.tap = Some(tap);
        }
        mark(child, name, tap);
    }
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
        Node { label, path, place, source, op, input: input.to_vec(), output, children, tap: None }
    }
}

impl Grower {
    fn grow(&mut self, parent: &Place, item: Item, input: &[i64], from: &str) -> Result<Node, Invalid> {
        let place = parent.child(&item);
        let node = match item.body {
            Body::Layer(spec) => layer(place, spec, input, from)?,
            Body::Sequence(items) => self.sequence(place, items, input, from)?,
            Body::Join { join, layers, shortcut } => {
                let word = join.word();
                let mut children = vec![self.sequence(place.inside(word, "layers"), layers, input, from)?];
                if let Some(shortcut) = shortcut {
                    children.push(self.sequence(place.inside(word, "shortcut"), shortcut, input, from)?);
                }
                let (other, what) = children
                    .get(1)
                    .map_or((input, "the input"), |shortcut| (&shortcut.output, "the shortcut"));
                match join.shape(&children[0].output, other) {
                    Some(output) => place.node(Op::Join(join), input, output, children),
                    None => {
                        let message = join.misfit(&shown(&children[0].output), what, &shown(other));
                        return Err(place.invalid(None, message));
                    }
                }
            }
            Body::Concat(items) => {
                let children = items
                    .into_iter()
                    .map(|item| self.grow(&place, item, input, from))
                    .collect::<Result<Vec<_>, _>>()?;
                let output = joined(&children).map_err(|message| place.invalid(None, message))?;
                place.node(Op::Concat, input, output, children)
            }
            Body::Auxiliary(head) => self.auxiliary(place, head, input, from)?,
        };
        for name in names(&node) {
            let known = self.outputs.entry(name.clone());
            known.and_modify(|twice| *twice = None).or_insert_with(|| Some(node.output.clone()));
        }
        Ok(node)
    }

    fn auxiliary(
        &mut self,
        place: Place,
        head: AuxiliaryItem,
        input: &[i64],
        from: &str,
    ) -> Result<Node, Invalid> {
        let refuse = |message: &str| Err(place.invalid(None, message.into()));
        if segment(&place.label).is_none() {
            return refuse("an auxiliary head wants a name of its own, without `_` before it");
        }
        if self.is_in_head {
            return refuse("an auxiliary head cannot hold another");
        }
        let AuxiliaryItem { weight, from: tapped, resize, layers } = head;
        let (features, tap) = match &tapped {
            None => (input.to_vec(), None),
            Some(name) => {
                let found = self.output_of(name);
                let features = found.map_err(|message| place.invalid(Some("aux.from".into()), message))?;
                let known = self.taps.iter().position(|tap| tap == name);
                let tap = known.unwrap_or_else(|| {
                    self.taps.push(name.clone());
                    self.taps.len() - 1
                });
                (features, Some(tap))
            }
        };
        let from = tapped.map_or_else(|| from.to_owned(), |name| format!("`{name}`"));
        self.is_in_head = true;
        let layers = self.sequence(place.inside("aux", "layers"), layers, &features, &from)?;
        self.is_in_head = false;
        let index = self.heads.len();
        let (answer, is_resized) = (layers.output.clone(), resize.is_some());
        self.heads.push(Head { place: place.clone(), answer, is_resized });
        let auxiliary = Auxiliary { weight, index, tap, resize };
        Ok(place.node(Op::Auxiliary(auxiliary), input, input.to_vec(), vec![layers]))
    }

    /// What the layer `name`, defined before, gives.
    fn output_of(&self, name: &str) -> Result<Shape, String> {
        match self.outputs.get(name) {
            Some(Some(shape)) => Ok(shape.clone()),
            Some(None) => Err(format!(
                "several layers are called `{name}`; give the one that is meant a name of its own"
            )),
            None => Err(match nearest(name, self.outputs.keys().map(String::as_str)) {
                Some(near) => format!("no layer before is called `{name}`; did you mean `{near}`?"),
                None => {
                    format!("no layer before is called `{name}`; write its place, such as `backbone.layer3`")
                }
            }),
        }
    }

    fn sequence(
        &mut self,
        place: Place,
        items: Vec<Item>,
        input: &[i64],
        from: &str,
    ) -> Result<Node, Invalid> {
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
                Some(before) => self.grow(&place, item, &before.output, &format!("`{}`", before.place))?,
                None => self.grow(&place, item, input, from)?,
            };
            children.push(child);
        }
        let output = children.last().map_or_else(|| input.to_vec(), |child| child.output.clone());
        Ok(place.node(Op::Sequential, input, output, children))
    }
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
