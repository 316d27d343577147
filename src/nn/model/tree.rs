//! The checked tree: every layer with its place, its names and its shapes.

use std::collections::BTreeMap;

use tch::Tensor;

use super::auxiliary::Auxiliary;
use super::joined::Join;
use super::scripted::Script;
use crate::nn::layers::{LayerSpec, Param, Shape, Upsample};

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
    /// Its number among the nodes whose output auxiliary heads take (`from`).
    pub tap: Option<usize>,
}

/// A layer that was exchanged for the plain one inside it.
pub(super) struct Folded {
    pub weight: Param,
    /// The tensors that the plain layer does not have.
    pub gone: Vec<String>,
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
    /// Its input. The only child, a sequence, is a head of training's.
    Auxiliary(Auxiliary),
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

    /// The kind of layer inside it, where it computes that layer's weight.
    pub fn wraps(&self) -> Option<&'static str> {
        match &self.op {
            Op::Layer(spec) => spec.layer().wraps(),
            _ => None,
        }
    }

    /// See [`super::Model::fold`].
    pub(super) fn fold(&mut self, weights: &mut BTreeMap<String, Tensor>, folded: &mut Vec<Folded>) {
        self.children.iter_mut().for_each(|child| child.fold(weights, folded));
        let Op::Layer(spec) = &self.op else { return };
        let find = |name: &str| {
            let found = weights.get(&join(&self.path, name));
            found.map_or_else(Tensor::new, Tensor::shallow_clone)
        };
        let Some((layer, weight)) = spec.layer().folded(&find) else { return };
        let computed = self.params();
        self.op = Op::Layer(layer);
        let plain = self.params();
        let stays = |param: &Param| plain.iter().any(|own| own.name == param.name);
        let gone: Vec<String> =
            computed.into_iter().filter(|param| !stays(param)).map(|param| param.name).collect();
        gone.iter().for_each(|name| drop(weights.remove(name)));
        let name = join(&self.path, "weight");
        weights.insert(name.clone(), weight);
        folded
            .extend(plain.into_iter().find(|param| param.name == name).map(|weight| Folded { weight, gone }));
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
            Op::Auxiliary(_) => return Some(input.to_vec()),
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
            Op::Auxiliary(auxiliary) => &format!("aux{:?}", (auxiliary.weight, auxiliary.tap)),
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

/// The number of values, if every extent is at least 1 and the number is within the limit.
pub(super) fn volume(shape: &[i64]) -> Option<i64> {
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
