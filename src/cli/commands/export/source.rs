//! What is exported: a network with its weights, and what is known of how it was trained.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

use super::Options;
use crate::checkpoint::{self, Checkpoints, Loaded};
use crate::cli::commands::convert::narrow;
use crate::config::{CONFIG_FILE, RunConfig};
use crate::data::normalize::NormalizeSpec;
use crate::data::{Resize, SourceSpec};
use crate::nn::model::{Model, ModelSpec};
use crate::pytorch::export::{About, torchscript};
use crate::pytorch::weights::Part;
use crate::train::initial_weights::InitialWeights;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::yaml::{self, Document};

/// What is to be exported.
pub(super) struct Source {
    /// After the run or the file.
    pub name: String,
    pub model: Model,
    /// By the model's names.
    pub weights: BTreeMap<String, Tensor>,
    pub kind: Kind,
    pub config: Option<RunConfig>,
    /// What every format says beside the weights.
    pub about: About,
    /// The same and more, for safetensors.
    pub metadata: Vec<(String, String)>,
    /// For people: where the weights come from.
    pub notes: Vec<String>,
}

impl Source {
    pub fn open(options: &Options) -> Result<Self> {
        let path = &options.source;
        match &options.model {
            Some(model) => {
                let part = Part { keys: options.key.clone(), ignore: options.ignore.clone(), raw: false };
                Self::of_file(path, model, &part)
            }
            None => Self::of_checkpoint(path, options),
        }
    }

    fn of_checkpoint(path: &Path, options: &Options) -> Result<Self> {
        let (mut loaded, mut config) = checkpoint(path, options)?;
        if options.raw {
            loaded.ema = None;
        }
        // Which layers were frozen is of no use to anybody else.
        config.model.init_from = None;
        let model = Model::from_spec(&config.model)?;
        let notes = vec![format!("{}{}", loaded.folder.display(), loaded.kind())];
        let normalize = match &config.data.normalize {
            NormalizeSpec::Given(normalize) => Some(normalize.clone()),
            _ => None,
        };
        let (mean, std) = normalize.map(|given| (given.mean, given.std)).unwrap_or_default();
        let about =
            About { classes: loaded.state.classes.clone(), mean, std, input_size: model.input().to_vec() };
        let mut metadata = metadata(&loaded);
        metadata.extend(about.json().into_iter().map(|(name, value)| (name, value.to_string())));
        Ok(Self {
            name: stem(path),
            model,
            about,
            metadata,
            weights: loaded.weights(),
            kind: config.dtype.kind(),
            notes,
            config: Some(config),
        })
    }

    fn of_file(path: &Path, model: &str, part: &Part) -> Result<Self> {
        let tree = Document::parse("--model", model)?.tree;
        let spec: ModelSpec =
            yaml::decode(&tree).map_err(|invalid| fail(ExitCode::Usage, format!("--model: {invalid}")))?;
        let spec = ModelSpec { init_from: None, ..spec };
        let model = Model::from_spec(&spec)?;
        let initial = InitialWeights::read_option(&model, path, part)?;
        let about = About { input_size: model.input().to_vec(), ..About::default() };
        let mut metadata = vec![("model".to_owned(), model.name().to_owned())];
        metadata.extend(about.json().into_iter().map(|(name, value)| (name, value.to_string())));
        Ok(Self {
            name: stem(path),
            model,
            weights: initial.tensors,
            kind: Kind::Float,
            config: None,
            about,
            metadata,
            notes: initial.notes,
        })
    }

    /// In PyTorch's order, narrowed where that is asked for.
    pub fn tensors(&self, options: &Options) -> Result<Vec<(String, Tensor)>> {
        let named = self.model.params().iter().map(|param| {
            let tensor = self.weights.get(&param.name);
            let tensor = tensor
                .with_exit_code(ExitCode::Checkpoint, || format!("the weights lack `{}`", param.name))?;
            Ok((param.name.clone(), tensor.shallow_clone()))
        });
        let tensors: Vec<_> = named.collect::<Result<_>>()?;
        match self.narrowed(options) {
            Some(kind) => narrow(tensors, kind),
            None => Ok(tensors),
        }
    }

    /// The tensors that hold NaN or infinity.
    pub fn broken(&self) -> Vec<String> {
        let is_broken = |tensor: &Tensor| {
            let finite = tensor.f_isfinite().and_then(|finite| finite.f_all());
            finite.is_ok_and(|all| all.int64_value(&[]) == 0)
        };
        let broken = self.weights.iter().filter(|(_, tensor)| is_broken(tensor));
        broken.map(|(name, _)| format!("`{name}`")).collect()
    }

    pub fn narrowed(&self, options: &Options) -> Option<Kind> {
        match (options.half, options.bf16) {
            (true, _) => Some(Kind::Half),
            (_, true) => Some(Kind::BFloat16),
            _ => None,
        }
    }

    fn normalize(&self) -> Option<&crate::data::normalize::Normalize> {
        match self.config.as_ref().map(|config| &config.data.normalize) {
            Some(NormalizeSpec::Given(normalize)) => Some(normalize),
            _ => None,
        }
    }

    pub fn answers_residual(&self) -> bool {
        self.config.as_ref().is_some_and(|config| config.task.task().answers_residual())
    }

    /// Lines for the docstring of the source.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if let Some(normalize) = self.normalize() {
            remarks.push("Trained on (x - mean) / std per channel, x in 0..1 for pictures, with".to_owned());
            remarks.push(format!("mean = {:?}", normalize.mean));
            remarks.push(format!("std = {:?}", normalize.std));
        }
        if self.answers_residual() {
            remarks.push("The network answers what is to be subtracted from its input.".into());
        }
        remarks
    }

    pub fn preprocess(&self) -> Result<torchscript::Preprocess> {
        let config = self.config.as_ref().with_exit_code(
            ExitCode::Usage,
            || "--preprocess wants the normalisation of a run: give its folder instead of a file",
        )?;
        if config.data.smooth.is_some() {
            let message = "--preprocess cannot smooth pictures as this run's `data.smooth` does; leave it out and smooth before";
            return Err(fail(ExitCode::Usage, message));
        }
        let resize = match (&config.data.train, self.model.input(), self.model.output()) {
            // What answers images takes them as large as they are.
            (_, _, [_, _, _]) => None,
            (SourceSpec::Folder(folder), [_, _, _], _) => Some(folder.resize),
            (_, [_, _, _], _) => Some(Resize::default()),
            _ => None,
        };
        Ok(torchscript::Preprocess { normalize: self.normalize().cloned(), resize })
    }
}

/// The checkpoint at `path`, or of the run there, and its config.
pub(super) fn checkpoint(path: &Path, options: &Options) -> Result<(Loaded, RunConfig)> {
    let checkpoints = Checkpoints::of(path);
    let loaded = if checkpoint::is_checkpoint(path) {
        if options.checkpoint.is_some() {
            return Err(fail(ExitCode::Usage, "SOURCE is a checkpoint already: leave --checkpoint out"));
        }
        checkpoint::load(path)?
    } else if checkpoints.are_kept() || path.join(CONFIG_FILE).is_file() {
        let wanted = options.checkpoint.as_deref().or(options.with_optimizer.then_some("last"));
        checkpoints.chosen(wanted)?
    } else {
        let message = format!("{} is no run folder and no checkpoint", path.display());
        return Err(fail(ExitCode::Usage, message));
    };
    let mut config: RunConfig = yaml::decode(&loaded.state.config)
        .map_err(|invalid| fail(ExitCode::Checkpoint, format!("{}: {invalid}", loaded.folder.display())))?;
    let folder = loaded.folder.canonicalize().context("the checkpoint's folder")?;
    if let Some(run) = folder.parent().and_then(Path::parent) {
        config.use_program_of(run);
    }
    Ok((loaded, config))
}

fn metadata(loaded: &Loaded) -> Vec<(String, String)> {
    let state = &loaded.state;
    let mut metadata = vec![
        ("epoch".to_owned(), state.epoch.to_string()),
        ("step".to_owned(), state.step.to_string()),
        ("averaged".to_owned(), loaded.ema.is_some().to_string()),
        ("model".to_owned(), state.config["model"].to_string()),
    ];
    if let (Some(score), Some(best)) = (state.score, &state.best) {
        metadata.push((format!("validation_{}", best.metric), score.to_string()));
    }
    metadata
}

/// The run's or the file's name without extension; a checkpoint is called after its run.
pub(super) fn stem(path: &Path) -> String {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let folder = real.parent().filter(|parent| parent.ends_with("checkpoints")).and_then(Path::parent);
    let named = folder.unwrap_or(&real);
    let name = if named.is_dir() { named.file_name() } else { named.file_stem() };
    name.map_or_else(|| "network".into(), |name| name.to_string_lossy().into_owned())
}
