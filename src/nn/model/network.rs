//! The network itself: a tree of tch modules over one variable store, its tensors in definition order.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use anyhow::{Context, Result};
use tch::nn::{self, ModuleT};
use tch::{Device, Kind, Tensor, no_grad};

use super::Model;
use super::auxiliary::{self, AuxiliaryHead};
use super::builder::{Builder, weights};
use super::padding::Padding;
use super::scripted::{self, Scripted};
use super::segments::{self, Chain, Segmentation};
use super::tree::Op;
use crate::functional::channels_last;
use crate::libtorch::catch_panics;
use crate::nn::layers::{Param, ParamKind, Switch};
use crate::util::exit_code::{ExitCode, fail};

/// A network that computes.
#[derive(Debug)]
pub struct Network {
    vars: nn::VarStore,
    /// The top-level layers, by label without `_`.
    layers: Chain<(String, Box<dyn ModuleT>)>,
    /// The segments of activation checkpointing, if it is on.
    plan: Option<Segmentation>,
    /// How images of other sizes are padded, for fully convolutional networks.
    fit: Option<Padding>,
    heads: Vec<AuxiliaryHead>,
    parameters: Vec<Parameter>,
    buffers: Vec<Tensor>,
    state: Vec<(String, Tensor)>,
    /// Of the layers with running statistics: what freezes them, and their tensors.
    switches: Vec<(Switch, Vec<Param>)>,
}

/// A tensor that training changes.
#[derive(Debug)]
pub struct Parameter {
    pub name: String,
    pub kind: ParamKind,
    pub tensor: Tensor,
}

impl Model {
    /// Makes the network on `device` in `kind`, its weights drawn from torch's CPU generator in fp32 as
    /// PyTorch draws them: seed it first (`tch::manual_seed`). Fails where memory does.
    pub fn build(&self, device: Device, kind: Kind) -> Result<Network> {
        catch_panics(|| self.assemble(device, kind))
            .and_then(|network| network)
            .context("cannot build the network")
    }

    fn assemble(&self, device: Device, kind: Kind) -> Result<Network> {
        let mut vars = nn::VarStore::new(device);
        vars.set_kind(kind);
        let frozen: HashSet<&str> =
            self.params.iter().filter(|param| param.frozen).map(|param| param.name.as_str()).collect();
        // VarStore does not keep the order of definition; the model does.
        let (layers, mut named, switches) = match &self.root.op {
            Op::Script(script) => {
                let module = scripted::load(script.language, &script.file, device, kind)?;
                let (scripted, named) = Scripted::new(&script.file, module, &self.params)?;
                let switches = scripted.switches();
                let layers = vec![(String::new(), Box::new(scripted) as Box<dyn ModuleT>)];
                (layers, named.into_iter().collect(), switches)
            }
            _ => {
                let root = vars.root();
                let builder = Builder { root: &root, frozen: &frozen, switches: RefCell::default() };
                (builder.sequence(&self.root.children), vars.variables(), builder.switches.into_inner())
            }
        };
        let leaves = self.root.leaves();
        let kinds: HashMap<&str, &str> = (leaves.iter())
            .filter(|leaf| !leaf.is_bare_parameter() && !leaf.params().is_empty())
            .filter_map(|leaf| match &leaf.op {
                Op::Layer(spec) => Some((leaf.path.as_str(), leaf.wraps().unwrap_or(spec.kind()))),
                _ => None,
            })
            .collect();
        // In the order of the state, as a loop over `modules()` draws.
        for param in self.params.iter().filter(|param| param.kind != ParamKind::Buffer) {
            let owner = param.name.rsplit_once('.').map_or("", |(owner, _)| owner);
            let init = self.init.of(&param.name, kinds.get(owner).copied().unwrap_or_default());
            if let (Some(init), Some(tensor)) = (init, named.get(&param.name)) {
                init.apply(tensor);
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
        let (fit, heads) = (Padding::of(&self.root), self.auxiliary_heads());
        Ok(Network { vars, layers, plan: None, fit, heads, parameters, buffers, state, switches })
    }
}

impl Network {
    /// `[N, ...input]` to `[N, ...output]`. Fully convolutional networks take any image size: if they
    /// downsample, the image is padded by replication at the bottom and right, and the output cropped. Panics
    /// as tch does where libtorch refuses (memory, a sample of another shape): see
    /// [`crate::libtorch::catch_panics`].
    pub fn forward(&self, xs: &Tensor, train: bool) -> Tensor {
        let through = |xs: &Tensor| {
            let ys = self.layers.through(xs, train, |layers, xs, train| {
                layers.iter().fold(xs.shallow_clone(), |xs, (_, layer)| layer.forward_t(&xs, train))
            });
            auxiliary::resize(&self.heads, &ys);
            ys
        };
        let ys = segments::planned(self.plan.clone(), || {
            self.fit.as_ref().map_or_else(|| through(xs), |fit| fit.around(xs, through))
        });
        auxiliary::crop(&ys);
        ys
    }

    /// Runs `f`, which calls [`Network::forward`] once in training, and gives the answers of the auxiliary heads
    /// with the weights of their losses, in the order of definition. Each has the shape of the network's. They are
    /// computed here alone.
    pub fn with_auxiliary<T>(&self, f: impl FnOnce() -> T) -> (T, Vec<(f64, Tensor)>) {
        if self.heads.is_empty() {
            return (f(), Vec::new());
        }
        let (result, answers) = auxiliary::answering(f);
        let weighted =
            answers.into_iter().filter_map(|(index, ys)| Some((self.heads.get(index)?.weight, ys)));
        (result, weighted.collect())
    }

    /// Turns on activation checkpointing: forward passes in training keep only the activations at the ends of
    /// segments; the others are recomputed in the backward pass. The outermost lists of four layers or more
    /// are cut into `segments` each, or into the square root of their length.
    pub fn recompute(&mut self, segments: Option<usize>) {
        self.plan = Some(Segmentation { segments, buffers: Rc::new(self.buffers()) });
    }

    /// Brings parameters and buffers of four dimensions, the weights of convolutions, into the memory format
    /// `channels_last`.
    pub fn use_channels_last(&self) -> Result<()> {
        no_grad(|| {
            for (name, tensor) in self.state.iter().filter(|(_, tensor)| tensor.dim() == 4) {
                let context = || format!("the memory format of {name}");
                let inner = catch_panics(|| channels_last(&tensor.detach())).with_context(context)?;
                tensor.shallow_clone().f_set_data(&inner).with_context(context)?;
            }
            Ok(())
        })
    }

    /// Whether it takes `xs` `[N, ...input]` without padding.
    pub fn divides(&self, xs: &Tensor) -> bool {
        self.fit.as_ref().is_none_or(|fit| fit.missing(xs) == Some([0, 0]))
    }

    /// The top-level layer `name`, written so or as `_name`, for tasks that run the network in parts.
    pub fn child(&self, name: &str) -> Option<&dyn ModuleT> {
        self.layers.layers().iter().find(|(known, _)| known == name).map(|(_, layer)| layer.as_ref())
    }

    /// Freezes the trainable parameters whose names `is_frozen` accepts, for now, and trains all others. A layer
    /// all of whose parameters it accepts (of one without parameters, its buffers) keeps its running statistics.
    pub fn freeze(&self, is_frozen: impl Fn(&str) -> bool) {
        for parameter in &self.parameters {
            let _ = parameter.tensor.set_requires_grad(!is_frozen(&parameter.name));
        }
        for (switch, params) in &self.switches {
            let learnt = params.iter().any(|param| param.kind != ParamKind::Buffer);
            let mut own = params.iter().filter(|param| !learnt || param.kind != ParamKind::Buffer);
            switch.set(own.all(|param| is_frozen(&param.name)));
        }
    }

    /// The trainable parameters, in definition order; without frozen ones.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Tensors that a forward pass in training updates: the running statistics of batch norms. They share
    /// memory with the network.
    pub fn buffers(&self) -> Vec<Tensor> {
        self.buffers.iter().map(Tensor::shallow_clone).collect()
    }

    /// Parameters and buffers under the names of PyTorch's `state_dict()`, in its order; they share memory
    /// with the network.
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

    /// Copies values in; device and kind of the network stay. Strict: if a tensor is missing, unexpected or
    /// of another shape, all of them are listed and nothing is changed (exit 4). As in PyTorch,
    /// `num_batches_tracked` may be missing, which old files lack.
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
                ExitCode::Checkpoint,
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
