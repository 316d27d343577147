//! A run as declared: the rooms' specs composed, loaded with overrides, validated, and written back in full.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::de::{Deserializer, Error, Unexpected, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::data::normalize::NormalizeSpec;
use crate::data::{DataSpec, Split};
use crate::device::DeviceSpec;
use crate::exit::{Exit, OrExit, fail};
use crate::model::{ModelSource, ModelSpec};
use crate::optim::{Clip, EmaSpec, OptimizerSpec};
use crate::penalty::PenaltySpec;
use crate::schedule::ScheduleSpec;
use crate::shipped;
use crate::tasks::TaskSpec;
use crate::yaml::{Document, Invalid, nearest};

/// The resolved config in a run folder.
pub const CONFIG_FILE: &str = "config.yaml";

/// A run's own copy of the TorchScript that it trains.
pub const PROGRAM_FILE: &str = "program.pt";

/// One run. Keys and defaults are those of the YAML file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Weights, batch order, augmentation, dropout and generated data follow from it.
    #[serde(default)]
    pub seed: u64,
    #[serde(default)]
    pub device: DeviceSpec,
    #[serde(default)]
    pub dtype: Dtype,
    /// CPU threads of one operation; libtorch's own choice where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    pub model: ModelSpec,
    pub task: TaskSpec,
    pub data: DataSpec,
    #[serde(default)]
    pub penalty: PenaltySpec,
    pub optimizer: OptimizerSpec,
    #[serde(default)]
    pub schedule: ScheduleSpec,
    pub train: TrainSpec,
    /// The run folder; `runs/NAME` for a config called NAME.
    #[serde(default)]
    pub output: PathBuf,
}

/// The number format of weights and arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// The shorter number format of the convolutions and linear maps of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Amp {
    Bf16,
    /// With the loss scaled, as `torch.amp.GradScaler` does it; steps that overflow are skipped.
    Fp16,
}

impl Amp {
    pub fn kind(self) -> tch::Kind {
        match self {
            Self::Bf16 => tch::Kind::BFloat16,
            Self::Fp16 => tch::Kind::Half,
        }
    }
}

/// Whether steps are recorded as a CUDA graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CudaGraph {
    #[default]
    Off,
    /// Where it can be; where not, the reason is told once and steps run as they are.
    Auto,
    /// Else the run ends with the reason.
    On,
}

impl CudaGraph {
    fn is_off(&self) -> bool {
        *self == Self::Off
    }
}

impl Serialize for CudaGraph {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_bool(false),
            Self::Auto => serializer.serialize_str("auto"),
            Self::On => serializer.serialize_bool(true),
        }
    }
}

impl<'de> Deserialize<'de> for CudaGraph {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl Visitor<'_> for Written {
            type Value = CudaGraph;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("auto, true or false")
            }

            fn visit_bool<E: Error>(self, on: bool) -> Result<CudaGraph, E> {
                Ok(if on { CudaGraph::On } else { CudaGraph::Off })
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<CudaGraph, E> {
                match text {
                    "auto" => Ok(CudaGraph::Auto),
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Written)
    }
}

/// Into how many segments each list of layers is cut whose activations are computed twice: `true` for the root of its length, or
/// a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segments {
    None,
    Root,
    Number(usize),
}

impl Serialize for Segments {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_bool(false),
            Self::Root => serializer.serialize_bool(true),
            Self::Number(number) => serializer.serialize_u64(*number as u64),
        }
    }
}

impl<'de> Deserialize<'de> for Segments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl Visitor<'_> for Written {
            type Value = Segments;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("true, false or a number of segments from 2 up")
            }

            fn visit_bool<E: Error>(self, on: bool) -> Result<Segments, E> {
                Ok(if on { Segments::Root } else { Segments::None })
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Segments, E> {
                match usize::try_from(number) {
                    Ok(number) if number >= 2 => Ok(Segments::Number(number)),
                    _ => Err(E::invalid_value(Unexpected::Unsigned(number), &self)),
                }
            }
        }
        deserializer.deserialize_any(Written)
    }
}

/// How long to train and what to do on the way.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSpec {
    pub epochs: u64,
    /// Batches whose gradients are averaged into one optimiser step.
    #[serde(default = "one_batch")]
    pub accumulate: usize,
    /// Autocast, as `torch.autocast`: weights, gradients and optimiser stay float32, and evaluation is float32 throughout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amp: Option<Amp>,
    /// Whether a GPU may round factors to TF32 in float32 convolutions and matrix products. Absent: as PyTorch, in convolutions
    /// only. No effect on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tf32: Option<bool>,
    /// Whether the CPU convolves by Winograd's method where it pays: the same to rounding, in a third of the time. No effect on a
    /// GPU, where cuDNN decides.
    #[serde(default = "yes")]
    pub winograd: bool,
    /// Whether cuDNN tries its algorithms for each shape of a training step, and keeps the fastest. No effect on the CPU.
    #[serde(default = "yes")]
    pub cudnn_benchmark: bool,
    /// Whether a GPU gets the whole training step as one recorded graph. No effect on the CPU.
    #[serde(default, skip_serializing_if = "CudaGraph::is_off")]
    pub cuda_graph: CudaGraph,
    /// Keep the activations at the ends of segments alone, and compute the others again in the backward pass: less memory, more
    /// time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_activations: Option<Segments>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<Clip>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<EmaSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStopping>,
    #[serde(default)]
    pub checkpoint: CheckpointSpec,
    /// Optimiser steps between two lines of metrics.
    #[serde(default = "fifty")]
    pub log_every: u64,
    /// Epochs between two evaluations; the last epoch is always evaluated.
    #[serde(default = "one")]
    pub eval_every: u64,
    /// Side-by-side pictures to write at each evaluation, of image tasks.
    #[serde(default = "three")]
    pub pictures: usize,
    /// Whether the run writes event files for TensorBoard.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tensorboard: bool,
}

/// Stop when the task's metric has not improved on the validation set for `patience` epochs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    pub patience: u64,
    /// What counts as an improvement at the least.
    #[serde(default)]
    pub min_delta: f64,
}

/// When to save, and how many checkpoints to keep beside the last.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSpec {
    /// Within an epoch, after this many optimiser steps; only at the ends of epochs where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<u64>,
    /// Epochs between two checkpoints; the best and the last are always saved.
    pub every_epochs: u64,
    /// How many to keep beside `last` and `best`: those with the best validation scores, else the newest.
    pub keep: usize,
}

impl Default for CheckpointSpec {
    fn default() -> Self {
        Self { every_steps: None, every_epochs: 1, keep: 1 }
    }
}

fn yes() -> bool {
    true
}

fn one_batch() -> usize {
    1
}

fn one() -> u64 {
    1
}

fn three() -> usize {
    3
}

fn fifty() -> u64 {
    50
}

impl TrainSpec {
    /// Whether activations are computed twice.
    pub fn is_cut(&self) -> bool {
        !matches!(self.checkpoint_activations, None | Some(Segments::None))
    }

    pub fn validate(&self) -> Result<(), Invalid> {
        let at_least_one = |key: &str, value: u64| match value {
            0 => Err(Invalid::new(key, "must be 1 or more")),
            _ => Ok(()),
        };
        at_least_one("epochs", self.epochs)?;
        at_least_one("accumulate", self.accumulate as u64)?;
        at_least_one("log_every", self.log_every)?;
        at_least_one("eval_every", self.eval_every)?;
        at_least_one("checkpoint.every_steps", self.checkpoint.every_steps.unwrap_or(1))?;
        at_least_one("checkpoint.every_epochs", self.checkpoint.every_epochs)?;
        if let Some(stopping) = &self.early_stopping {
            at_least_one("early_stopping.patience", stopping.patience)?;
            if stopping.min_delta < 0.0 {
                return Err(Invalid::new("early_stopping.min_delta", "must be 0 or more"));
            }
        }
        if let Some(clip) = &self.clip {
            clip.validate().map_err(|invalid| invalid.under("clip"))?;
        }
        if let Some(ema) = &self.ema {
            ema.validate().map_err(|invalid| invalid.under("ema"))?;
        }
        Ok(())
    }
}

impl RunConfig {
    /// Lets a scripted network be the copy that the run folder `folder` keeps; runs without one stay with the file that they name.
    pub fn use_program_of(&mut self, folder: &Path) {
        if let (ModelSource::Torchscript { file, .. }, Some(own)) =
            (&mut self.model.source, program_of(folder))
        {
            *file = own;
        }
    }

    /// What serde cannot express; the path of a mistake starts at the root of the config.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.threads == Some(0) {
            return Err(Invalid::new("threads", "must be 1 or more; leave it out for libtorch's own choice"));
        }
        self.model.validate().map_err(|invalid| invalid.under("model"))?;
        self.task.validate().map_err(|invalid| invalid.under("task"))?;
        self.penalty.validate().map_err(|invalid| invalid.under("penalty"))?;
        self.optimizer.validate().map_err(|invalid| invalid.under("optimizer"))?;
        self.optimizer.accepts(&self.penalty).map_err(|invalid| invalid.under("penalty"))?;
        self.schedule.validate().map_err(|invalid| invalid.under("schedule"))?;
        self.train.validate().map_err(|invalid| invalid.under("train"))?;
        self.validate_together()
    }

    /// What one room cannot know of another.
    fn validate_together(&self) -> Result<(), Invalid> {
        if self.data.validation.is_none() {
            let remedy =
                "looks at the validation set: declare one, such as `data: {validation: {fraction: 0.1}}`";
            if self.train.early_stopping.is_some() {
                return Err(Invalid::new("train.early_stopping", remedy));
            }
            if self.schedule.watches().is_some() {
                return Err(Invalid::new("schedule.plateau", remedy));
            }
            if let Some(path) = self.penalty.tuned() {
                return Err(Invalid::new(format!("penalty.{path}"), remedy));
            }
        }
        if self.train.amp.is_some() && self.dtype == Dtype::Float64 {
            let message = "shortens float32; leave out `dtype: float64` or `amp`";
            return Err(Invalid::new("train.amp", message));
        }
        let uncut = match (&self.task, &self.model.source) {
            (TaskSpec::Generation(_), _) => Some("generation runs its network in parts"),
            (TaskSpec::Compression(_), _) => Some("compression runs its network in parts"),
            (_, ModelSource::Torchscript { .. }) => Some("a TorchScript program is one piece"),
            _ => None,
        };
        if let (true, Some(reason)) = (self.train.is_cut(), uncut) {
            let message = format!("{reason}, which cannot be cut into segments: leave it out");
            return Err(Invalid::new("train.checkpoint_activations", message));
        }
        let measured_in_place = match self.task {
            TaskSpec::Reconstruction(_) => Some("reconstruction"),
            TaskSpec::Generation(_) => Some("generation"),
            TaskSpec::Compression(_) => Some("compression"),
            _ => None,
        };
        if let Some(task) = measured_in_place
            && !matches!(self.data.normalize, NormalizeSpec::None)
        {
            let message = format!("{task} is measured on images in 0..1: say `normalize: none`");
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

/// A validated run and the document it was read from, which knows where each key stands.
#[derive(Clone, Debug)]
pub struct Config {
    pub spec: RunConfig,
    pub document: Document,
}

impl Config {
    /// Loads a YAML file or a shipped config, applies `sets` (`a.b=VALUE`) and then `overrides`, and validates.
    /// Every mistake is exit 2.
    pub fn load(name: &str, sets: &[String], overrides: impl IntoIterator<Item = Override>) -> Result<Self> {
        let stem = Path::new(name).file_stem().unwrap_or_default();
        Self::from_document(open(name)?, sets, overrides, &Path::new("runs").join(stem))
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
            return Err(fail(Exit::Usage, message));
        }
        let output = Override::new("the run folder", "output", folder.to_string_lossy().into_owned());
        let overrides = [output].into_iter().chain(overrides);
        let mut document = Document::read(path)?;
        // Before the sets, which may name another place of the same program.
        if let (Some(_), Some(own)) = (document.value("model.torchscript"), program_of(folder)) {
            document.set_value("model.torchscript", own.into(), "the run's program")?;
        }
        Self::from_document(document, sets, overrides, folder)
    }

    /// Applies the overrides, decodes and validates; `output` is the run folder where the document names none.
    pub fn from_document(
        mut document: Document,
        sets: &[String],
        overrides: impl IntoIterator<Item = Override>,
        output: &Path,
    ) -> Result<Self> {
        for set in sets {
            document.set(set)?;
        }
        for Override { option, key, value } in overrides {
            let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            document.set_value(key, value, format!("{option} {shown}"))?;
        }
        // What `tikhonov sweep` reads of the same file is nothing of a run.
        let mut spec: RunConfig = document.decode_without("sweep")?;
        if spec.output.as_os_str().is_empty() {
            spec.output = output.to_owned();
        }
        spec.validate().map_err(|invalid| document.invalid_at("", invalid))?;
        Ok(Self { spec, document })
    }

    /// Refuses data that is declared wrongly, or not there for `splits`. Apart from the rest, because prediction needs
    /// no data but its own.
    pub fn validate_data(&self, splits: &[Split]) -> Result<()> {
        self.spec.data.validate(splits).map_err(|invalid| self.document.invalid_at("data", invalid))
    }

    /// The config as YAML with every default filled in. Loading it again gives the same config.
    pub fn resolved(&self) -> Result<String> {
        // Through JSON, because serde_yaml would write choices as `!tags`.
        Ok(serde_yaml::to_string(&serde_json::to_value(&self.spec)?)?)
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
    if let Some(text) = shipped::config(name) {
        return Document::parse(format!("<built-in> {name}.yaml"), text);
    }
    if path.is_dir() {
        return Err(fail(Exit::Usage, format!("{name} is a folder; give the YAML file of a run")));
    }
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or(name);
    let hint = match nearest(stem, shipped::configs()) {
        Some(near) => format!("did you mean the shipped config `{near}`?"),
        None => format!("shipped configs: {}", shipped::configs().collect::<Vec<_>>().join(", ")),
    };
    std::fs::metadata(path).or_exit(Exit::Usage, || format!("there is no config {name}; {hint}"))?;
    Document::read(path)
}
