//! Builds tch modules from the checked tree. Adjacent layers that can run as one operation are fused.

use std::cell::RefCell;
use std::collections::HashSet;

use tch::Tensor;
use tch::nn::{self, ModuleT};

use super::auxiliary::{HeadModule, Tapped};
use super::joined::Join;
use super::segments::Chain;
use super::tree::{Node, Op};
use crate::nn::layers::{
    Activation, Freezable, FusedConvBn, LayerSpec, Normed, Param, ParamKind, Switch, Upsample,
};

/// How many layers of `nodes` each of the modules holds that were made of them, by label; those that joined
/// one do not count.
pub(super) fn weights<'a>(nodes: &[Node], labels: impl Iterator<Item = &'a String>) -> Vec<usize> {
    let of = |label: &String| nodes.iter().find(|node| node.name() == label.as_str());
    labels.map(|label| of(label).map_or(1, |node| node.leaves().len())).collect()
}

/// A convolution, its batch norm and a ReLU: no more are fused.
const LONGEST: usize = 3;

/// Builds modules in definition order, which is the order of the random draws.
pub(super) struct Builder<'a> {
    pub root: &'a nn::Path<'a>,
    pub frozen: &'a HashSet<&'a str>,
    /// Of the layers with running statistics: what freezes them, and their tensors.
    pub switches: RefCell<Vec<(Switch, Vec<Param>)>>,
}

impl Builder<'_> {
    fn module(&self, node: &Node) -> Box<dyn ModuleT> {
        let module = self.untapped(node);
        match node.tap {
            Some(tap) => Box::new(Tapped { module, tap }),
            None => module,
        }
    }

    fn untapped(&self, node: &Node) -> Box<dyn ModuleT> {
        let children = || node.children.iter().map(|child| self.module(child)).collect::<Vec<_>>();
        match &node.op {
            Op::Layer(spec) => {
                let layer = spec.layer().build(&self.path(node), &node.input);
                if self.is_frozen(node) {
                    return Box::new(Frozen(layer));
                }
                if node.params().iter().all(|param| param.kind != ParamKind::Buffer) {
                    return layer;
                }
                let switch = Switch::default();
                self.switches.borrow_mut().push((switch.clone(), node.params()));
                Box::new(Freezable { layer, switch })
            }
            // Only the root can be one, and it is made in `assemble`.
            Op::Script(_) => Box::new(Sequential(self.unnamed(&[]))),
            Op::Sequential => Box::new(Sequential(self.unnamed(&node.children))),
            Op::Join(join) => match self.residual(node, false) {
                Some(residual) => Box::new(residual),
                None => Box::new(Joined { join: *join, branches: children() }),
            },
            Op::Concat => Box::new(Concat(children())),
            Op::Auxiliary(head) => Box::new(HeadModule {
                layers: Box::new(Sequential(self.unnamed(&node.children))),
                index: head.index,
                tap: head.tap,
            }),
            Op::Like(upsample) => Box::new(Like { layers: children(), upsample: upsample.clone() }),
        }
    }

    /// One module after the other, by label without `_`. A batch norm joins the convolution before it and the
    /// ReLU after it, under the label of the first of them; any other ReLU joins the sum before it, or
    /// overwrites what a convolution or linear map before it hands over.
    pub fn sequence(&self, nodes: &[Node]) -> Vec<(String, Box<dyn ModuleT>)> {
        let mut modules: Vec<(String, Box<dyn ModuleT>)> = Vec::new();
        let mut rest = nodes;
        while let [node, after @ ..] = rest {
            let (module, after) = self.fuse(rest).unwrap_or_else(|| (self.module(node), after));
            modules.push((node.name().to_owned(), module));
            rest = after;
        }
        modules
    }

    /// The first of `nodes` as one module with some that follow it, and those that are left; None where it
    /// is not fused.
    fn fuse<'n>(&self, nodes: &'n [Node]) -> Option<(Box<dyn ModuleT>, &'n [Node])> {
        let (first, after) = nodes.split_first()?;
        // What is tapped must be there as it is.
        if nodes.iter().take(LONGEST).any(|node| node.tap.is_some()) {
            return None;
        }
        if let Some((norm, after)) = after.split_first()
            && let Some(joint) = self.joint(Some(first), norm)
        {
            return Some(with_relu(joint, after));
        }
        if let Some(joint) = self.joint(None, first) {
            return Some(with_relu(joint, after));
        }
        let after = without_relu(after)?;
        match &first.op {
            Op::Join(Join::Residual) => Some((Box::new(self.residual(first, true)?), after)),
            Op::Layer(LayerSpec::Linear(linear)) if !self.is_frozen(first) => {
                Some((Box::new(linear.build_with_relu(&self.path(first), &first.input, true)), after))
            }
            Op::Layer(LayerSpec::Conv2d(_) | LayerSpec::Linear(_)) => {
                Some((Box::new(Overwritten(self.module(first))), after))
            }
            _ => None,
        }
    }

    /// None unless this is a trainable batch norm and, if a convolution is given, one that it can be fused
    /// with.
    fn joint(&self, conv: Option<&Node>, norm: &Node) -> Option<FusedConvBn> {
        let norm_spec = self.learning(norm)?;
        let conv = match conv {
            Some(conv) => Some((self.learning(conv)?, self.path(conv), conv.input.as_slice())),
            None => None,
        };
        let conv = conv.as_ref().map(|(spec, path, input)| (*spec, path, *input));
        let joint = FusedConvBn::new(conv, (norm_spec, &self.path(norm), &norm.input))?;
        self.switches.borrow_mut().push((joint.switch(), norm.params()));
        Some(joint)
    }

    fn is_plain(&self, node: &Node) -> bool {
        matches!(self.learning(node), Some(LayerSpec::Conv2d(conv)) if conv.is_plain())
    }

    /// The layer of a node that is not frozen.
    fn learning<'n>(&self, node: &'n Node) -> Option<&'n LayerSpec> {
        match &node.op {
            Op::Layer(spec) if !self.is_frozen(node) => Some(spec),
            _ => None,
        }
    }

    fn unnamed(&self, nodes: &[Node]) -> Chain<Box<dyn ModuleT>> {
        let (names, layers): (Vec<_>, Vec<_>) = self.sequence(nodes).into_iter().unzip();
        Chain::new(layers, weights(nodes, names.iter()))
    }

    /// A residual whose layers end in a batch norm, which does the addition too.
    fn residual(&self, node: &Node, relu: bool) -> Option<NormResidual> {
        let Op::Join(Join::Residual) = node.op else { return None };
        let (body, shortcut) = node.children.split_first()?;
        let (Op::Sequential, [before @ .., norm]) = (&body.op, body.children.as_slice()) else { return None };
        let Some(LayerSpec::BatchNorm2d(_)) = self.learning(norm) else { return None };
        if body.children.iter().rev().take(2).any(|node| node.tap.is_some()) {
            return None;
        }
        // Tensors are made in the order of definition, so what comes before is made first.
        let (conv, others) = before.split_last()?;
        let (others, conv) = if self.is_plain(conv) { (others, Some(conv)) } else { (before, None) };
        let before = Sequential(self.unnamed(others));
        let joint = self.joint(conv, norm)?;
        let shortcut = shortcut.first().map(|shortcut| self.module(shortcut));
        Some(NormResidual { before, joint, shortcut, relu })
    }

    fn path(&self, node: &Node) -> nn::Path<'_> {
        let parts = node.path.split('.').filter(|part| !part.is_empty());
        parts.fold(self.root.clone(), |path, part| path / part)
    }

    fn is_frozen(&self, node: &Node) -> bool {
        let params = node.params();
        !params.is_empty() && params.iter().all(|param| self.frozen.contains(param.name.as_str()))
    }
}

fn with_relu(joint: FusedConvBn, after: &[Node]) -> (Box<dyn ModuleT>, &[Node]) {
    let rest = without_relu(after);
    (Box::new(Normed { joint, relu: rest.is_some() }), rest.unwrap_or(after))
}

/// What follows a ReLU at the head of `nodes`.
fn without_relu(nodes: &[Node]) -> Option<&[Node]> {
    let (first, rest) = nodes.split_first()?;
    matches!(first.op, Op::Layer(LayerSpec::Activation(Activation::Relu {}))).then_some(rest)
}

/// A frozen layer: it always runs in evaluation mode.
#[derive(Debug)]
struct Frozen(Box<dyn ModuleT>);

impl ModuleT for Frozen {
    fn forward_t(&self, xs: &Tensor, _train: bool) -> Tensor {
        self.0.forward_t(xs, false)
    }
}

#[derive(Debug)]
struct Sequential(Chain<Box<dyn ModuleT>>);

impl ModuleT for Sequential {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        self.0.through(xs, train, |layers, xs, train| {
            let Some((first, rest)) = layers.split_first() else { return xs.shallow_clone() };
            rest.iter().fold(first.forward_t(xs, train), |xs, layer| layer.forward_t(&xs, train))
        })
    }
}

#[derive(Debug)]
struct Joined {
    join: Join,
    /// The layers, then the shortcut if there is one.
    branches: Vec<Box<dyn ModuleT>>,
}

impl ModuleT for Joined {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        let Some((layers, shortcut)) = self.branches.split_first() else { return xs.shallow_clone() };
        let layers = layers.forward_t(xs, train);
        let shortcut =
            shortcut.first().map_or_else(|| xs.shallow_clone(), |shortcut| shortcut.forward_t(xs, train));
        match self.join {
            Join::Residual => layers + shortcut,
            Join::Multiply => layers * shortcut,
            Join::Subtract => shortcut - layers,
        }
    }
}

/// A residual that ends in a batch norm, with the ReLU after the sum where there is one.
#[derive(Debug)]
struct NormResidual {
    before: Sequential,
    joint: FusedConvBn,
    shortcut: Option<Box<dyn ModuleT>>,
    relu: bool,
}

impl ModuleT for NormResidual {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        let ys = self.before.forward_t(xs, train);
        match &self.shortcut {
            Some(shortcut) => self.joint.forward(&ys, Some(&shortcut.forward_t(xs, train)), self.relu, train),
            None => self.joint.forward(&ys, Some(xs), self.relu, train),
        }
    }
}

/// An in-place ReLU on the output of a layer that does not need it for its gradient.
#[derive(Debug)]
struct Overwritten(Box<dyn ModuleT>);

impl ModuleT for Overwritten {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        self.0.forward_t(xs, train).relu_()
    }
}

/// Layers whose output is resized to the sides of their input.
#[derive(Debug)]
struct Like {
    layers: Vec<Box<dyn ModuleT>>,
    upsample: Upsample,
}

impl ModuleT for Like {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        let ys = self.layers.iter().fold(xs.shallow_clone(), |ys, layer| layer.forward_t(&ys, train));
        self.upsample.resize_like(&ys, xs)
    }
}

#[derive(Debug)]
struct Concat(Vec<Box<dyn ModuleT>>);

impl ModuleT for Concat {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        let branches: Vec<_> = self.0.iter().map(|branch| branch.forward_t(xs, train)).collect();
        Tensor::cat(&branches, 1)
    }
}
