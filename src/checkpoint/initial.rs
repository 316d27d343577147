//! The weights that a network starts from, or is judged with, when they come from a file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde_json::Map;
use tch::Tensor;

use super::fit::{Fit, Named, fit_names};
use super::python::Container;
use super::weights::{Weights, read_weights};
use super::{Checkpoints, store};
use crate::exit::{Exit, OrExit, fail};
use crate::layers::Param;
use crate::model::{InitFrom, Model, Network, Patterns};

/// Values for a network's tensors, checked to fit it.
pub struct Initial {
    /// By the network's names, in the file's dtypes; a part of them where the file is partial or some are reset.
    pub tensors: BTreeMap<String, Tensor>,
    /// What was found, stripped, left out: for the user to see.
    pub notes: Vec<String>,
}

/// The weights of a file, of a run folder (its best checkpoint, else its last) or of a checkpoint's folder. Exit 4
/// where there are none.
pub fn read_place(path: &Path, key: Option<&str>) -> Result<Weights> {
    if !path.is_dir() {
        return read_weights(path, key);
    }
    let checkpoints = path.join("checkpoints");
    let loaded = if path.join("state.json").is_file() {
        store::load(path)?
    } else if checkpoints.is_dir() {
        Checkpoints::new(checkpoints).chosen(None)?
    } else {
        let message = format!("{} is a folder, but of no run and no checkpoint; give a file", path.display());
        return Err(fail(Exit::Checkpoint, message));
    };
    Ok(Weights {
        container: Container::Safetensors,
        structure: format!("checkpoint {}", loaded.folder.display()),
        key: String::new(),
        others: Vec::new(),
        tensors: loaded.weights().into_iter().collect(),
        metadata: Map::from_iter([("epoch".to_owned(), loaded.state.epoch.into())]),
    })
}

impl Initial {
    /// Reads what `spec` names and fits it to `model`. Exit 4, with every name that does not fit, unless the spec says
    /// that a part will do.
    pub fn read(model: &Model, spec: &InitFrom) -> Result<Self> {
        let path = Path::new(&spec.file);
        let context = || format!("model.init_from: {}", path.display());
        let weights =
            read_place(path, spec.key.as_deref()).or_exit(Exit::Checkpoint, || "model.init_from")?;
        let mut names: Vec<String> = weights.tensors.iter().map(|(name, _)| name.clone()).collect();
        for rule in &spec.rename {
            rule.apply(&mut names).or_exit(Exit::Usage, || "model.init_from")?;
        }
        Self::fit(model.params(), &weights, &names, spec).or_exit(Exit::Checkpoint, context)
    }

    fn fit(params: &[Param], weights: &Weights, names: &[String], spec: &InitFrom) -> Result<Self> {
        let wanted: Vec<Named> = params.iter().map(|param| (param.name.as_str(), &param.shape[..])).collect();
        let shapes: Vec<Vec<i64>> = weights.tensors.iter().map(|(_, tensor)| tensor.size()).collect();
        let found: Vec<Named> =
            names.iter().map(String::as_str).zip(shapes.iter().map(Vec::as_slice)).collect();
        let mut fit = fit_names(&wanted, &found);
        let reset = Patterns::new(&spec.reset);
        let kept_fresh = params.iter().filter(|param| reset.matches(&param.name)).count();
        fit.leave_out(&wanted, |name| reset.matches(name));
        if fit.mapping.is_empty() || !(spec.partial || fit.is_complete()) {
            let remedy = match (fit.mapping.is_empty(), fit.mismatched.is_empty()) {
                (true, _) => "nothing fits: check `key`, `rename` and the model",
                (_, false) => {
                    "`reset` lists names that start afresh, such as a head of another width; `partial: true` \
                               takes whatever fits; `rename` mends names"
                }
                _ => "`rename` mends names; `partial: true` takes what fits",
            };
            let message = format!(
                "the {} does not fit the network: {} of {} tensors do\n{fit}{remedy}",
                weights.structure,
                fit.mapping.len(),
                params.len()
            );
            return Err(fail(Exit::Checkpoint, message));
        }
        let mut tensors = BTreeMap::new();
        for &(at, from) in &fit.mapping {
            let (name, tensor) = (&params[at].name, &weights.tensors[from].1);
            if tensor.is_complex() {
                let message = format!("`{}` is complex, and the network's {name} is real", names[from]);
                return Err(fail(Exit::Checkpoint, message));
            }
            tensors.insert(name.clone(), tensor.shallow_clone());
        }
        for &at in &fit.zeros {
            let zero = Tensor::f_zeros([0i64; 0], (tch::Kind::Int64, tch::Device::Cpu))?;
            tensors.insert(params[at].name.clone(), zero);
        }
        Ok(Self { tensors, notes: notes(params, weights, &fit, kept_fresh, spec) })
    }

    /// Copies the values in; what has none keeps its own.
    pub fn load_into(&self, network: &Network) -> Result<()> {
        let mut state: BTreeMap<String, Tensor> = network.state().into_iter().collect();
        state.extend(self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())));
        network.load_state(&state)
    }
}

fn notes(params: &[Param], weights: &Weights, fit: &Fit, kept_fresh: usize, spec: &InitFrom) -> Vec<String> {
    let mut first = format!(
        "initial weights: {} of {} tensors from the {} of {}",
        fit.mapping.len(),
        params.len(),
        weights.structure,
        spec.file
    );
    if let Some(stripped) = &fit.stripped {
        first += &format!(", `{stripped}` taken off their names");
    }
    if !weights.others.is_empty() {
        let others: Vec<_> =
            weights.others.iter().map(|(path, count)| format!("`{path}` ({count})")).collect();
        first += &format!("; `key` would choose {}", others.join(", "));
    }
    let mut notes = vec![first];
    if !fit.zeros.is_empty() {
        notes.push(format!(
            "initial weights: {} num_batches_tracked that the file lacks are 0",
            fit.zeros.len()
        ));
    }
    if kept_fresh > 0 {
        notes.push(format!("initial weights: {kept_fresh} tensors start afresh (`reset`)"));
    }
    if !fit.is_complete() {
        notes.push(format!("initial weights, `partial`: {}", fit.to_string().trim_end()));
    }
    let frozen = params.iter().filter(|param| param.frozen).count();
    if frozen > 0 {
        notes.push(format!("{frozen} tensors are frozen"));
    }
    notes
}
