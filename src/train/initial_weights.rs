//! The weights that a network starts from, or is judged with, when they come from a file.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use anyhow::Result;
use tch::Tensor;

use crate::checkpoint::{Checkpoints, is_checkpoint, load};
use crate::config::Config;
use crate::data::normalize::{Normalize, NormalizeSpec};
use crate::nn::layers::{Param, ParamKind};
use crate::nn::model::{AuxiliaryHead, InitFrom, Model, ModelSpec, Network, Patterns, named_heads};
use crate::optim::OptimizerSpec;
use crate::penalty::ParamGroup;
use crate::pytorch::name_matching::{KeyMatch, Named, match_keys};
use crate::pytorch::optimizer_state::{Known, PythonOptimizer};
use crate::pytorch::reader::Container;
use crate::pytorch::reparametrized::{self, Computed};
use crate::pytorch::weights::{Part, Weights, read_part};
use crate::pytorch::{attributes, dcp, sharded};
use crate::schedule::ScheduleStep;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::yaml;

/// Values for a network's tensors, checked to fit it.
pub struct InitialWeights {
    /// By the network's names, in the file's dtypes; a part of them where the file is partial or some are
    /// reset.
    pub tensors: BTreeMap<String, Tensor>,
    /// The network's tensors that have none and keep their own.
    pub fresh: Vec<String>,
    /// What the file says of the inputs that the weights were trained on.
    normalize: Option<Normalize>,
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

/// The weights of a file, of a run folder (its best checkpoint, else its last), of a checkpoint's folder, or
/// of one of Hugging Face's or DCP's. Exit 4 where there are none.
pub fn read_place(path: &Path, part: &Part) -> Result<Weights> {
    if !path.is_dir() || is_pythons(path) {
        return read_part(path, part);
    }
    let checkpoints = Checkpoints::of(path);
    let mut loaded = if is_checkpoint(path) {
        load(path)?
    } else if checkpoints.are_kept() {
        checkpoints.chosen(None)?
    } else {
        return Err(fail(ExitCode::Checkpoint, no_weights(path)));
    };
    if part.raw {
        loaded.ema = None;
    }
    let structure = format!("checkpoint {}{}", loaded.folder.display(), loaded.kind());
    let tensors = in_order(loaded.weights(), &loaded.state.config["model"]);
    let mut weights = Weights::new(Container::Safetensors, structure, tensors);
    weights.metadata.insert("epoch".to_owned(), loaded.state.epoch.into());
    for key in ["mean", "std"] {
        let numbers = &loaded.state.config["data"]["normalize"][key];
        if numbers.is_array() {
            weights.metadata.insert(key.to_owned(), numbers.clone());
        }
    }
    Ok(weights)
}

/// Whether a folder is of Hugging Face's or DCP's, and no checkpoint of ours.
pub fn is_pythons(folder: &Path) -> bool {
    let theirs = || {
        dcp::folder(folder).is_some() || sharded::index(folder).is_some() || sharded::single(folder).is_some()
    };
    folder.is_dir() && !is_checkpoint(folder) && theirs()
}

pub fn no_weights(folder: &Path) -> String {
    format!(
        "{} is a folder, but of no run, no checkpoint, no Hugging Face model and no DCP checkpoint; give a file",
        folder.display()
    )
}

/// The tensors in PyTorch's order, where the checkpoint's network can still be made; else by name.
fn in_order(mut tensors: BTreeMap<String, Tensor>, model: &serde_json::Value) -> Vec<(String, Tensor)> {
    let spec = yaml::decode::<ModelSpec>(model).ok().map(|spec| ModelSpec { init_from: None, ..spec });
    let model = spec.and_then(|spec| Model::from_spec(&spec).ok());
    let names = model.iter().flat_map(|model| model.params()).map(|param| param.name.clone());
    let mut ordered: Vec<_> =
        names.filter_map(|name| tensors.remove(&name).map(|tensor| (name, tensor))).collect();
    ordered.extend(tensors);
    ordered
}

impl InitialWeights {
    /// Reads what `spec` names and fits it to `model`. Exit 4, with every name that does not fit, unless the
    /// spec says that a part will do.
    pub fn read(model: &Model, spec: &InitFrom) -> Result<Self> {
        const KEY: &str = "model.init_from";
        let context = || format!("{KEY}: {}", spec.files());
        // An optimiser's state belongs to the weights that it moved.
        let raw = !spec.optimizer.is_nowhere();
        let part = Part { keys: spec.key.0.clone(), ignore: spec.ignore.clone(), raw };
        let mut parts = Vec::new();
        for file in &spec.file.0 {
            parts.push(read_place(Path::new(file), &part).with_exit_code(ExitCode::Checkpoint, || KEY)?);
        }
        let weights = Weights::joined(parts).with_exit_code(ExitCode::Checkpoint, context)?;
        weights.kept(&spec.ignore).with_exit_code(ExitCode::Usage, || KEY)?;
        let mut names: Vec<String> = weights.tensors.iter().map(|(name, _)| name.clone()).collect();
        for rule in &spec.rename {
            rule.apply(&mut names).with_exit_code(ExitCode::Usage, || KEY)?;
        }
        let remedy = "`rename` mends names; `reset` lists those that start afresh, such as a head of another width; `ignore` leaves \
                      out what the file has too much; `partial: true` takes whatever fits";
        Self::fit(model, &weights, &names, spec, Head::MayDiffer, remedy)
            .with_exit_code(ExitCode::Checkpoint, context)
    }

    /// The same for an option of the command line, which takes a file as it is.
    pub fn read_option(model: &Model, file: &Path, part: &Part) -> Result<Self> {
        let spec = InitFrom { ignore: part.ignore.clone(), ..InitFrom::new(file.to_string_lossy()) };
        let weights = read_place(file, part)?;
        weights.kept(&part.ignore)?;
        let names: Vec<String> = weights.tensors.iter().map(|(name, _)| name.clone()).collect();
        let remedy = "`--ignore PATTERN` leaves out what the file has too much; `tikhonov convert FILE NEW --rename \
                      'regex=>replacement'` mends names; a network that differs needs a config with `model.init_from`";
        Self::fit(model, &weights, &names, &spec, Head::Fits, remedy)
            .with_exit_code(ExitCode::Checkpoint, || file.display())
    }

    fn fit(
        model: &Model,
        weights: &Weights,
        names: &[String],
        spec: &InitFrom,
        head: Head,
        remedy: &str,
    ) -> Result<Self> {
        let params = model.params();
        let kept = weights.kept(&spec.ignore)?;
        let computed = reparametrized::plain(names, &weights.tensors)?;
        // The file's tensors, then what is computed from them: name, tensor, place in the file.
        let own = names.iter().zip(&weights.tensors).enumerate().filter(|(at, _)| kept[*at]);
        let mut sources: Vec<Source> =
            own.map(|(at, (name, (_, tensor)))| Source { name, tensor, at: Some(at) }).collect();
        sources.extend(computed.iter().map(|made| Source {
            name: &made.name,
            tensor: &made.tensor,
            at: None,
        }));
        let wanted: Vec<Named> = params.iter().map(|param| (param.name.as_str(), &param.shape[..])).collect();
        let shapes: Vec<Vec<i64>> = sources.iter().map(|source| source.tensor.size()).collect();
        let found: Vec<Named> =
            sources.iter().map(|source| source.name).zip(shapes.iter().map(Vec::as_slice)).collect();
        let mut fit = match_keys(&wanted, &found);
        let taken: BTreeSet<&str> = fit.mapping.iter().map(|&(_, from)| sources[from].name).collect();
        let (used, unused): (Vec<&Computed>, Vec<&Computed>) =
            computed.iter().partition(|computed| taken.contains(computed.name.as_str()));
        let spent: BTreeSet<&str> =
            used.iter().flat_map(|computed| &computed.from).map(|&at| names[at].as_str()).collect();
        fit.unexpected.retain(|(name, _)| {
            !spent.contains(name.as_str()) && !unused.iter().any(|computed| computed.name == *name)
        });
        let reset = Patterns::new(&spec.reset);
        let kept_fresh = params.iter().filter(|param| reset.matches(&param.name)).count();
        fit.ignore(&wanted, |name| reset.matches(name));
        let other_head = match head {
            Head::MayDiffer if !spec.partial && !fit.is_complete() => other_head(params, &fit),
            _ => None,
        };
        if let Some((module, _)) = &other_head {
            fit.ignore(&wanted, |name| module_of(name) == module);
        }
        let lacking = lacking_heads(model, &wanted, &fit);
        fit.ignore(&wanted, |name| lacking.iter().any(|head| head.holds(name)));
        if fit.mapping.is_empty() || !(spec.partial || fit.is_complete()) {
            let nothing = "nothing fits: check the key, the names and the model";
            let mut remedy = if fit.mapping.is_empty() { nothing } else { remedy }.to_owned();
            let strange: Vec<String> = fit.unexpected.iter().map(|(name, _)| name.clone()).collect();
            for line in reparametrized::explain(&strange) {
                remedy = format!("{line}\n{remedy}");
            }
            if !weights.others.is_empty() {
                remedy += &format!(
                    "; the file has other parts: {}; several keys join parts, the key `.` takes a tree of dicts whole",
                    weights.other_parts()
                );
            }
            let stripped =
                fit.stripped.as_ref().map_or_else(String::new, |prefix| format!(", `{prefix}` taken off"));
            let message = format!(
                "the {} does not fit the network: {} of {} tensors do{stripped}\n{fit}{remedy}",
                weights.structure,
                fit.mapping.len(),
                params.len()
            );
            return Err(fail(ExitCode::Checkpoint, message));
        }
        let mut tensors = BTreeMap::new();
        for &(at, from) in &fit.mapping {
            let (name, Source { tensor, name: found, .. }) = (&params[at].name, &sources[from]);
            if tensor.is_complex() {
                let message = format!("`{found}` is complex, and the network's {name} is real");
                return Err(fail(ExitCode::Checkpoint, message));
            }
            tensors.insert(name.clone(), tensor.shallow_clone());
        }
        for &at in &fit.zeros {
            let zero = Tensor::f_zeros([0i64; 0], (tch::Kind::Int64, tch::Device::Cpu))?;
            tensors.insert(params[at].name.clone(), zero);
        }
        let places: BTreeMap<usize, usize> =
            fit.mapping.iter().filter_map(|&(at, from)| Some((sources[from].at?, at))).collect();
        let listed = listed(params, weights, names, &fit, &places);
        let mut notes = notes(params, weights, &fit, kept_fresh, spec);
        notes.extend(other_head.map(|(_, note)| note));
        if let Some(heads) = named_heads(&lacking) {
            notes.push(format!(
                "initial weights: the file lacks {heads}; new weights there, for training alone"
            ));
        }
        let ignored = kept.iter().filter(|kept| !**kept).count() + weights.passed_over.len();
        if ignored > 0 {
            notes.push(format!("initial weights: {ignored} tensors of the file are left out (`ignore`)"));
        }
        for how in ["pruning", "weight_norm", "spectral_norm"] {
            let names: Vec<_> = used.iter().filter(|c| c.how == how).map(|c| c.name.as_str()).collect();
            if !names.is_empty() {
                notes.push(format!("initial weights: computed as {how} says: {}", names.join(", ")));
            }
        }
        let place = |layer: &str| {
            let (&from, _) = places.iter().find(|(_, at)| module_of(&params[**at].name) == layer)?;
            Some(module_of(&weights.tensors[from].0).to_owned())
        };
        let prefix = fit.stripped.as_deref().unwrap_or_default();
        let differences = attributes::differences(model, &weights.modules, place, prefix);
        if !differences.is_empty() {
            let lines = differences.join("\n  ");
            if !spec.partial {
                let message = format!(
                    "its {} is another network than the config's:\n  {lines}\nwrite the file's values into the model, or change \
                     them in Python; with `partial: true` in `model.init_from` the config's hold",
                    weights.structure
                );
                return Err(fail(ExitCode::Checkpoint, message));
            }
            notes.push(format!(
                "initial weights, `partial`: the config's values hold, not the file's:\n  {lines}"
            ));
        }
        let fresh = params.iter().filter(|param| !tensors.contains_key(&param.name));
        let fresh = fresh.map(|param| param.name.clone()).collect();
        let normalize = normalization(weights);
        Ok(Self { tensors, fresh, normalize, notes, optimizer: BTreeMap::new(), listed })
    }

    /// Puts what the file says in the place of `normalize: checkpoint`. Exit 2 where it says nothing.
    pub fn settle_normalization(&mut self, config: &mut Config) -> Result<()> {
        if config.spec.data.normalize != NormalizeSpec::Checkpoint {
            return Ok(());
        }
        let said = self.normalize.clone().with_exit_code(ExitCode::Usage, || {
            "data.normalize: the file of `model.init_from` says no mean and std; say `imagenet`, `inception` or the numbers"
        })?;
        self.notes.push(format!("normalize: mean {:?} and std {:?}, as the file says", said.mean, said.std));
        config.spec.data.normalize = NormalizeSpec::Given(said);
        Ok(())
    }

    /// Takes the state of the optimiser beside the weights too, if `from` wants it: for a run with this
    /// optimiser and these penalty groups of the model's trainable parameters. Exit 4 where it does not fit.
    pub fn take_optimizer(
        &mut self,
        model: &Model,
        from: &InitFrom,
        optimizer: &OptimizerSpec,
        groups: &[ParamGroup],
    ) -> Result<()> {
        if from.optimizer.is_nowhere() {
            return Ok(());
        }
        let context = || "model.init_from.optimizer";
        let [file] = from.file.0.as_slice() else {
            let message =
                "the optimizer's state is of one file: name that file alone, or leave `optimizer` out";
            return Err(fail(ExitCode::Usage, message)).with_exit_code(ExitCode::Usage, context);
        };
        let path = Path::new(file);
        if path.is_dir() {
            let message =
                "a run folder's optimizer goes on with `train --resume`; here it comes from a Python file";
            return Err(fail(ExitCode::Usage, message)).with_exit_code(ExitCode::Usage, context);
        }
        let mut state = PythonOptimizer::open(path, from.optimizer.key())
            .with_exit_code(ExitCode::Checkpoint, context)?;
        state.rename(&from.rename);
        let trainable: Vec<&str> = model
            .params()
            .iter()
            .filter(|param| param.is_trainable())
            .map(|param| param.name.as_str())
            .collect();
        let start = ScheduleStep { step: 0, steps_per_epoch: 1, total_steps: 1 };
        let mut lambdas = BTreeMap::new();
        for group in groups {
            let names = group.param_indices.iter().filter_map(|&i| trainable.get(i).copied());
            lambdas.extend(names.map(|name| (name, (group.lambdas(start), group.lr))));
        }
        let known: Vec<Known> = (self.listed.iter())
            .map(|listed| {
                let own = lambdas.get(listed.name.as_str()).copied().filter(|_| listed.is_taken);
                Known {
                    name: &listed.name,
                    shape: &listed.shape,
                    lambdas: own.map(|(lambdas, _)| lambdas),
                    lr: own.map_or(1.0, |(_, lr)| lr),
                }
            })
            .collect();
        let fitted = state.fit(&known, optimizer).with_exit_code(ExitCode::Checkpoint, context)?;
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
                return Err(fail(ExitCode::Checkpoint, message))
                    .with_exit_code(ExitCode::Checkpoint, || "the initial weights");
            }
        }
        Ok(())
    }
}

/// The `mean` and `std` that a file says, as numbers or as the text of a list of them.
fn normalization(weights: &Weights) -> Option<Normalize> {
    let numbers = |key: &str| -> Option<Vec<f64>> {
        let value = weights.metadata.get(key)?;
        let parsed = value.as_str().and_then(|text| serde_json::from_str(text).ok());
        serde_json::from_value(parsed.unwrap_or_else(|| value.clone())).ok()
    };
    let (mean, std) = (numbers("mean")?, numbers("std")?);
    let given = NormalizeSpec::Given(Normalize { mean, std });
    match (given.validate(), given) {
        (Ok(()), NormalizeSpec::Given(given)) => Some(given),
        _ => None,
    }
}

/// The network's auxiliary heads of which the file has nothing.
fn lacking_heads(model: &Model, wanted: &[Named], fit: &KeyMatch) -> Vec<AuxiliaryHead> {
    let mut heads = model.auxiliary_heads();
    heads.retain(|head| {
        !fit.mapping.iter().any(|&(at, _)| head.holds(wanted[at].0))
            && !fit.mismatched.iter().any(|(name, ..)| head.holds(name))
    });
    heads
}

/// A tensor that may become one of the network's.
struct Source<'a> {
    name: &'a str,
    tensor: &'a Tensor,
    /// Its place in the file; None where it is computed.
    at: Option<usize>,
}

/// Whether the file's last layer may have another number of outputs.
#[derive(Clone, Copy)]
enum Head {
    Fits,
    /// It then starts afresh.
    MayDiffer,
}

/// The last linear layer or convolution, where its number of outputs is all in which the file and the network
/// differ: its path, and a line for the user.
fn other_head(params: &[Param], fit: &KeyMatch) -> Option<(String, String)> {
    if fit.missing.is_empty() && fit.unexpected.is_empty() { head_that_differs(params, fit) } else { None }
}

/// The same where the file may have other tensors beside, or lack some.
pub(super) fn head_that_differs(params: &[Param], fit: &KeyMatch) -> Option<(String, String)> {
    let last = params.iter().rev().find(|param| param.kind == ParamKind::Weight)?;
    let module = module_of(&last.name);
    let own: Vec<&Param> = params.iter().filter(|param| module_of(&param.name) == module).collect();
    let differs_in_outputs = |(name, wanted, found): &(String, Vec<i64>, Vec<i64>)| {
        let tail = |shape: &[i64]| shape.get(1..).map(<[i64]>::to_vec);
        module_of(name) == module && !wanted.is_empty() && tail(wanted) == tail(found)
    };
    let is_all = fit.mismatched.len() == own.len() && fit.mismatched.iter().all(differs_in_outputs);
    let (_, wanted, found) = fit.mismatched.iter().find(|(name, ..)| *name == last.name)?;
    let names: Vec<_> = own.iter().map(|param| param.name.as_str()).collect();
    is_all.then(|| {
        let note = format!(
            "initial weights: `{module}` has {} outputs in the file and {} here, so that {} start afresh",
            found[0],
            wanted[0],
            names.join(" and ")
        );
        (module.to_owned(), note)
    })
}

/// The path of the module that a tensor belongs to.
fn module_of(name: &str) -> &str {
    let module = name.rsplit_once('.').map_or("", |(module, _)| module);
    module.split_once(".parametrizations.").map_or(module, |(module, _)| module)
}

/// The file's tensors that are parameters: all but buffers, a tied one under its first name, as Python's
/// `parameters()` goes. `taken` are those that the network takes, and which they become.
fn listed(
    params: &[Param],
    weights: &Weights,
    names: &[String],
    fit: &KeyMatch,
    taken: &BTreeMap<usize, usize>,
) -> Vec<Listed> {
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

fn notes(
    params: &[Param],
    weights: &Weights,
    fit: &KeyMatch,
    kept_fresh: usize,
    spec: &InitFrom,
) -> Vec<String> {
    let mut first = format!(
        "initial weights: {} of {} tensors from the {} of {}",
        fit.mapping.len(),
        params.len(),
        weights.structure,
        spec.files()
    );
    if let Some(stripped) = &fit.stripped {
        first += &format!(", `{stripped}` taken off their names");
    }
    if !weights.others.is_empty() {
        first += &format!("; `key` would choose {}", weights.other_parts());
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
