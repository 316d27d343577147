//! The config of a run: composed of the specs of the folders below, loaded with overrides, validated, and
//! written back with every default filled in.

mod differences;
mod distributed;
mod fitting;
mod toggle;
mod train;

use std::path::{Path, PathBuf};

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::balance::BalanceSpec;
use crate::data::normalize::NormalizeSpec;
use crate::data::{DataSpec, Split};
use crate::libtorch::device::DeviceSpec;
use crate::libtorch::kernels::{Kernel, KernelSpec};
use crate::metrics::Monitor;
use crate::nn::model::{ModelSource, ModelSpec};
use crate::optim::OptimizerSpec;
use crate::penalty::{GroupSpec, PenaltySpec};
use crate::schedule::{Mode, ScheduleSpec};
use crate::tasks::TaskSpec;
use crate::util::builtin;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::yaml::{self, Document, Invalid, nearest};
pub use differences::differences;
pub use distributed::{CommHook, DistributedSpec};
pub use toggle::Toggle;
pub use train::{Amp, Budget, CheckpointSpec, EarlyStopping, EvalEvery, EvalSteps, Segments, TrainSpec};

/// The resolved config in a run folder.
pub const CONFIG_FILE: &str = "config.yaml";

/// A run's own copy of the program that it trains.
pub const PROGRAM_FILE: &str = "program.pt";
/// What `tikhonov calibrate` found, in a run folder.
pub const CALIBRATION_FILE: &str = "calibration.json";
/// The coefficients of a linear model, in a run folder.
pub const COEFFICIENTS_FILE: &str = "coefficients.csv";
/// The filters of the first convolution, among the pictures of a run folder.
pub const FILTERS: &str = "filters.png";
/// What a regression predicted, in a run folder.
pub const PREDICTIONS_FILE: &str = "predictions.csv";

/// One run. Keys and defaults are those of the YAML file.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Decides initial weights, batch order, augmentation, dropout and generated data.
    #[serde(default)]
    pub seed: u64,
    #[serde(default)]
    pub device: DeviceSpec,
    /// Number format of weights and arithmetic.
    #[serde(default)]
    pub dtype: Dtype,
    /// CPU threads of one operation; libtorch's own choice when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub threads: Option<usize>,
    /// The network and the weights it starts from.
    pub model: ModelSpec,
    pub task: TaskSpec,
    pub data: DataSpec,
    #[serde(default, skip_serializing_if = "BalanceSpec::is_none")]
    pub balance: BalanceSpec,
    #[serde(default)]
    pub penalty: PenaltySpec,
    /// Other learning rates and λs for parameters by name, and which of them stay frozen for a while. The first
    /// group that matches wins; a pattern that matches nothing is an error.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupSpec>,
    /// The optimiser.
    pub optimizer: OptimizerSpec,
    /// The learning rate over the run. Constant when absent.
    #[serde(default)]
    pub schedule: ScheduleSpec,
    pub train: TrainSpec,
    /// The run folder. `runs/NAME` for a config file NAME.yaml when absent.
    #[serde(default)]
    pub output: PathBuf,
}

/// The number format of weights and arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    #[default]
    Float32,
    Float64,
}

impl Dtype {
    pub fn kind(self) -> tch::Kind {
        match self {
            Self::Float32 => tch::Kind::Float,
            Self::Float64 => tch::Kind::Double,
        }
    }
}

impl RunConfig {
    /// Points a network that is a program to the copy in the run folder `folder`, if there is one.
    pub fn use_program_of(&mut self, folder: &Path) {
        if let (ModelSource::Program { file, .. }, Some(own)) = (&mut self.model.source, program_of(folder)) {
            *file = own;
        }
    }

    /// Checks what serde cannot express. Key paths of errors start at the root of the config.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.threads == Some(0) {
            return Err(Invalid::new("threads", "must be 1 or more; leave it out for libtorch's own choice"));
        }
        if let Some(threads @ 4097..) = self.threads {
            return Err(Invalid::new("threads", format!("must be 4096 or fewer, not {threads}")));
        }
        self.model.validate().map_err(|invalid| invalid.under("model"))?;
        self.task.validate().map_err(|invalid| invalid.under("task"))?;
        self.balance.validate().map_err(|invalid| invalid.under("balance"))?;
        if !self.groups.is_empty() && !self.penalty.groups.is_empty() {
            let message = "is the older place of `groups`, and both are here: write all of them in `groups`";
            return Err(Invalid::new("penalty.groups", message));
        }
        let penalty = self.penalty();
        penalty.validate().map_err(|invalid| self.of_penalty(invalid))?;
        self.optimizer.validate().map_err(|invalid| invalid.under("optimizer"))?;
        self.optimizer.accepts(&penalty).map_err(|invalid| self.of_penalty(invalid))?;
        self.schedule.validate().map_err(|invalid| invalid.under("schedule"))?;
        self.train.validate().map_err(|invalid| invalid.under("train"))?;
        self.validate_together()
    }

    /// The penalty with all groups, wherever they are written.
    pub fn penalty(&self) -> PenaltySpec {
        let groups = if self.groups.is_empty() { &self.penalty.groups } else { &self.groups };
        PenaltySpec { groups: groups.clone(), ..self.penalty.clone() }
    }

    /// A mistake in [`penalty`](Self::penalty) at its place in the config.
    pub fn of_penalty(&self, invalid: Invalid) -> Invalid {
        let is_of_group = invalid.path.starts_with("groups") && !self.groups.is_empty();
        if is_of_group { invalid } else { invalid.under("penalty") }
    }

    /// The score on the validation set that decides what is best: that of `train.monitor`, else the task's
    /// own.
    pub fn monitor(&self) -> Result<Monitor, Invalid> {
        let monitor = self.task.monitor(self.train.monitor.as_deref());
        monitor.map_err(|message| Invalid::new("train.monitor", message))
    }

    /// The score that `plateau` watches in `mode`: that of `train.monitor` where there is one, else by the
    /// loss (`min`) or the task's own (`max`).
    pub fn plateau_score(&self, mode: Mode, monitor: &Monitor) -> String {
        match (&self.train.monitor, mode) {
            (None, Mode::Min) => "loss".into(),
            _ => monitor.metric.clone(),
        }
    }

    /// Lets a plateau without a `mode` go the way of `train.monitor`.
    fn complete_plateau(&mut self) {
        let is_max = self.train.monitor.is_some() && self.monitor().is_ok_and(|m| m.higher_is_better);
        self.schedule.complete_mode(if is_max { Mode::Max } else { Mode::Min });
    }

    /// Checks that involve several sections.
    fn validate_together(&self) -> Result<(), Invalid> {
        let (monitor, task) = (self.monitor()?, self.task.task());
        for (at, name) in self.train.metrics.iter().enumerate() {
            let known = self.task.monitor(Some(name));
            known.map_err(|message| Invalid::new(format!("train.metrics.{at}"), message))?;
        }
        let metric = &monitor.metric;
        let message = match (self.schedule.watches(), monitor.higher_is_better, &self.train.monitor) {
            (Some(Mode::Max), false, None) => Some(format!(
                "`max` watches the main metric, {metric}, of which less is better: leave it out, and the validation loss is watched"
            )),
            (Some(Mode::Max), false, Some(_)) => Some(format!(
                "`max` watches train.monitor, {metric}, of which less is better: say `mode: min`"
            )),
            (Some(Mode::Min), true, Some(_)) => Some(format!(
                "`min` watches train.monitor, {metric}, of which more is better: say `mode: max`"
            )),
            _ => None,
        };
        if let Some(message) = message {
            return Err(Invalid::new("schedule.plateau.mode", message));
        }
        if self.data.validation.is_none() {
            let remedy =
                "looks at the validation set: declare one, such as `data: {validation: {fraction: 0.1}}`";
            if self.train.monitor.is_some() {
                return Err(Invalid::new("train.monitor", remedy));
            }
            if self.train.early_stopping.is_some() {
                return Err(Invalid::new("train.early_stopping", remedy));
            }
            if self.schedule.watches().is_some() {
                return Err(Invalid::new("schedule.plateau", remedy));
            }
            if let Some(path) = self.penalty().tuned() {
                return Err(self.of_penalty(Invalid::new(path, remedy)));
            }
        }
        if self.train.ema.is_some() && self.optimizer.averages() {
            return Err(Invalid::new(
                "train.ema",
                "schedulefree averages the weights by itself: leave it out",
            ));
        }
        if self.penalty.input_gradient.is_some() {
            let is_scripted = matches!(self.model.source, ModelSource::Program { .. });
            let computes = |kernels: &KernelSpec| {
                let mut all = Kernel::ALL.iter();
                all.any(|&kernel| kernels.says(kernel) == Some(true))
            };
            let obstacles = [
                (
                    self.train.is_cut(),
                    "`train.checkpoint_activations` has no second derivative: leave it out",
                ),
                (self.train.amp == Some(Amp::Fp16), "its gradients leave float16's range: take `amp: bf16`"),
                (is_scripted, "a TorchScript program has no second derivative: write the model as layers"),
                (
                    self.train.kernels.as_ref().is_some_and(computes),
                    "our kernels have no second derivative: leave `train.kernels` out",
                ),
                (
                    self.train.accumulate > 1 && task.is_joint(),
                    "with `train.accumulate` this task's loss is no sum over batches: leave one out",
                ),
            ];
            if let Some((_, message)) = obstacles.into_iter().find(|(holds, _)| *holds) {
                return Err(Invalid::new("penalty.input_gradient", message));
            }
        }
        if let (Some(path), None) = (self.penalty().needs_initial(), &self.model.init_from) {
            let message =
                "pulls weights to those of a file: name one, such as `model: {init_from: {file: net.pth}}`";
            return Err(self.of_penalty(Invalid::new(path, message)));
        }
        if !self.balance.is_none() && !task.takes_balance() {
            let message = format!(
                "is for tasks whose samples have classes, and {} has none: leave it out",
                task.name()
            );
            let message = match self.task {
                TaskSpec::Segmentation(_) => {
                    "is for classes of samples: say `task: {segmentation: {class_weights: […]}}`".into()
                }
                _ => message,
            };
            return Err(Invalid::new("balance", message));
        }
        if self.balance.logit_adjustment.is_some() && !matches!(self.task, TaskSpec::Classification(_)) {
            let message = "is of classes that exclude each other; say `loss: inverse` for several labels";
            return Err(Invalid::new("balance.logit_adjustment", message));
        }
        if !matches!(self.task, TaskSpec::Regression(_)) && self.data.normalize_target != NormalizeSpec::None
        {
            let message = "is for the numbers that `task: regression` predicts; leave it out";
            return Err(Invalid::new("data.normalize_target", message));
        }
        if self.train.amp.is_some() && self.dtype == Dtype::Float64 {
            let message = "shortens float32; leave out `dtype: float64` or `amp`";
            return Err(Invalid::new("train.amp", message));
        }
        let uncut = match &self.model.source {
            _ if task.runs_parts() => Some(format!("{} runs its network in parts", task.name())),
            ModelSource::Program { .. } => Some("a program of Python's is one piece".to_owned()),
            _ => None,
        };
        if let (true, Some(reason)) = (self.train.is_cut(), uncut) {
            let message = format!("{reason}, which cannot be cut into segments: leave it out");
            return Err(Invalid::new("train.checkpoint_activations", message));
        }
        if task.scores_images() && !matches!(self.data.normalize, NormalizeSpec::None) {
            let message = format!("{} is measured on images in 0..1: say `normalize: none`", task.name());
            return Err(Invalid::new("data.normalize", message));
        }
        Ok(())
    }
}

/// A key that an option of the command line sets.
#[derive(Clone, Debug)]
pub struct Override {
    option: &'static str,
    key: &'static str,
    value: Value,
}

impl Override {
    pub fn new(option: &'static str, key: &'static str, value: impl Into<Value>) -> Self {
        Self { option, key, value: value.into() }
    }
}

/// A validated run and the document it was read from, which knows the place of each key.
#[derive(Clone, Debug)]
pub struct Config {
    pub spec: RunConfig,
    pub document: Document,
    /// Messages about values that were filled in.
    pub notes: Vec<String>,
}

impl Config {
    /// Loads a YAML file or a shipped config, applies `sets` (`a.b=VALUE`) and then `overrides`, and
    /// validates. Every mistake is exit 2.
    pub fn load(name: &str, sets: &[String], overrides: impl IntoIterator<Item = Override>) -> Result<Self> {
        let stem = Path::new(name).file_stem().unwrap_or_default();
        let mut config = Self::from_document(open(name)?, sets, overrides, &Path::new("runs").join(stem))?;
        // Only here: the config of a run folder has all arguments already.
        config.notes = fitting::fit_model(&mut config.spec);
        Ok(config)
    }

    /// The config of a run folder, as it was trained with but for `sets` and `overrides`.
    pub fn of_run(
        folder: &Path,
        sets: &[String],
        overrides: impl IntoIterator<Item = Override>,
    ) -> Result<Self> {
        let path = folder.join(CONFIG_FILE);
        if !path.is_file() {
            let message = format!("{} is no run folder: it has no {CONFIG_FILE}", folder.display());
            return Err(fail(ExitCode::Usage, message));
        }
        let output = Override::new("the run folder", "output", folder.to_string_lossy().into_owned());
        let overrides = [output].into_iter().chain(overrides);
        let mut document = Document::read(path)?;
        // Before `sets`, which may give another path of the same program.
        for key in ["model.torchscript", "model.exported"] {
            if let (Some(_), Some(own)) = (document.value(key), program_of(folder)) {
                document.set_value(key, own.into(), "the run's program")?;
            }
        }
        Self::from_document(document, sets, overrides, folder)
    }

    /// Applies the overrides, decodes and validates; `output` is the run folder where the document names
    /// none.
    pub fn from_document(
        mut document: Document,
        sets: &[String],
        overrides: impl IntoIterator<Item = Override>,
        output: &Path,
    ) -> Result<Self> {
        document.expect_mapping()?;
        for set in sets {
            document.set(set)?;
        }
        for Override { option, key, value } in overrides {
            let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            document.set_value(key, value, format!("{option} {shown}"))?;
        }
        document.expand_home()?;
        // The section of `tikhonov sweep` is not part of a run.
        let mut spec: RunConfig = document.decode_without("sweep")?;
        spec.data.normalize = spec.data.normalize.spelt_out();
        if spec.output.as_os_str().is_empty() {
            spec.output = output.to_owned();
        }
        spec.complete_plateau();
        spec.validate().map_err(|invalid| document.invalid_at("", invalid))?;
        Ok(Self { spec, document, notes: Vec::new() })
    }

    /// Refuses invalid values of `data`, and missing files of `splits`. Not part of [`RunConfig::validate`]
    /// because prediction works without the data of the config.
    pub fn validate_data(&self, splits: &[Split]) -> Result<()> {
        self.spec.data.validate(splits).map_err(|invalid| self.document.invalid_at("data", invalid))
    }

    /// The config as YAML with every default filled in. Loading it again gives the same config.
    pub fn resolved(&self) -> Result<String> {
        // Through JSON, because yaml_serde would write choices as `!tags`.
        yaml::to_string(&serde_json::to_value(&self.spec)?)
    }
}

fn program_of(folder: &Path) -> Option<String> {
    let own = folder.join(PROGRAM_FILE);
    own.is_file().then(|| own.to_string_lossy().into_owned())
}

/// The document of a file, or of a shipped config where there is no such file.
fn open(name: &str) -> Result<Document> {
    let path = Path::new(name);
    if path.is_file() {
        return Document::read(path);
    }
    if let Some(text) = builtin::config(name) {
        return Document::parse(format!("<built-in> {name}.yaml"), text);
    }
    if path.is_dir() {
        return Err(fail(ExitCode::Usage, format!("{name} is a folder; give the YAML file of a run")));
    }
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or(name);
    let hint = match nearest(stem, builtin::configs()) {
        Some(near) => format!("did you mean the shipped config `{near}`?"),
        None if name.contains('/') => {
            "`tikhonov runs` lists the runs, `tikhonov init DIR` writes the shipped configs".into()
        }
        None => format!("shipped configs: {}", builtin::configs().collect::<Vec<_>>().join(", ")),
    };
    let what = if path.extension().is_some() { "config" } else { "config or run" };
    std::fs::metadata(path)
        .with_exit_code(ExitCode::Usage, || format!("there is no {what} {name}; {hint}"))?;
    Document::read_pipe(path)
}
