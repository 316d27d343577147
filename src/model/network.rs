//! The network itself: a tree of tch modules over one variable store, its tensors in definition order.

use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;

use anyhow::{Context, Result};
use tch::nn::{self, ModuleT};
use tch::{Device, Kind, Tensor, no_grad};

use super::padding::Padding;
use super::scripted::{self, Scripted};
use super::segments::{self, Chain, Plan};
use super::tree::{Node, Op};
use super::{Model, join};
use crate::exit::{Exit, fail};
use crate::layers::{Activation, Joint, LayerSpec, ParamKind};
use crate::libtorch::catching;

/// A network that computes.
#[derive(Debug)]
pub struct Network {
    vars: nn::VarStore,
    /// The top-level layers, by label without `_`.
    layers: Chain<(String, Box<dyn ModuleT>)>,
    /// How it is cut in training, where it is.
    plan: Option<Plan>,
    /// How images of any size are made to fit, where the network takes them.
    fit: Option<Padding>,
    parameters: Vec<Parameter>,
    buffers: Vec<Tensor>,
    state: Vec<(String, Tensor)>,
}

/// A tensor that training changes.
#[derive(Debug)]
pub struct Parameter {
    pub name: String,
    pub kind: ParamKind,
    pub tensor: Tensor,
}

impl Model {
    /// Makes the network on `device` in `kind`, its weights drawn from torch's CPU generator in fp32 as PyTorch
    /// draws them: seed it first (`tch::manual_seed`). Fails where memory does.
    pub fn build(&self, device: Device, kind: Kind) -> Result<Network> {
        catching(|| self.assemble(device, kind))
            .and_then(|network| network)
            .context("cannot build the network")
    }

    fn assemble(&self, device: Device, kind: Kind) -> Result<Network> {
        let mut vars = nn::VarStore::new(device);
        vars.set_kind(kind);
        let frozen: HashSet<&str> =
            self.params.iter().filter(|param| param.frozen).map(|param| param.name.as_str()).collect();
        // The store forgets the order of definition; the model knows it.
        let (layers, mut named) = match &self.root.op {
            Op::Script(script) => {
                let (scripted, named) =
                    Scripted::new(&script.file, scripted::load(&script.file, device, kind)?)?;
                (vec![(String::new(), Box::new(scripted) as Box<dyn ModuleT>)], named.into_iter().collect())
            }
            _ => (
                Builder { root: &vars.root(), frozen: &frozen }.sequence(&self.root.children),
                vars.variables(),
            ),
        };
        for leaf in self.root.leaves() {
            let Op::Layer(spec) = &leaf.op else { continue };
            let init = self.init.iter().find(|(kind, _)| kind == spec.kind());
            if let (Some((_, init)), Some(weight)) = (init, named.get(&join(&leaf.path, "weight"))) {
                init.apply(weight);
            }
        }
        let (mut parameters, mut buffers, mut state) = (Vec::new(), Vec::new(), Vec::new());
        for param in &self.params {
            let tensor = named.remove(&param.name).with_context(|| format!("{} was not made", param.name))?;
            if param.frozen && param.kind != ParamKind::Buffer {
                let _ = tensor.set_requires_grad(false);
            }
            if param.is_trainable() {
                let (name, tensor) = (param.name.clone(), tensor.shallow_clone());
                parameters.push(Parameter { name, kind: param.kind, tensor });
            }
            if param.kind == ParamKind::Buffer {
                buffers.push(tensor.shallow_clone());
            }
            state.push((param.name.clone(), tensor));
        }
        let weights = weights(&self.root.children, layers.iter().map(|(name, _)| name));
        let layers = Chain::new(layers, weights);
        Ok(Network { vars, layers, plan: None, fit: Padding::of(&self.root), parameters, buffers, state })
    }
}

impl Network {
    /// `[N, ...input]` to `[N, ...output]`. Fully convolutional networks take any image size: one that halves images
    /// sees them padded by repetition at the bottom and at the right, and what it makes of the padding is cut off. Panics
    /// as tch does where libtorch refuses (memory, a sample of another shape): see [`crate::libtorch::catching`].
    pub fn forward(&self, xs: &Tensor, train: bool) -> Tensor {
        let through = |xs: &Tensor| {
            self.layers.through(xs, train, |layers, xs, train| {
                layers.iter().fold(xs.shallow_clone(), |xs, (_, layer)| layer.forward_t(&xs, train))
            })
        };
        segments::planned(self.plan.clone(), || {
            self.fit.as_ref().map_or_else(|| through(xs), |fit| fit.around(xs, through))
        })
    }

    /// From now on a forward pass that trains keeps the activations at the ends of segments alone; the others are computed again
    /// in the backward pass. The outermost lists of four layers or more are cut, into so many `segments` each, else into as
    /// many as the root of their length.
    pub fn recompute(&mut self, segments: Option<usize>) {
        self.plan = Some(Plan { segments, buffers: Rc::new(self.buffers()) });
    }

    /// Whether it takes `xs` `[N, ...input]` without padding.
    pub fn divides(&self, xs: &Tensor) -> bool {
        self.fit.as_ref().is_none_or(|fit| fit.missing(xs) == Some([0, 0]))
    }

    /// The top-level layer `name`, written so or as `_name`, for tasks that run the network in parts.
    pub fn child(&self, name: &str) -> Option<&dyn ModuleT> {
        self.layers.layers().iter().find(|(known, _)| known == name).map(|(_, layer)| layer.as_ref())
    }

    /// What training changes, in definition order; frozen tensors are not among it.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// What a forward pass in training changes by itself: the running statistics of batch norms. They share memory with the
    /// network.
    pub fn buffers(&self) -> Vec<Tensor> {
        self.buffers.iter().map(Tensor::shallow_clone).collect()
    }

    /// Parameters and buffers under the names of PyTorch's `state_dict()`, in its order; they share memory with the
    /// network.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        self.state.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    }

    pub fn device(&self) -> Device {
        self.vars.device()
    }

    /// The kind of parameters and buffers (counters are int64).
    pub fn kind(&self) -> Kind {
        self.vars.kind()
    }

    /// Copies values in; device and kind of the network stay. Strict: what is missing, unexpected or of another
    /// shape is listed, all at once, and nothing is changed (exit 4). As in PyTorch, `num_batches_tracked` may be
    /// missing, which old files lack.
    pub fn load_state(&self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let mut wrong = Vec::new();
        for (name, tensor) in &self.state {
            match state.get(name) {
                None if name.ends_with("num_batches_tracked") => {}
                None => wrong.push(format!("missing {name} {:?}", tensor.size())),
                Some(given) if given.size() != tensor.size() => {
                    wrong.push(format!("{name} is {:?}, wanted {:?}", given.size(), tensor.size()));
                }
                Some(_) => {}
            }
        }
        let known: HashSet<&str> = self.state.iter().map(|(name, _)| name.as_str()).collect();
        let unexpected = state.iter().filter(|(name, _)| !known.contains(name.as_str()));
        wrong.extend(unexpected.map(|(name, tensor)| format!("unexpected {name} {:?}", tensor.size())));
        if !wrong.is_empty() {
            let list = wrong.join("\n  ");
            return Err(fail(
                Exit::Checkpoint,
                format!(
                    "the weights are not of this network, {} differences:\n  {list}\ncheck the model's name and arguments",
                    wrong.len()
                ),
            ));
        }
        no_grad(|| {
            for (name, tensor) in &self.state {
                if let Some(given) = state.get(name) {
                    tensor.shallow_clone().f_copy_(given).with_context(|| format!("cannot copy {name}"))?;
                }
            }
            Ok(())
        })
    }
}

/// How many layers of `nodes` each of the modules holds that were made of them, by label; those that joined one do not count.
fn weights<'a>(nodes: &[Node], labels: impl Iterator<Item = &'a String>) -> Vec<usize> {
    let of = |label: &String| nodes.iter().find(|node| node.name() == label.as_str());
    labels.map(|label| of(label).map_or(1, |node| node.leaves().len())).collect()
}

/// Makes modules of nodes, in definition order, which is that of the random draws.
struct Builder<'a> {
    root: &'a nn::Path<'a>,
    frozen: &'a HashSet<&'a str>,
}

impl Builder<'_> {
    fn module(&self, node: &Node) -> Box<dyn ModuleT> {
        let children = || node.children.iter().map(|child| self.module(child)).collect::<Vec<_>>();
        match &node.op {
            Op::Layer(spec) => {
                let layer = spec.layer().build(&self.path(node), &node.input);
                if self.is_frozen(node) { Box::new(Frozen(layer)) } else { layer }
            }
            // Only the root can be one, and it is made in `assemble`.
            Op::Script(_) => Box::new(Sequential(self.unnamed(&[]))),
            Op::Sequential => Box::new(Sequential(self.unnamed(&node.children))),
            Op::Residual => match self.residual(node, false) {
                Some(residual) => Box::new(residual),
                None => Box::new(Residual(children())),
            },
            Op::Concat => Box::new(Concat(children())),
        }
    }

    /// One module after the other, by label without `_`. A ReLU joins the batch norm or the sum before it, under the label of
    /// that one, and overwrites what a convolution or linear map before it hands over.
    fn sequence(&self, nodes: &[Node]) -> Vec<(String, Box<dyn ModuleT>)> {
        let mut modules: Vec<(String, Box<dyn ModuleT>)> = Vec::new();
        let mut rest = nodes;
        while let [node, after @ ..] = rest {
            let relu = matches!(
                after.first(),
                Some(Node { op: Op::Layer(LayerSpec::Activation(Activation::Relu {})), .. })
            );
            let joined: Option<Box<dyn ModuleT>> = match &node.op {
                _ if !relu => None,
                Op::Layer(LayerSpec::BatchNorm2d(spec)) if !self.is_frozen(node) => {
                    Some(Box::new(NormRelu(spec.joint(&self.path(node), &node.input))))
                }
                Op::Layer(LayerSpec::Conv2d(_) | LayerSpec::Linear(_)) => {
                    Some(Box::new(Overwritten(self.module(node))))
                }
                Op::Residual => {
                    self.residual(node, true).map(|residual| Box::new(residual) as Box<dyn ModuleT>)
                }
                _ => None,
            };
            rest = if joined.is_some() { &after[1..] } else { after };
            modules.push((node.name().to_owned(), joined.unwrap_or_else(|| self.module(node))));
        }
        modules
    }

    fn unnamed(&self, nodes: &[Node]) -> Chain<Box<dyn ModuleT>> {
        let (names, layers): (Vec<_>, Vec<_>) = self.sequence(nodes).into_iter().unzip();
        Chain::new(layers, weights(nodes, names.iter()))
    }

    /// A residual whose layers end in a batch norm, which does the addition too.
    fn residual(&self, node: &Node, relu: bool) -> Option<NormResidual> {
        let (body, shortcut) = node.children.split_first()?;
        let (last, before) = body.children.split_last()?;
        let (Op::Sequential, Op::Layer(LayerSpec::BatchNorm2d(spec))) = (&body.op, &last.op) else {
            return None;
        };
        if self.is_frozen(last) {
            return None;
        }
        let before = Sequential(self.unnamed(before));
        let norm = spec.joint(&self.path(last), &last.input);
        let shortcut = shortcut.first().map(|shortcut| self.module(shortcut));
        Some(NormResidual { before, norm, shortcut, relu })
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

/// A layer that never learns: its running statistics stay, and normalise in training too.
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

/// The layers, then the shortcut if there is one.
#[derive(Debug)]
struct Residual(Vec<Box<dyn ModuleT>>);

impl ModuleT for Residual {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        match self.0.as_slice() {
            [layers] => layers.forward_t(xs, train) + xs,
            [layers, shortcut] => layers.forward_t(xs, train) + shortcut.forward_t(xs, train),
            _ => xs.shallow_clone(),
        }
    }
}

/// A batch norm and the ReLU after it.
#[derive(Debug)]
struct NormRelu(Joint);

impl ModuleT for NormRelu {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        self.0.forward(xs, None, true, train)
    }
}

/// A residual that ends in a batch norm, with the ReLU after the sum where there is one.
#[derive(Debug)]
struct NormResidual {
    before: Sequential,
    norm: Joint,
    shortcut: Option<Box<dyn ModuleT>>,
    relu: bool,
}

impl ModuleT for NormResidual {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        let ys = self.before.forward_t(xs, train);
        match &self.shortcut {
            Some(shortcut) => self.norm.forward(&ys, Some(&shortcut.forward_t(xs, train)), self.relu, train),
            None => self.norm.forward(&ys, Some(xs), self.relu, train),
        }
    }
}

/// A ReLU on what a layer has just made and does not need for its gradient.
#[derive(Debug)]
struct Overwritten(Box<dyn ModuleT>);

impl ModuleT for Overwritten {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        self.0.forward_t(xs, train).relu_()
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
