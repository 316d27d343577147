//! A network with its weights, to be used and not trained: of a run, or of a config and a file.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tch::Device;

use crate::checkpoint::{Checkpoints, Loaded, State};
use crate::config::{CONFIG_FILE, Config, Override, differences};
use crate::inference::calibration::{Calibration, at_temperature};
use crate::libtorch::{cuda, device};
use crate::nn::model::Network;
use crate::pytorch::weights::Part;
use crate::train::initial_weights::InitialWeights;
use crate::train::session::ModelPlan;
use crate::util::console::print_err;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};

/// Which weights, where it is not the run's own choice.
#[derive(Clone, Debug, Default)]
pub struct WeightSelection<'a> {
    /// A checkpoint of the run.
    pub checkpoint: Option<&'a str>,
    /// A file, a run folder or a checkpoint's folder.
    pub weights: Option<&'a Path>,
    /// Which tensors of the file.
    pub part: Part,
}

/// A config whose weights are known and fit.
pub struct LoadedModel {
    pub config: Config,
    pub device: Device,
    pub plan: ModelPlan,
    pub weights: Weights,
    /// That `tikhonov calibrate` found for these weights: their logits are divided by it.
    pub temperature: Option<f64>,
}

/// Where the weights come from.
pub enum Weights {
    Checkpoint(Box<Loaded>),
    /// And what the run says of its data, where there is one.
    File(InitialWeights, Option<Box<State>>),
}

impl LoadedModel {
    /// `run` is a run folder, a YAML file or the name of a shipped config. Of a run: its best checkpoint,
    /// else its last, unless `choice` says otherwise; of a config: what `choice` says, else its own
    /// `init_from`.
    pub fn open(
        run: &Path,
        sets: &[String],
        overrides: impl IntoIterator<Item = Override>,
        choice: &WeightSelection,
    ) -> Result<Self> {
        let is_run = run.join(CONFIG_FILE).is_file();
        let mut config = match is_run || run.is_dir() {
            true => Config::of_run(run, sets, overrides)?,
            false => Config::load(&run.to_string_lossy(), sets, overrides)?,
        };
        // Before the first tensor: libtorch looks for a GPU's libraries once.
        let device = config.spec.device.resolve()?;
        cuda::make_current(device)?;
        let plan = ModelPlan::of(&config)?;
        let checkpoints = Checkpoints::of(&config.spec.output);
        let weights = match (choice.weights, is_run) {
            (Some(file), _) => {
                let initial = InitialWeights::read_option(&plan.model, file, &choice.part)?;
                // Other weights of a run's network are still of its classes and columns.
                let known = is_run.then(|| checkpoints.chosen(None).ok()).flatten();
                Weights::File(initial, known.map(|loaded| Box::new(loaded.state)))
            }
            (None, true) => {
                let mut loaded = checkpoints.chosen(choice.checkpoint)?;
                if choice.part.raw && loaded.ema.take().is_some() {
                    // They were chosen for the averaged ones.
                    loaded.state.thresholds.clear();
                }
                Weights::Checkpoint(Box::new(loaded))
            }
            (None, false) => {
                let initial = plan.initial(&mut config)?.with_exit_code(ExitCode::Usage, || {
                    format!("{} has no trained weights: give --weights FILE, or a run folder", run.display())
                })?;
                Weights::File(initial, None)
            }
        };
        if let (Weights::Checkpoint(loaded), true) = (&weights, is_run) {
            tell_edits(run, loaded)?;
        }
        let temperature = match &weights {
            Weights::Checkpoint(loaded) if is_run => Calibration::of(run, loaded)?,
            _ => None,
        };
        Ok(Self { config, device, plan, weights, temperature })
    }

    /// Refuses weights of which some are drawn afresh: what answers with them is not trained. Exit 2, with
    /// the run that was meant.
    pub fn is_complete(&self, run: &Path) -> Result<()> {
        let Weights::File(initial, _) = &self.weights else { return Ok(()) };
        // Auxiliary heads answer in training only.
        let model = &self.plan.model;
        let fresh: Vec<_> = initial.fresh.iter().filter(|name| !model.is_auxiliary(name)).collect();
        let Some(first) = fresh.first() else { return Ok(()) };
        let output = &self.config.spec.output;
        let remedy = match Checkpoints::of(output).are_kept() {
            true => format!("did you mean the run, {}?", output.display()),
            false => "train it first, and give its run folder".to_owned(),
        };
        let message = format!(
            "{} says where to start from, not how to end: {} of its tensors start afresh (such as {first}) and would answer at random; \
             {remedy}",
            run.display(),
            fresh.len()
        );
        Err(fail(ExitCode::Usage, message))
    }

    /// By class, the probability from which on it is found; empty where no validation set chose it for these
    /// weights.
    pub fn thresholds(&self) -> Vec<f64> {
        at_temperature(self.weights.thresholds(), self.temperature)
    }

    /// Sets the number of threads, where the config names one, and which CPU kernels compute.
    pub fn use_threads(&self) {
        device::settle_threads(self.config.spec.threads);
        self.config.spec.train.use_kernels();
    }

    /// The network alone.
    pub fn network(&self) -> Result<Network> {
        let network = self.plan.model.build(self.device, self.config.spec.dtype.kind())?;
        self.weights.load_into(&network)?;
        Ok(network)
    }
}

/// Tells where the run's config.yaml is not what its checkpoint was saved under, in what decides on answers
/// and scores.
fn tell_edits(run: &Path, loaded: &Loaded) -> Result<()> {
    const KEYS: [&str; 9] = [
        "model",
        "task",
        "dtype",
        "data.normalize",
        "data.normalize_target",
        "data.smooth",
        "data.train",
        "data.validation",
        "data.test",
    ];
    let config = Config::of_run(run, &[], [])?;
    for (path, change) in differences(&loaded.state.config, &serde_json::to_value(&config.spec)?) {
        let matters = KEYS
            .iter()
            .any(|key| path.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')));
        // Of a scripted network the run folder's own copy counts.
        if matters && !path.starts_with("model.torchscript") {
            let (file, saved) = (run.join(CONFIG_FILE), loaded.folder.display());
            print_err!("{} was changed since {saved} was saved: {path} {change}", file.display());
        }
    }
    Ok(())
}

impl Weights {
    /// Puts them in place.
    pub fn load_into(&self, network: &Network) -> Result<()> {
        match self {
            Self::Checkpoint(loaded) => {
                let context = || format!("the weights of {}", loaded.folder.display());
                network.load_state(&loaded.weights()).with_context(context)
            }
            Self::File(initial, _) => initial.load_into(network),
        }
    }

    /// The class names that the network was trained on, where they are known.
    pub fn classes(&self) -> Option<&[String]> {
        match self {
            Self::Checkpoint(loaded) => Some(&loaded.state.classes),
            Self::File(_, state) => state.as_ref().map(|state| state.classes.as_slice()),
        }
    }

    /// The same before any temperature.
    pub fn thresholds(&self) -> &[f64] {
        match self {
            Self::Checkpoint(loaded) => &loaded.state.thresholds,
            Self::File(..) => &[],
        }
    }

    /// The names of the table's columns that the network was trained on.
    pub fn features(&self) -> &[String] {
        match self {
            Self::Checkpoint(loaded) => &loaded.state.features,
            Self::File(_, state) => state.as_ref().map_or(&[], |state| state.features.as_slice()),
        }
    }

    /// What they are, as a message says it.
    pub fn name(&self) -> String {
        match self {
            Self::Checkpoint(loaded) => format!("{}{}", loaded.folder.display(), loaded.kind()),
            Self::File(initial, _) => initial.notes.join("\n"),
        }
    }

    /// What they are, for a line that goes on: the notes of a file are above it.
    pub fn on(&self, run: &Path) -> String {
        match self {
            Self::Checkpoint(_) => self.name(),
            Self::File(..) => format!("{}\n{}", self.name(), run.display()),
        }
    }

    /// What they are, for programs.
    pub fn describe(&self, line: &mut Value) {
        match self {
            Self::Checkpoint(loaded) => {
                line["checkpoint"] = json!(loaded.folder);
                line["epoch"] = json!(loaded.state.epoch);
                line["averaged"] = json!(loaded.ema.is_some());
            }
            Self::File(initial, _) => line["weights"] = json!(initial.notes),
        }
    }
}
