//! Where an export's network and weights come from: a run, a checkpoint, or a file and a model.

use std::path::Path;

use anyhow::{Context, Result};
use tch::Kind;

use super::Options;
use crate::checkpoint::{self, Checkpoints, Loaded};
use crate::config::{CONFIG_FILE, RunConfig};
use crate::data::normalize::NormalizeSpec;
use crate::inference::calibration::{Calibration, at_temperature};
use crate::nn::model::{Model, ModelSpec};
use crate::pytorch::export::{About, TrainedNetwork};
use crate::pytorch::weights::Part;
use crate::train::initial_weights::InitialWeights;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml::{self, Document};

pub(super) fn open(options: &Options) -> Result<TrainedNetwork> {
    let path = &options.source;
    match &options.model {
        Some(model) => {
            let part = Part { keys: options.key.clone(), ignore: options.ignore.clone(), raw: false };
            of_file(path, model, &part)
        }
        None => of_checkpoint(path, options),
    }
}

fn of_checkpoint(path: &Path, options: &Options) -> Result<TrainedNetwork> {
    let (mut loaded, mut config) = checkpoint(path, options)?;
    if options.raw && loaded.ema.take().is_some() {
        // They were chosen for the averaged ones.
        loaded.state.thresholds.clear();
    }
    // The file does not say which layers were frozen.
    config.model.init_from = None;
    let model = Model::from_spec(&config.model)?;
    let origin = vec![format!("{}{}", loaded.folder.display(), loaded.kind())];
    let numbers = |spec: &NormalizeSpec| match spec {
        NormalizeSpec::Given(given) => (given.mean.clone(), given.std.clone()),
        _ => Default::default(),
    };
    let (mean, std) = numbers(&config.data.normalize);
    let (target_mean, target_std) = numbers(&config.data.normalize_target);
    let (classes, input_size) = (loaded.state.classes.clone(), model.input().to_vec());
    let run = loaded.folder.canonicalize().context("the checkpoint's folder")?;
    let run = run.parent().and_then(Path::parent);
    let temperature = run.map(|run| Calibration::of(run, &loaded)).transpose()?.flatten();
    let thresholds = at_temperature(&loaded.state.thresholds, temperature);
    let about = About { classes, mean, std, target_mean, target_std, input_size, temperature, thresholds };
    let mut metadata = metadata(&loaded);
    metadata.extend(about.json().into_iter().map(|(name, value)| (name, value.to_string())));
    Ok(TrainedNetwork {
        name: stem(path),
        model,
        about,
        metadata,
        weights: loaded.weights(),
        kind: config.dtype.kind(),
        origin,
        task: Some(config.task),
        data: Some(config.data),
    })
}

fn of_file(path: &Path, model: &str, part: &Part) -> Result<TrainedNetwork> {
    let tree = Document::parse("--model", model)?.tree;
    let spec: ModelSpec =
        yaml::decode(&tree).map_err(|invalid| fail(ExitCode::Usage, format!("--model: {invalid}")))?;
    let spec = ModelSpec { init_from: None, ..spec };
    let model = Model::from_spec(&spec)?;
    let initial = InitialWeights::read_option(&model, path, part)?;
    let about = About { input_size: model.input().to_vec(), ..About::default() };
    let mut metadata = vec![("model".to_owned(), model.name().to_owned())];
    metadata.extend(about.json().into_iter().map(|(name, value)| (name, value.to_string())));
    Ok(TrainedNetwork {
        name: stem(path),
        model,
        weights: initial.tensors,
        kind: Kind::Float,
        task: None,
        data: None,
        about,
        metadata,
        origin: initial.notes,
    })
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
