//! Finds the channels of a trained network that do nothing: no output depends on them, or they have one value for
//! every input, which can be said otherwise.
//!
//! Channels that only make sense together (those that a residual adds, a channel and what a batch norm makes of it)
//! are one class; a class is kept or removed.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor, nn, no_grad};

use crate::nn::layers::LayerSpec;
use crate::nn::layers::channels::ChannelFlow;
use crate::nn::model::{Join, Model, Node, Op, join};
use crate::util::exit_code::{ExitCode, fail};

/// The channels before and after a layer, by their classes.
pub struct Site {
    pub inputs: Vec<usize>,
    pub outputs: Vec<usize>,
    /// Of a layer that sums over its inputs.
    pub sum: Option<Sum>,
}

pub struct Sum {
    pub output_dim: i64,
    pub input_dim: i64,
    /// Whether its bias can take in what a constant input adds.
    pub folds: bool,
    /// By input: its value, where that is the same for every input of the network and at every pixel.
    pub constants: Vec<Option<f64>>,
    /// `[outputs, inputs]`: whether the weight is other than 0.
    weighted: Tensor,
}

/// What is kept, and by what a removed constant is said.
pub struct Verdict {
    /// The layers, in definition order.
    pub sites: Vec<Site>,
    kept: BTreeSet<usize>,
    /// The constant class that a removed constant class is added to.
    pub stand_in: BTreeMap<usize, usize>,
}

impl Verdict {
    pub fn kept(&self, classes: &[usize]) -> Vec<bool> {
        classes.iter().map(|class| self.kept.contains(class)).collect()
    }
}

/// A tensor between two layers.
struct Value {
    channels: Vec<usize>,
    /// By channel, whether it is the same for every input of the network.
    is_fixed: Vec<bool>,
    /// `[N, C, …]` for an input of random numbers.
    tensor: Tensor,
}

/// Follows `model` with `weights` from its input to its output. Exit 2 for a network without declared layers.
pub fn analyse(model: &Model, weights: &BTreeMap<String, Tensor>) -> Result<Verdict> {
    let input = [&[2], model.input()].concat();
    let mut walk = Walk { weights, parents: Vec::new(), pinned: Vec::new(), sites: Vec::new() };
    let channels: Vec<usize> = (0..model.input()[0]).map(|_| walk.class()).collect();
    walk.pinned.extend(&channels);
    let is_fixed = vec![false; channels.len()];
    let tensor = Tensor::f_randn(input, (Kind::Double, Device::Cpu))?;
    let output = no_grad(|| walk.through(model.root(), Value { channels, is_fixed, tensor }))?;
    walk.pinned.extend(&output.channels);
    walk.verdict()
}

struct Walk<'a> {
    weights: &'a BTreeMap<String, Tensor>,
    /// Of each class the one that it was joined to; itself where it stands for all of them.
    parents: Vec<usize>,
    /// Classes that stay.
    pinned: Vec<usize>,
    sites: Vec<Site>,
}

impl Walk<'_> {
    fn class(&mut self) -> usize {
        self.parents.push(self.parents.len());
        self.parents.len() - 1
    }

    fn root(&self, class: usize) -> usize {
        let mut class = class;
        while self.parents[class] != class {
            class = self.parents[class];
        }
        class
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.parents[a.max(b)] = a.min(b);
    }

    fn through(&mut self, node: &Node, value: Value) -> Result<Value> {
        match &node.op {
            Op::Layer(spec) => self.layer(node, spec, value),
            Op::Sequential => node.children.iter().try_fold(value, |value, child| self.through(child, value)),
            Op::Join(join) => {
                let mut branches = self.branches(node, &value)?.into_iter();
                let layers = branches.next().context("a composite without layers")?;
                let shortcut = branches.next().unwrap_or(value);
                self.join_branches(*join, layers, shortcut)
            }
            Op::Concat => {
                let branches = self.branches(node, &value)?;
                let tensors: Vec<_> = branches.iter().map(|branch| &branch.tensor).collect();
                Ok(Value {
                    tensor: Tensor::f_cat(&tensors, 1)?,
                    channels: branches.iter().flat_map(|branch| branch.channels.clone()).collect(),
                    is_fixed: branches.iter().flat_map(|branch| branch.is_fixed.clone()).collect(),
                })
            }
            Op::Like(upsample) => {
                let like = value.tensor.shallow_clone();
                let layers = node.children.first().context("nothing to resize")?;
                let resized = self.through(layers, value)?;
                Ok(Value { tensor: upsample.resize_like(&resized.tensor, &like), ..resized })
            }
            Op::Auxiliary(_) => {
                let message = format!(
                    "the auxiliary head `{}` answers in training only, so what it needs cannot be followed: leave `aux` out of the \
                     model, and its weights with `ignore`",
                    node.path
                );
                Err(fail(ExitCode::Usage, message))
            }
            Op::Script(_) => {
                let message =
                    "a TorchScript program cannot be shrunk: it says no layers; declare the network in YAML";
                Err(fail(ExitCode::Usage, message))
            }
        }
    }

    fn branches(&mut self, node: &Node, value: &Value) -> Result<Vec<Value>> {
        let copy = || Value {
            channels: value.channels.clone(),
            is_fixed: value.is_fixed.clone(),
            tensor: value.tensor.shallow_clone(),
        };
        node.children.iter().map(|branch| self.through(branch, copy())).collect()
    }

    fn join_branches(&mut self, join: Join, layers: Value, shortcut: Value) -> Result<Value> {
        let tensor = match join {
            Join::Residual => layers.tensor.f_add(&shortcut.tensor)?,
            Join::Multiply => layers.tensor.f_mul(&shortcut.tensor)?,
            Join::Subtract => shortcut.tensor.f_sub(&layers.tensor)?,
        };
        let (wide, narrow) = if layers.channels.len() < shortcut.channels.len() {
            (&shortcut, &layers)
        } else {
            (&layers, &shortcut)
        };
        let zeros = |value: &Value| -> Result<Vec<bool>> {
            Ok(constants(value)?
                .iter()
                .map(|constant| join == Join::Multiply && *constant == Some(0.0))
                .collect())
        };
        let (wide_zeros, narrow_zeros) = (zeros(wide)?, zeros(narrow)?);
        let mut is_fixed = Vec::with_capacity(wide.channels.len());
        for (index, class) in wide.channels.iter().enumerate() {
            // One channel times many: it belongs to all of them.
            let other = if narrow.channels.len() == wide.channels.len() { index } else { 0 };
            match narrow.channels.len() == wide.channels.len() {
                true => self.join(*class, narrow.channels[other]),
                false => self.pinned.push(narrow.channels[other]),
            }
            let both = wide.is_fixed[index] && narrow.is_fixed[other];
            is_fixed.push(both || wide_zeros[index] || narrow_zeros[other]);
        }
        Ok(Value { channels: wide.channels.clone(), is_fixed, tensor })
    }

    fn layer(&mut self, node: &Node, spec: &LayerSpec, value: Value) -> Result<Value> {
        let tensor = self.compute(node, spec, &value.tensor)?;
        let outputs = node.output[0] as usize;
        let weight = |name: &str| -> Result<&Tensor> {
            let name = join(&node.path, name);
            self.weights.get(&name).with_context(|| format!("no weights for `{name}`"))
        };
        let (mut sum, fresh) = (None, self.parents.len());
        let (channels, is_fixed) = match spec.layer().channel_flow(&node.input) {
            ChannelFlow::Opaque => {
                self.pinned.extend(&value.channels);
                self.pinned.extend(fresh..fresh + outputs);
                ((0..outputs).map(|_| self.class()).collect(), vec![false; outputs])
            }
            ChannelFlow::Sum { output_dim, input_dim, is_uniform } => {
                let weighted = nonzero(weight("weight")?, &[output_dim, input_dim])?;
                let varies: Vec<bool> = value.is_fixed.iter().map(|fixed| !fixed).collect();
                let varies = Tensor::from_slice(&varies);
                let is_fixed = weighted.f_logical_and(&varies)?.f_any_dim(1, false)?.f_logical_not()?;
                let constants = constants(&value)?;
                let folds = is_uniform && self.weights.contains_key(&join(&node.path, "bias"));
                sum = Some(Sum { output_dim, input_dim, folds, constants, weighted });
                ((0..outputs).map(|_| self.class()).collect(), Vec::try_from(is_fixed)?)
            }
            ChannelFlow::Tied { sources, scale } => {
                let alive = match scale {
                    Some(name) => Vec::try_from(nonzero(weight(&name)?, &[0])?)?,
                    None => vec![true; outputs],
                };
                let is_fixed = |(sources, alive): (&Vec<usize>, &bool)| {
                    !alive || sources.iter().all(|source| value.is_fixed[*source])
                };
                let is_fixed = sources.iter().zip(&alive).map(is_fixed).collect();
                let mut channels = Vec::with_capacity(outputs);
                for sources in &sources {
                    let class = match sources.first() {
                        Some(first) => value.channels[*first],
                        None => self.class(),
                    };
                    for source in sources {
                        self.join(class, value.channels[*source]);
                    }
                    channels.push(class);
                }
                (channels, is_fixed)
            }
        };
        self.sites.push(Site { inputs: value.channels, outputs: channels.clone(), sum });
        Ok(Value { channels, is_fixed, tensor })
    }

    /// What a layer answers, alone and in float64.
    fn compute(&self, node: &Node, spec: &LayerSpec, input: &Tensor) -> Result<Tensor> {
        let mut vars = nn::VarStore::new(Device::Cpu);
        vars.set_kind(Kind::Double);
        let module = spec.layer().build(&vars.root(), &node.input);
        for (name, mut tensor) in vars.variables() {
            let name = join(&node.path, &name);
            let trained = self.weights.get(&name).with_context(|| format!("no weights for `{name}`"))?;
            tensor.f_copy_(trained)?;
        }
        Ok(module.forward_t(input, false))
    }

    fn verdict(self) -> Result<Verdict> {
        let resolve = |classes: &[usize]| classes.iter().map(|class| self.root(*class)).collect::<Vec<_>>();
        let mut kept: BTreeSet<usize> = resolve(&self.pinned).into_iter().collect();
        let sites: Vec<Site> = (self.sites.iter())
            .map(|site| Site { inputs: resolve(&site.inputs), outputs: resolve(&site.outputs), sum: None })
            .collect();
        let mut sites: Vec<Site> = sites;
        for (site, before) in sites.iter_mut().zip(self.sites) {
            site.sum = before.sum;
        }
        loop {
            let unsaid = spread(&sites, &mut kept)?;
            let stand_in = stand_ins(&unsaid, &kept);
            let found: BTreeSet<usize> = stand_in.values().copied().collect();
            // A tensor keeps a channel.
            let bare = sites
                .iter()
                .find(|site| !site.outputs.iter().any(|class| kept.contains(class) || found.contains(class)));
            let more = found.into_iter().chain(bare.and_then(|site| site.outputs.first().copied()));
            let before = kept.len();
            kept.extend(more);
            if kept.len() == before {
                return Ok(Verdict { sites, kept, stand_in });
            }
        }
    }
}

/// Where a class that nothing else needs is a constant that a layer cannot take into its bias: its values there.
type Unsaid = BTreeMap<usize, BTreeMap<usize, f64>>;

/// Adds all classes that those in `kept` depend on.
fn spread(sites: &[Site], kept: &mut BTreeSet<usize>) -> Result<Unsaid> {
    loop {
        let (before, mut unsaid) = (kept.len(), Unsaid::new());
        // From the last layer to the first, so that one round is nearly enough.
        for (index, site) in sites.iter().enumerate().rev() {
            let Some(sum) = &site.sum else { continue };
            let rows: Vec<bool> = site.outputs.iter().map(|class| kept.contains(class)).collect();
            let rows = Tensor::from_slice(&rows).f_unsqueeze(1)?;
            let wanted: Vec<bool> = Vec::try_from(sum.weighted.f_logical_and(&rows)?.f_any_dim(0, false)?)?;
            for (input, class) in site.inputs.iter().enumerate() {
                if !wanted[input] {
                    continue;
                }
                match sum.constants[input] {
                    Some(0.0) => {}
                    Some(_) if sum.folds => {}
                    Some(value) => {
                        unsaid.entry(*class).or_default().insert(index, value);
                    }
                    None => {
                        kept.insert(*class);
                    }
                }
            }
        }
        if kept.len() == before {
            return Ok(unsaid);
        }
    }
}

/// For each constant class one that says it too, because it is a constant other than 0 wherever that is: often one
/// for all channels of a layer. Those map to themselves.
fn stand_ins(unsaid: &Unsaid, kept: &BTreeSet<usize>) -> BTreeMap<usize, usize> {
    let least =
        |values: &BTreeMap<usize, f64>| values.values().fold(f64::INFINITY, |least, v| least.min(v.abs()));
    let mut classes: Vec<_> = unsaid.iter().collect();
    // Those that stay anyway first; then those with most places and large values, by which weights stay moderate.
    classes.sort_by(|(one, a), (other, b)| {
        let stays = kept.contains(*other).cmp(&kept.contains(*one));
        stays.then(b.len().cmp(&a.len())).then(least(b).total_cmp(&least(a)))
    });
    let mut chosen: Vec<(usize, &BTreeMap<usize, f64>)> = Vec::new();
    let mut stand_in = BTreeMap::new();
    for (class, places) in classes {
        let says = |(_, other): &&(usize, &BTreeMap<usize, f64>)| {
            places.keys().all(|place| other.contains_key(place))
        };
        let by = chosen.iter().find(says).map(|(by, _)| *by);
        if by.is_none() {
            chosen.push((*class, places));
        }
        stand_in.insert(*class, by.unwrap_or(*class));
    }
    stand_in
}

/// Whether anything is other than 0 in each slice of `weight` along `dims`.
fn nonzero(weight: &Tensor, dims: &[i64]) -> Result<Tensor> {
    let others: Vec<i64> = (0..weight.dim() as i64).filter(|dim| !dims.contains(dim)).collect();
    let mut any = weight.f_ne(0.0)?;
    for dim in others.into_iter().rev() {
        any = any.f_any_dim(dim, false)?;
    }
    Ok(if dims.is_sorted() { any } else { any.f_transpose(0, 1)? })
}

/// By channel its value, where it is the same for every input and at every pixel.
fn constants(value: &Value) -> Result<Vec<Option<f64>>> {
    let flat = value.tensor.f_transpose(0, 1)?.f_flatten(1, -1)?;
    let [low, high] = [flat.f_amin([1], false)?, flat.f_amax([1], false)?];
    let [low, high]: [Vec<f64>; 2] = [Vec::try_from(low)?, Vec::try_from(high)?];
    let constant = |(index, fixed): (usize, &bool)| {
        let (low, high) = (low[index], high[index]);
        // Averages of equal numbers differ by rounding.
        let is_one = high - low <= 1e-12 * high.abs().max(low.abs());
        (*fixed && is_one).then_some(if low == high { low } else { (low + high) / 2.0 })
    };
    Ok(value.is_fixed.iter().enumerate().map(constant).collect())
}
