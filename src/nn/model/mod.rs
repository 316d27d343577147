//! A network as declared: YAML becomes a checked tree of layers, the tree becomes a tch network.

mod auxiliary;
mod block;
mod builder;
mod expand;
mod exported;
mod expr;
pub mod family;
mod features;
mod formula;
mod grow;
mod init;
mod init_from;
mod joined;
mod naming;
mod network;
mod order;
mod padding;
mod scope;
pub(crate) mod scripted;
mod segments;
mod spec;
mod summary;
mod tree;

use std::collections::{BTreeMap, HashSet};

use anyhow::Result;
use serde::Deserialize;
use serde_json::{Map, Value};
use tch::Tensor;

use crate::nn::layers::{Param, Shape};
use crate::util::yaml::{self, Invalid};
use init::Inits;
use scripted::Script;

pub use auxiliary::{AuxiliaryHead, named_heads};
pub use features::features;
pub(crate) use init_from::Patterns;
pub use init_from::{InitFrom, OptimizerFrom, Texts};
pub(crate) use joined::Join;
pub use network::{Network, Parameter};
pub use padding::Sides;
pub use spec::{Language, ModelSource, ModelSpec};
pub(crate) use summary::thousands;
pub use summary::{ParameterRow, Rates, Row, Summary};
use tree::Folded;
pub(crate) use tree::{Node, Op, join};

/// A network that is parsed and whose shapes fit: nothing in it can fail any more but memory.
#[derive(Debug)]
pub struct Model {
    name: String,
    input: Shape,
    root: Node,
    params: Vec<Param>,
    init: Inits,
}

/// What a model file holds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    #[serde(default)]
    args: Map<String, Value>,
    #[serde(default)]
    blocks: BTreeMap<String, block::Block>,
    #[serde(default)]
    init: Map<String, Value>,
    /// Names of siblings in the order of PyTorch's `state_dict()`, where it is another than that of computation.
    #[serde(default)]
    order: Vec<String>,
    /// The shape of one sample, without the batch dimension.
    input: Value,
    layers: Value,
}

impl Model {
    /// Reads, expands and checks what `spec` names. Every mistake is exit 2 and says file, line, layer, what
    /// came in and what was wanted.
    pub fn from_spec(spec: &ModelSpec) -> Result<Self> {
        spec.model().map_err(|problem| problem.into_error("model"))
    }

    /// A network that is a program, to be fed samples of shape `input`.
    fn from_program(language: Language, file: &str, input: &[i64]) -> Result<Self> {
        let script = Script::open(language, file, input)?;
        let (params, output) = (script.params.clone(), script.output.clone());
        let root = Node {
            label: String::new(),
            path: String::new(),
            place: String::new(),
            source: language.key().into(),
            op: Op::Script(script),
            input: input.to_vec(),
            output,
            children: Vec::new(),
            tap: None,
        };
        Ok(Self { name: file.to_owned(), input: input.to_vec(), root, params, init: Inits::default() })
    }

    /// Checks a description with the arguments already in place.
    fn from_tree(name: String, tree: &Value) -> Result<Self, Invalid> {
        let Description { args, blocks, init, order, input, layers } = yaml::decode(tree)?;
        let expanded = expand::expand(&args, &blocks, &input, &layers)?;
        let root = grow::check(expanded.layers, &expanded.input)?;
        let mut params = Vec::new();
        let mut owners = HashSet::new();
        for leaf in root.leaves() {
            let own = leaf.params();
            if own.is_empty() {
                continue;
            }
            if !leaf.is_bare_parameter() && !owners.insert(leaf.path.as_str()) {
                return Err(Invalid::new(
                    leaf.source.clone(),
                    format!(
                        "a second layer with the parameter names `{}.*`; name one of them otherwise",
                        leaf.path
                    ),
                ));
            }
            params.extend(own.into_iter().map(|param| (leaf.is_bare_parameter(), param)));
        }
        let params = order::arranged(params, &order)?;
        let mut names = HashSet::new();
        if let Some(twice) = params.iter().find(|param| !names.insert(param.name.as_str())) {
            return Err(Invalid::new(
                "layers",
                format!("two tensors are called `{}`; rename a layer", twice.name),
            ));
        }
        let init = Inits::decode(&init, &expanded.args, &params)?;
        if let Some(leaf) = root.leaves().into_iter().find(|leaf| init.misses(leaf)) {
            let kind = leaf.wraps().unwrap_or_default();
            let message = format!(
                "does not reach the {kind} inside `{}`, whose weight is computed: name its tensors by a pattern, or leave the entry out",
                leaf.place
            );
            return Err(Invalid::new(format!("init.{kind}"), message));
        }
        Ok(Self { name, input: expanded.input, root, params, init })
    }

    /// The shipped name or the file that it came from; `inline` for one inside a run config.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The shape of one sample, without the batch dimension.
    pub fn input(&self) -> &[i64] {
        &self.input
    }

    /// The shape of one output, without the batch dimension.
    pub fn output(&self) -> &[i64] {
        &self.root.output
    }

    /// The shapes of one sample before and after the top-level layer `name`, written so or as `_name`.
    pub fn child(&self, name: &str) -> Option<(&[i64], &[i64])> {
        self.root
            .children
            .iter()
            .find(|child| child.name() == name)
            .map(|child| (child.input.as_slice(), child.output.as_slice()))
    }

    /// The shape that the top-level layer `name` makes of one sample of shape `input`; None where it does not
    /// fit.
    pub fn child_output(&self, name: &str, input: &[i64]) -> Option<Shape> {
        self.root.children.iter().find(|child| child.name() == name)?.output_of(input)
    }

    /// The heights and widths that it takes without padding; None where it takes no images, or those of one
    /// size only.
    pub fn sides(&self) -> Option<Sides> {
        Sides::of(&self.root)
    }

    /// What is computed, as text: the layers with their arguments, in their order.
    pub fn structure(&self) -> Result<String> {
        Ok(self.root.structure()?)
    }

    /// Parameters and buffers in the order of PyTorch's `state_dict()`.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// The number of trainable values.
    pub fn parameter_count(&self) -> i64 {
        self.params.iter().filter(|param| param.is_trainable()).map(Param::count).sum()
    }

    /// The heads that only training uses, in the order of definition.
    pub fn auxiliary_heads(&self) -> Vec<AuxiliaryHead> {
        auxiliary::heads(&self.root)
    }

    /// Whether the tensor `name` belongs to a head that only training uses.
    pub fn is_auxiliary(&self, name: &str) -> bool {
        self.auxiliary_heads().iter().any(|head| head.holds(name))
    }

    /// The smallest batch to train on: 2 where a batch norm sees a single value per channel and sample.
    pub fn min_batch(&self) -> i64 {
        self.root.leaves().into_iter().map(Node::min_batch).max().unwrap_or(1)
    }

    /// The same with plain layers in the place of those whose weights are computed, such as `weight_norm`;
    /// `weights`, all of the network by name, become those that evaluation computes. Returns how many layers
    /// were exchanged.
    pub(crate) fn fold(&mut self, weights: &mut BTreeMap<String, Tensor>) -> usize {
        let mut folded = Vec::new();
        self.root.fold(weights, &mut folded);
        for Folded { weight, gone } in &folded {
            let is_own = |param: &Param| gone.contains(&param.name) || param.name == weight.name;
            let prefix = weight.name.strip_suffix("weight").unwrap_or(&weight.name);
            let first = self.params.iter().position(|param| param.name.starts_with(prefix));
            self.params.retain(|param| !is_own(param));
            let at = first.unwrap_or(self.params.len()).min(self.params.len());
            self.params.insert(at, weight.clone());
        }
        folded.len()
    }

    /// The checked tree, for the rooms that walk it.
    pub(crate) fn root(&self) -> &Node {
        &self.root
    }
}
