//! The weights that a network starts from, or is judged with, when they come from a file.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use anyhow::Result;
use serde_json::Map;
use tch::Tensor;

use super::fit::{Fit, Named, fit_names};
use super::python::Container;
use super::python_optimizer::{Known, PythonOptimizer};
use super::weights::{Weights, read_weights};
use super::{Checkpoints, is_checkpoint, load};
use crate::exit::{Exit, OrExit, fail};
use crate::layers::{Param, ParamKind};
use crate::model::{InitFrom, Model, Network, Patterns};
use crate::optim::OptimizerSpec;
use crate::penalty::Group;
use crate::schedule::Clock;

/// Values for a network's tensors, checked to fit it.
pub struct Initial {
    /// By the network's names, in the file's dtypes; a part of them where the file is partial or some are reset.
    pub tensors: BTreeMap<String, Tensor>,
    /// What was found, stripped, left out: for the user to see.
    pub notes: Vec<String>,
    /// The optimiser's state by the network's names; empty where none is wanted.
    pub optimizer: BTreeMap<String, Tensor>,
    /// The parameters of the file in Python's order of definition, by the network's names where it has them.
    listed: Vec<Listed>,
}

/// A parameter of the file.
struct Listed {
    name: String,
    shape: Vec<i64>,
    /// Whether its value was taken.
    is_taken: bool,
}

/// The weights of a file, of a run folder (its best checkpoint, else its last) or of a checkpoint's folder. Exit 4
/// where there are none.
pub fn read_place(path: &Path, key: Option<&str>) -> Result<Weights> {
    if !path.is_dir() {
        return read_weights(path, key);
    }
    let checkpoints = Checkpoints::of(path);
    let loaded = if is_checkpoint(path) {
        load(path)?
    } else if checkpoints.are_kept() {
        checkpoints.chosen(None)?
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
        const KEY: &str = "model.init_from";
        let context = || format!("{KEY}: {}", spec.file);
        let weights =
            read_place(Path::new(&spec.file), spec.key.as_deref()).or_exit(Exit::Checkpoint, || KEY)?;
        let mut names: Vec<String> = weights.tensors.iter().map(|(name, _)| name.clone()).collect();
        for rule in &spec.rename {
            rule.apply(&mut names).or_exit(Exit::Usage, || KEY)?;
        }
        let remedy = "`rename` mends names; `reset` lists those that start afresh, such as a head of another width; \
                      `partial: true` takes whatever fits";
        Self::fit(model.params(), &weights, &names, spec, remedy).or_exit(Exit::Checkpoint, context)
    }

    /// The same for an option of the command line, which takes a file as it is.
    pub fn read_option(model: &Model, file: &Path, key: Option<&str>) -> Result<Self> {
        let spec = InitFrom { key: key.map(str::to_owned), ..InitFrom::new(file.to_string_lossy()) };
        let weights = read_place(file, key)?;
        let names: Vec<String> = weights.tensors.iter().map(|(name, _)| name.clone()).collect();
        let remedy = "`tikhonov convert FILE NEW --rename 'regex=>replacement'` mends names; a network that differs needs a \
                      config with `model.init_from`";
        Self::fit(model.params(), &weights, &names, &spec, remedy)
            .or_exit(Exit::Checkpoint, || file.display())
    }

    fn fit(
        params: &[Param],
        weights: &Weights,
        names: &[String],
        spec: &InitFrom,
        remedy: &str,
    ) -> Result<Self> {
        let wanted: Vec<Named> = params.iter().map(|param| (param.name.as_str(), &param.shape[..])).collect();
        let shapes: Vec<Vec<i64>> = weights.tensors.iter().map(|(_, tensor)| tensor.size()).collect();
        let found: Vec<Named> =
            names.iter().map(String::as_str).zip(shapes.iter().map(Vec::as_slice)).collect();
        let mut fit = fit_names(&wanted, &found);
        let reset = Patterns::new(&spec.reset);
        let kept_fresh = params.iter().filter(|param| reset.matches(&param.name)).count();
        fit.leave_out(&wanted, |name| reset.matches(name));
        if fit.mapping.is_empty() || !(spec.partial || fit.is_complete()) {
            let nothing = "nothing fits: check the key, the names and the model";
            let remedy = if fit.mapping.is_empty() { nothing } else { remedy };
            let stripped =
                fit.stripped.as_ref().map_or_else(String::new, |prefix| format!(", `{prefix}` taken off"));
            let message = format!(
                "the {} does not fit the network: {} of {} tensors do{stripped}\n{fit}{remedy}",
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
        let listed = listed(params, weights, names, &fit);
        let notes = notes(params, weights, &fit, kept_fresh, spec);
        Ok(Self { tensors, notes, optimizer: BTreeMap::new(), listed })
    }

    /// Takes the state of the optimiser beside the weights too, if `from` wants it: for a run with this optimiser and these
    /// penalty groups of the model's trainable parameters. Exit 4 where it does not fit.
    pub fn take_optimizer(
        &mut self,
        model: &Model,
        from: &InitFrom,
        optimizer: &OptimizerSpec,
        groups: &[Group],
    ) -> Result<()> {
        if from.optimizer.is_nowhere() {
            return Ok(());
        }
        let context = || "model.init_from.optimizer";
        let path = Path::new(&from.file);
        if path.is_dir() {
            let message =
                "a run folder's optimizer goes on with `train --resume`; here it comes from a Python file";
            return Err(fail(Exit::Usage, message)).or_exit(Exit::Usage, context);
        }
        let mut state =
            PythonOptimizer::open(path, from.optimizer.key()).or_exit(Exit::Checkpoint, context)?;
        state.rename(&from.rename);
        let trainable: Vec<&str> = model
            .params()
            .iter()
            .filter(|param| param.is_trainable())
            .map(|param| param.name.as_str())
            .collect();
        let start = Clock { step: 0, steps_per_epoch: 1, total_steps: 1 };
        let mut rates = BTreeMap::new();
        for group in groups {
            let names = group.members.iter().filter_map(|&i| trainable.get(i).copied());
            rates.extend(names.map(|name| (name, group.rates(start))));
        }
        let known: Vec<Known> = (self.listed.iter())
            .map(|listed| Known {
                name: &listed.name,
                shape: &listed.shape,
                rates: rates.get(listed.name.as_str()).copied().filter(|_| listed.is_taken),
            })
            .collect();
        let fitted = state.fit(&known, optimizer).or_exit(Exit::Checkpoint, context)?;
        let has_state =
            |name: &str| fitted.state.keys().any(|key| key.rsplit_once('.').is_some_and(|key| key.0 == name));
        let taken = trainable.iter().filter(|name| has_state(name)).count();
        let key = if state.key.is_empty() { "the file's root" } else { &state.key };
        self.notes.push(format!(
            "optimizer: state of {taken} of {} parameters from `{key}`; schedule and epochs start anew",
            trainable.len()
        ));
        self.notes.extend(fitted.notes);
        self.optimizer = fitted.state;
        Ok(())
    }

    /// Copies the values in; what has none keeps its own.
    pub fn load_into(&self, network: &Network) -> Result<()> {
        let mut state: BTreeMap<String, Tensor> = network.state().into_iter().collect();
        state.extend(self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())));
        network.load_state(&state)?;
        for (name, tensor) in network.state() {
            if self.tensors.contains_key(&name) && !tensor.f_isfinite()?.f_all()?.f_int64_value(&[])?.eq(&1) {
                let message = format!(
                    "`{name}` holds NaN or infinity, or what {:?} cannot hold; `tikhonov inspect` shows where",
                    tensor.kind()
                );
                return Err(fail(Exit::Checkpoint, message))
                    .or_exit(Exit::Checkpoint, || "the initial weights");
            }
        }
        Ok(())
    }
}

/// The file's tensors that are parameters: all but buffers, a tied one under its first name, as Python's `parameters()` goes.
fn listed(params: &[Param], weights: &Weights, names: &[String], fit: &Fit) -> Vec<Listed> {
    let taken: BTreeMap<usize, usize> = fit.mapping.iter().map(|&(at, from)| (from, at)).collect();
    let stripped = fit.stripped.as_deref().unwrap_or_default();
    let mut places = HashSet::new();
    let mut listed = Vec::new();
    for (index, (name, (_, tensor))) in names.iter().zip(&weights.tensors).enumerate() {
        let plain = name.strip_prefix(stripped).unwrap_or(name);
        let own = match taken.get(&index) {
            Some(&at) => params.get(at),
            None => params.iter().find(|param| param.name == plain),
        };
        const BUFFERS: [&str; 3] = ["running_mean", "running_var", "num_batches_tracked"];
        let is_buffer = match own {
            Some(param) => param.kind == ParamKind::Buffer,
            None => plain.rsplit('.').next().is_some_and(|last| BUFFERS.contains(&last)),
        };
        let is_tied = tensor.numel() > 0 && !places.insert((tensor.data_ptr() as usize, tensor.size()));
        if !is_buffer && !is_tied {
            let name = own.map_or_else(|| plain.to_owned(), |param| param.name.clone());
            listed.push(Listed { name, shape: tensor.size(), is_taken: taken.contains_key(&index) });
        }
    }
    listed
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
