//! A network with its weights, to be used and not trained: of a run, or of a config and a file.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::checkpoint::Checkpoints;
use crate::checkpoint::initial::Initial;
use crate::checkpoint::store::Loaded;
use crate::config::{CONFIG_FILE, Config, Override};
use crate::device;
use crate::exit::{Exit, OrExit};
use crate::model::{InitFrom, Network};
use crate::session::Plan;

/// Which weights, where it is not the run's own choice.
#[derive(Clone, Debug, Default)]
pub struct Choice<'a> {
    /// A checkpoint of the run.
    pub checkpoint: Option<&'a str>,
    /// A file, a run folder or a checkpoint's folder.
    pub weights: Option<&'a Path>,
    /// Dotted path of the weights in the file.
    pub key: Option<&'a str>,
}

/// A config whose weights are known and fit.
pub struct Trained {
    pub config: Config,
    pub plan: Plan,
    pub weights: Weights,
}

/// Where the weights come from.
pub enum Weights {
    Checkpoint(Box<Loaded>),
    File(Initial),
}

impl Trained {
    /// `run` is a run folder, a YAML file or the name of a shipped config. Of a run: its best checkpoint, else its last,
    /// unless `choice` says otherwise; of a config: what `choice` says, else its own `init_from`.
    pub fn open(
        run: &Path,
        sets: &[String],
        overrides: impl IntoIterator<Item = Override>,
        choice: &Choice,
    ) -> Result<Self> {
        let is_run = run.join(CONFIG_FILE).is_file();
        let mut config = match is_run || run.is_dir() {
            true => Config::of_run(run, sets, overrides)?,
            false => Config::load(&run.to_string_lossy(), sets, overrides)?,
        };
        if let Some(weights) = choice.weights {
            let given = InitFrom::new(weights.to_string_lossy());
            config.spec.model.init_from = Some(InitFrom { key: choice.key.map(str::to_owned), ..given });
        }
        let plan = Plan::of(&config)?;
        let weights = match is_run && choice.weights.is_none() {
            true => {
                let checkpoints = Checkpoints::new(config.spec.output.join("checkpoints"));
                Weights::Checkpoint(Box::new(checkpoints.chosen(choice.checkpoint)?))
            }
            false => Weights::File(plan.initial(&config)?.or_exit(Exit::Usage, || {
                format!("{} has no trained weights: give --weights FILE, or a run folder", run.display())
            })?),
        };
        Ok(Self { config, plan, weights })
    }

    /// Sets the number of threads, where the config names one.
    pub fn use_threads(&self) {
        if let Some(threads) = self.config.spec.threads {
            device::set_threads(threads);
        }
    }

    /// The network alone.
    pub fn network(&self) -> Result<Network> {
        let spec = &self.config.spec;
        let network = self.plan.model.build(spec.device.resolve()?, spec.dtype.kind())?;
        self.weights.load_into(&network)?;
        Ok(network)
    }
}

impl Weights {
    /// Puts them in place.
    pub fn load_into(&self, network: &Network) -> Result<()> {
        match self {
            Self::Checkpoint(loaded) => {
                let context = || format!("the weights of {}", loaded.folder.display());
                network.load_state(&loaded.weights()).with_context(context)
            }
            Self::File(initial) => initial.load_into(network),
        }
    }

    /// The class names that the network was trained on, where they are known.
    pub fn classes(&self) -> Option<&[String]> {
        match self {
            Self::Checkpoint(loaded) => Some(&loaded.state.classes),
            Self::File(_) => None,
        }
    }

    /// The names of the table's columns that the network was trained on.
    pub fn features(&self) -> &[String] {
        match self {
            Self::Checkpoint(loaded) => &loaded.state.features,
            Self::File(_) => &[],
        }
    }

    /// What they are, for people.
    pub fn name(&self) -> String {
        match self {
            Self::Checkpoint(loaded) => loaded.folder.display().to_string(),
            Self::File(initial) => initial.notes.join("\n"),
        }
    }

    /// What they are, for programs.
    pub fn describe(&self, line: &mut Value) {
        match self {
            Self::Checkpoint(loaded) => {
                line["checkpoint"] = json!(loaded.folder);
                line["epoch"] = json!(loaded.state.epoch);
            }
            Self::File(initial) => line["weights"] = json!(initial.notes),
        }
    }
}
