//! What is exported: a network with its weights, and what is known of how it was trained.

use std::collections::{BTreeMap, HashSet};

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::{About, ExportOptions, torchscript};
use crate::data::DataSpec;
use crate::data::normalize::{Normalize, NormalizeSpec};
use crate::nn::model::{Model, Network, Op, named_heads};
use crate::pytorch::writer::narrow;
use crate::tasks::TaskSpec;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};

/// The batch norms that stay float32: the paths of their modules.
struct Norms(HashSet<String>);

impl Norms {
    fn of(tensors: &[(String, Tensor)], kind: Kind) -> Self {
        let variances = tensors.iter().filter_map(|(name, _)| name.strip_suffix("running_var"));
        Self(variances.filter(|_| kind == Kind::Half).map(str::to_owned).collect())
    }

    fn hold(&self, name: &str) -> bool {
        self.0.contains(&name[..name.rfind('.').map_or(0, |dot| dot + 1)])
    }
}

/// Converts the floating-point tensors. In float16 batch norms are float32, as PyTorch takes them beside a
/// float16 input: variances above 65504 are common in networks that do not normalise their input. Exit 4 where
/// finite values of others would become infinite.
pub fn narrowed(tensors: Vec<(String, Tensor)>, kind: Kind) -> Result<Vec<(String, Tensor)>> {
    let norms = Norms::of(&tensors, kind);
    let (norms, others): (Vec<_>, Vec<_>) =
        tensors.into_iter().enumerate().partition(|(_, (name, _))| norms.hold(name));
    let (places, others): (Vec<_>, Vec<_>) = others.into_iter().unzip();
    let others = places.into_iter().zip(narrow(others, kind)?);
    let norms = norms.into_iter().map(|(place, (name, tensor))| {
        let wide = if tensor.is_floating_point() { tensor.to_kind(Kind::Float) } else { tensor };
        (place, (name, wide))
    });
    let mut all: Vec<_> = others.chain(norms).collect();
    all.sort_by_key(|(place, _)| *place);
    Ok(all.into_iter().map(|(_, tensor)| tensor).collect())
}

pub struct TrainedNetwork {
    /// That of the run or the file.
    pub name: String,
    pub model: Model,
    /// By the model's names.
    pub weights: BTreeMap<String, Tensor>,
    pub kind: Kind,
    /// Of a run.
    pub task: Option<TaskSpec>,
    pub data: Option<DataSpec>,
    /// What every format says beside the weights.
    pub about: About,
    /// The same and more, for safetensors.
    pub metadata: Vec<(String, String)>,
    /// Where the weights come from, for the user.
    pub origin: Vec<String>,
}

impl TrainedNetwork {
    /// The network with its weights, as `kind` where it is given: see [`narrowed`].
    pub fn network(&self, kind: Option<Kind>) -> Result<Network> {
        // Refuses what narrowing would break.
        self.tensors(kind)?;
        let kind = kind.unwrap_or(self.kind);
        let network = self.model.build(Device::Cpu, kind)?;
        let state = network.state();
        let norms = Norms::of(&state, kind);
        for (_, mut tensor) in
            state.into_iter().filter(|(name, tensor)| norms.hold(name) && tensor.is_floating_point())
        {
            let wide = tensor.to_kind(Kind::Float);
            tensor.set_data(&wide);
        }
        network.load_state(&self.weights)?;
        Ok(network)
    }

    /// The network with its weights as `options` want them, and what is done to it on its way into a program.
    /// Exit 2 where it takes no such options, exit 4 where narrowing would break the weights.
    pub fn prepare(&self, options: &ExportOptions) -> Result<(Network, torchscript::Options)> {
        self.takes_probabilities(options)?;
        let network = self.network(options.kind())?;
        let mut about = self.about.clone();
        if options.preprocess {
            // They are in the program, and must not be applied once more.
            (about.mean, about.std) = Default::default();
            (about.target_mean, about.target_std) = Default::default();
        }
        let &ExportOptions { softmax, sigmoid, freeze, optimize, preprocess, .. } = options;
        let preprocess = preprocess.then(|| self.preprocess()).transpose()?;
        let temperature = if softmax || sigmoid { about.temperature.take() } else { None };
        let options =
            torchscript::Options { preprocess, softmax, sigmoid, temperature, freeze, optimize, about };
        Ok((network, options))
    }

    /// What the user should know of a program of this network.
    pub fn program_notes(&self, options: &ExportOptions) -> Vec<String> {
        let mut notes: Vec<_> = self.non_finite().into_iter().collect();
        if let Some(heads) = self.auxiliary() {
            notes.push(format!("left out: {heads}, which only training uses"));
        }
        if !options.preprocess {
            let program = "--preprocess writes a program that answers in the units of the data";
            notes.extend(self.target_note().map(|note| format!("{note}; {program}")));
        }
        if !(options.softmax || options.sigmoid) {
            notes.extend(self.probability_note());
        }
        if self.answers_residual() {
            let what = "what is to be subtracted from its input (task.reconstruction.residual)";
            notes.push(format!("this network answers {what}"));
        }
        notes
    }

    /// In PyTorch's order, as `kind` where it is given: see [`narrowed`].
    pub fn tensors(&self, kind: Option<Kind>) -> Result<Vec<(String, Tensor)>> {
        let named = self.model.params().iter().map(|param| {
            let tensor = self.weights.get(&param.name);
            let tensor = tensor
                .with_exit_code(ExitCode::Checkpoint, || format!("the weights lack `{}`", param.name))?;
            Ok((param.name.clone(), tensor.shallow_clone()))
        });
        let tensors: Vec<_> = named.collect::<Result<_>>()?;
        match kind {
            Some(kind) => narrowed(tensors, kind),
            None => Ok(tensors),
        }
    }

    /// Makes the weights plain that the network computes from other tensors. Exit 2 where there are none.
    pub fn fold(&mut self) -> Result<()> {
        if self.model.fold(&mut self.weights) == 0 {
            let message = "--fold: this network computes no weights from other tensors; leave it out";
            return Err(fail(ExitCode::Usage, message));
        }
        Ok(())
    }

    /// A note that names the tensors which hold NaN or infinity.
    pub fn non_finite(&self) -> Option<String> {
        let is_broken = |tensor: &Tensor| {
            let finite = tensor.f_isfinite().and_then(|finite| finite.f_all());
            finite.is_ok_and(|all| all.int64_value(&[]) == 0)
        };
        let broken = self.weights.iter().filter(|(_, tensor)| is_broken(tensor));
        let names: Vec<_> = broken.map(|(name, _)| format!("`{name}`")).collect();
        (!names.is_empty()).then(|| format!("not all values are finite in {}", names.join(", ")))
    }

    fn normalize(&self) -> Option<&Normalize> {
        match self.data.as_ref().map(|data| &data.normalize) {
            Some(NormalizeSpec::Given(normalize)) => Some(normalize),
            _ => None,
        }
    }

    /// How the targets were scaled for the network, where they were.
    fn normalize_target(&self) -> Option<&Normalize> {
        match self.data.as_ref().map(|data| &data.normalize_target) {
            Some(NormalizeSpec::Given(normalize)) => Some(normalize),
            _ => None,
        }
    }

    /// A note that the answers are not in the units of the data, where they are not.
    pub fn target_note(&self) -> Option<String> {
        let note = "this network answers (y - target_mean) / target_std (data.normalize_target), numbers that the file has";
        self.normalize_target().map(|_| note.into())
    }

    /// A note on how its answers become probabilities, where that is not by a softmax alone.
    pub fn probability_note(&self) -> Option<String> {
        let is_labels = self.task.as_ref().is_some_and(|task| task.task().answers_labels());
        let function = if is_labels { "sigmoid" } else { "softmax" };
        let about = &self.about;
        (about.temperature.is_some() || is_labels).then(|| {
            let scaled =
                about.temperature.map_or("x".to_owned(), |temperature| format!("x / {temperature:?}"));
            let found = match about.thresholds.is_empty() {
                true => "",
                false => ", and a class is found from its entry of `thresholds` on, which the file has",
            };
            format!("this network answers logits x: probabilities are {function}({scaled}){found}")
        })
    }

    /// Its auxiliary heads by name, where it has some.
    pub fn auxiliary(&self) -> Option<String> {
        named_heads(&self.model.auxiliary_heads())
    }

    pub fn answers_residual(&self) -> bool {
        self.task.as_ref().is_some_and(|task| task.task().answers_residual())
    }

    /// Lines for the docstring of the source.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if let Some(normalize) = self.normalize() {
            remarks.push("Trained on (x - mean) / std per channel, x in 0..1 for pictures, with".to_owned());
            remarks.push(format!("mean = {:?}", normalize.mean));
            remarks.push(format!("std = {:?}", normalize.std));
        }
        if let Some(target) = self.normalize_target() {
            remarks.push("The network answers (y - mean) / std of its target y, with".to_owned());
            remarks.push(format!("mean = {:?}", target.mean));
            remarks.push(format!("std = {:?}", target.std));
        }
        remarks.extend(self.probability_note());
        if let Some(heads) = self.auxiliary() {
            remarks.push(format!("forward leaves out {heads}: only training uses them."));
        }
        if self.answers_residual() {
            remarks.push("The network answers what is to be subtracted from its input.".into());
        }
        remarks
    }

    /// Exit 2 where the option does not make probabilities of its answers.
    pub fn takes_probabilities(&self, options: &ExportOptions) -> Result<()> {
        let is_labels = self.task.as_ref().map(|task| task.task().answers_labels());
        match (options.softmax, options.sigmoid, is_labels) {
            (true, _, Some(true)) => {
                let message =
                    "--softmax: the samples of this run may have any number of classes; say --sigmoid";
                Err(fail(ExitCode::Usage, message))
            }
            (_, true, Some(false)) => {
                let message = "--sigmoid is for runs of `task: multi_label`, and this is none; leave it out, or say --softmax";
                Err(fail(ExitCode::Usage, message))
            }
            (true, ..) => self.takes_softmax(),
            _ => Ok(()),
        }
    }

    /// Exit 2 where a softmax over the channels gives no probabilities of classes.
    fn takes_softmax(&self) -> Result<()> {
        let output = self.model.output();
        let is_classifier = self.task.as_ref().is_none_or(|task| task.task().answers_logits(output));
        let last = self.model.root().leaves().last().map(|leaf| &leaf.op);
        let ends_in_one =
            matches!(last, Some(Op::Layer(spec)) if ["softmax", "log_softmax"].contains(&spec.kind()));
        let why = match (ends_in_one, is_classifier) {
            (true, _) => "the network ends in one already",
            (_, false) => "this run answers with no logits of several classes",
            _ => return Ok(()),
        };
        Err(fail(ExitCode::Usage, format!("--softmax: {why}; leave it out")))
    }

    /// What the run did to pictures. Exit 2 where that is not known or no program can do it.
    pub fn preprocess(&self) -> Result<torchscript::Preprocess> {
        let data = self.data.as_ref().with_exit_code(
            ExitCode::Usage,
            || "--preprocess wants the normalisation of a run: give its folder instead of a file",
        )?;
        if data.smooth.is_some() {
            let message = "--preprocess cannot smooth pictures as this run's `data.smooth` does; leave it out and smooth before";
            return Err(fail(ExitCode::Usage, message));
        }
        let resize = match (self.model.input(), self.model.output()) {
            // What answers images takes them as large as they are.
            (_, [_, _, _]) => None,
            ([_, _, _], _) => Some(data.resize()),
            _ => None,
        };
        let (normalize, normalize_target) = (self.normalize().cloned(), self.normalize_target().cloned());
        Ok(torchscript::Preprocess { normalize, resize, normalize_target })
    }
}
