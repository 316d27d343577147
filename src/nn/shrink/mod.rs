//! A trained network without the channels that do nothing: the same answers from less arithmetic (Wen et al. 2016:
//! Learning structured sparsity in deep neural networks; the constants that remain are folded, which they are not
//! there).

mod flow;
mod rewrite;

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Map, Value};
use tch::Tensor;

use crate::nn::model::{Model, ModelSource, ModelSpec};

/// A smaller network that answers as a larger one does.
pub struct Shrunk {
    pub model: Model,
    /// Its description, as a model file holds it.
    pub description: Map<String, Value>,
    /// By the model's names.
    pub weights: BTreeMap<String, Tensor>,
    /// What is left of every tensor, for states of optimisers.
    pub slices: BTreeMap<String, Slices>,
}

/// Indices of a tensor that are kept, by dimension.
pub type Slices = Vec<(i64, Tensor)>;

/// Removes what does nothing. `weights` are by the model's names and in any floating-point kind, which stays. Exit 2
/// where the network is a TorchScript program.
pub fn shrink(model: &Model, weights: &BTreeMap<String, Tensor>) -> Result<Shrunk> {
    let verdict = flow::analyse(model, weights)?;
    let rewrite::Rewritten { layers, weights, slices } = rewrite::rewrite(model, weights, &verdict)?;
    let description = Map::from_iter([("input".into(), model.input().into()), ("layers".into(), layers)]);
    let source = ModelSource::Inline(description.clone());
    let model = Model::from_spec(&ModelSpec { source, init_from: None })?;
    Ok(Shrunk { model, description, weights, slices })
}
