//! A config come to life: the device, the data, the network and the task, shared by training and evaluation.

use anyhow::{Context, Result};
use serde_json::Value;
use tch::{Device, Kind};

use crate::checkpoint::store::Loaded;
use crate::checkpoint::{Checkpoints, State};
use crate::config::{Config, RunConfig};
use crate::data::loader::{Loader, LoaderOptions, Preparation};
use crate::data::normalize::NormalizeSpec;
use crate::data::{Dataset, Sets};
use crate::device;
use crate::exit::{Exit, OrExit, fail};
use crate::layers::ParamKind;
use crate::model::{Model, Network};
use crate::penalty::{Group, Target};
use crate::tasks::Task;

/// What a split is called in configs, logs and on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Split {
    Train,
    Validation,
    Test,
}

/// What can be known of a config without its data: the checked network, and which tensor gets which λ.
pub struct Plan {
    pub model: Model,
    pub groups: Vec<Group>,
}

impl Plan {
    /// Exit code 2, with file and line, for everything that cannot work.
    pub fn of(config: &Config) -> Result<Self> {
        let model = Model::from_spec(&config.spec.model)?;
        let trainable = model.params().iter().filter(|param| param.kind != ParamKind::Buffer);
        let targets: Vec<_> = trainable
            .map(|param| Target { name: &param.name, decays: param.kind == ParamKind::Weight })
            .collect();
        let penalty = &config.spec.penalty;
        let groups =
            penalty.assign(&targets).map_err(|invalid| config.document.invalid_at("penalty", invalid))?;
        Ok(Self { model, groups })
    }
}

pub struct Session {
    pub config: Config,
    pub device: Device,
    pub kind: Kind,
    pub model: Model,
    pub groups: Vec<Group>,
    pub task: Box<dyn Task>,
    pub train: Dataset,
    pub validation: Option<Dataset>,
    pub test: Option<Dataset>,
}

impl Session {
    /// Opens the data and sees that data, network and task fit; nothing is trained or written.
    pub fn open(mut config: Config, plan: Plan) -> Result<Self> {
        let Plan { model, groups } = plan;
        let spec = &mut config.spec;
        let device = spec.device.resolve()?;
        if let Some(threads) = spec.threads {
            device::set_threads(threads);
        }
        let task = spec.task.build();
        let Sets { train, validation, test } = spec.data.open(spec.seed)?;
        task.check(model.output(), &train)?;
        let normalize = spec.data.normalize.resolve(&train)?;
        for set in [Some(&train), validation.as_ref(), test.as_ref()].into_iter().flatten() {
            fits(&model, &set.shape)?;
        }
        can_normalize(&model, spec, train.len())?;
        // The run folder must not depend on a model file that may change.
        spec.model = spec.model.inlined()?;
        // From here on the config says the numbers that `auto` stood for: an evaluation must not compute others.
        spec.data.normalize = normalize.map_or(NormalizeSpec::None, NormalizeSpec::Given);
        let kind = spec.dtype.kind();
        Ok(Self { config, device, kind, model, groups, task, train, validation, test })
    }

    /// The network with fresh weights: the seed decides them.
    pub fn network(&self) -> Result<Network> {
        device::seed(self.config.spec.seed);
        self.model.build(self.device, self.kind).context("building the network")
    }

    /// The network with a checkpoint's weights: the averaged ones where there are any.
    pub fn trained(&self, loaded: &Loaded) -> Result<Network> {
        let network = self.network()?;
        let context = || format!("the weights of {}", loaded.folder.display());
        network.load_state(&loaded.weights()).with_context(context)?;
        Ok(network)
    }

    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints::new(self.config.spec.output.join("checkpoints"))
    }

    pub fn split(&self, split: Split) -> Option<&Dataset> {
        match split {
            Split::Train => Some(&self.train),
            Split::Validation => self.validation.as_ref(),
            Split::Test => self.test.as_ref(),
        }
    }

    /// Batches of `set`: shuffled and augmented to learn from, in order and untouched to judge by.
    pub fn loader(&self, set: &Dataset, train: bool) -> Result<Loader> {
        loader(&self.config.spec, self.device, set, train)
    }

    /// What the user should know of the data before training starts.
    pub fn notes(&self) -> Vec<String> {
        let sets = [
            ("train", Some(&self.train)),
            ("validation", self.validation.as_ref()),
            ("test", self.test.as_ref()),
        ];
        let mut notes = Vec::new();
        for (name, set) in sets {
            let Some(set) = set else { continue };
            for skipped in &set.skipped {
                notes.push(format!("{name}: skipped {}: {}", skipped.name, skipped.reason));
            }
            notes.push(format!("{name}: {} samples of shape {:?}", set.len(), set.shape));
        }
        notes
    }

    /// How this config differs from the one that `state` was saved under. Other data is refused: the order of the
    /// samples would be another, and the run no longer the same run.
    pub fn differences(&self, state: &State) -> Result<Vec<String>> {
        let mut changed = Vec::new();
        let now = serde_json::to_value(&self.config.spec)?;
        compare("", &state.config, &now, &mut changed);
        let notes: Vec<_> =
            changed.iter().map(|(path, change)| format!("resuming with another {path}: {change}")).collect();
        if state.data_fingerprint != self.train.fingerprint {
            let message = format!(
                "the training data is not what this run was started with; start a new run for other data\n{}",
                notes.join("\n")
            );
            return Err(fail(Exit::Data, message.trim_end()));
        }
        // Within an epoch these say which samples are learnt already.
        const ORDER: [&str; 4] = ["data.batch_size", "data.drop_last", "seed", "train.accumulate"];
        let order = changed.iter().find(|(path, _)| ORDER.contains(&path.as_str()));
        if let (Some((path, change)), true) = (order, state.batch > 0) {
            let message =
                format!("`{path}` cannot change in the middle of an epoch ({change}); change it back");
            return Err(fail(Exit::Usage, message));
        }
        Ok(notes)
    }
}

/// Batches of `set` as `spec` prepares them; its `normalize` must be resolved.
pub fn loader(spec: &RunConfig, device: Device, set: &Dataset, train: bool) -> Result<Loader> {
    let data = &spec.data;
    let preparation = Preparation { normalize: data.normalize.resolve(set)?, augment: data.augment.clone() };
    let options = LoaderOptions {
        batch_size: data.batch_size,
        train,
        drop_last: train && data.drop_last,
        seed: spec.seed,
        device,
        kind: spec.dtype.kind(),
        workers: data.workers,
    };
    Loader::new(set, &preparation, options)
}

/// A batch norm that sees one value per channel has no deviation to divide by.
fn can_normalize(model: &Model, spec: &RunConfig, samples: usize) -> Result<()> {
    let wanted = model.min_batch() as usize;
    let size = spec.data.batch_size.min(samples);
    let last = match samples % size {
        0 => size,
        _ if spec.data.drop_last => size,
        rest => rest,
    };
    if size.min(last) >= wanted {
        return Ok(());
    }
    let message = format!(
        "a batch of {} sample(s) would reach a batch norm that needs {wanted}; say `data: {{drop_last: true}}` or \
         choose another `batch_size` than {} for {samples} samples",
        size.min(last),
        spec.data.batch_size
    );
    Err(fail(Exit::Usage, message))
}

/// A network whose output is an image is taken to be fully convolutional: it works at any size.
fn fits(model: &Model, shape: &[i64]) -> Result<()> {
    let wanted = model.input();
    let at_any_size = model.output().len() == 3 && shape.len() == 3 && wanted.first() == shape.first();
    (wanted == shape || at_any_size).then_some(()).or_exit(Exit::Usage, || {
        format!(
            "the model wants samples of shape {wanted:?} and the data has {shape:?}; change the model's `input` \
             (or its args), or the size that the data is brought to"
        )
    })
}

fn compare(path: &str, old: &Value, new: &Value, changed: &mut Vec<(String, String)>) {
    if let (Value::Object(old), Value::Object(new)) = (old, new) {
        let mut keys: Vec<_> = old.keys().chain(new.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let side = |side: &serde_json::Map<String, Value>| side.get(key).cloned().unwrap_or(Value::Null);
            compare(&path, &side(old), &side(new), changed);
        }
    } else if old != new && !["output", "device", "threads"].contains(&path) {
        changed.push((path.to_owned(), format!("was {old}, is {new}")));
    }
}
