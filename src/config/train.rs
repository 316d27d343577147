//! The `train:` section: duration, arithmetic, checkpoints and logs.

use std::fmt;

use schemars::JsonSchema;
use serde::de::{Deserializer, Error, Unexpected, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::Toggle;
use super::distributed::DistributedSpec;
use crate::libtorch::kernels::{self, Kernel, KernelSpec};
use crate::optim::{Clip, EmaSpec, SamSpec};
use crate::util::yaml::Invalid;

/// How long to train, in which arithmetic, and what to save and log.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainSpec {
    /// Passes over the training set. Give this, `steps` or `hours`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub epochs: Option<u64>,
    /// Optimiser steps of the run, which may end within an epoch; instead of `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub steps: Option<u64>,
    /// Hours of training, evaluation and pauses apart; instead of `epochs`. Schedules and λs go by the share of
    /// the time that is over, so that no two runs are the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub hours: Option<f64>,
    /// Batches whose gradients are averaged into one optimiser step.
    #[serde(default = "one_batch")]
    #[schemars(range(min = 1))]
    pub accumulate: usize,
    /// Autocast, as `torch.autocast`: weights, gradients and optimiser state stay float32, and evaluation is
    /// float32 throughout. Off when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amp: Option<Amp>,
    /// Whether a GPU may round factors to TF32 in float32 convolutions and matrix products. As PyTorch when
    /// absent: in convolutions only. No effect on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tf32: Option<bool>,
    /// Which of our own CPU kernels compute instead of libtorch's operations: `own` (all, the default),
    /// `libtorch` (none), or true or false for single ones. No effect on a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernels: Option<KernelSpec>,
    /// The older name of `kernels: {winograd: false}`: whether the CPU convolves by Winograd's method, the
    /// same to rounding, in a third of the time.
    #[serde(default = "yes")]
    pub winograd: bool,
    /// As `torch.backends.cudnn.benchmark`: time cuDNN's algorithms for each shape of a training step and
    /// keep the fastest. No effect on the CPU, and none with `deterministic`.
    #[serde(default = "yes")]
    pub cudnn_benchmark: bool,
    /// As Lightning's `deterministic`: a GPU takes algorithms alone that give the same bits in each run, slower ones
    /// among them, and an operation that has none ends the run. No effect on the CPU, whose runs repeat anyway.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deterministic: bool,
    /// Whether a GPU keeps images and the weights of convolutions in PyTorch's memory format `channels_last`, which its
    /// tensor cores compute in; `auto` is with `amp`, and not for programs of Python's. No effect on the CPU.
    #[serde(default = "auto", skip_serializing_if = "Toggle::is_auto")]
    pub channels_last: Toggle,
    /// Record the training step as a CUDA graph and replay it: `auto` falls back to ordinary steps and says why, `true`
    /// makes that an error. No effect on the CPU.
    #[serde(default, skip_serializing_if = "Toggle::is_off")]
    pub cuda_graph: Toggle,
    /// Activation checkpointing, as `torch.utils.checkpoint.checkpoint_sequential`: keep only the activations
    /// at the ends of segments and compute the others again in the backward pass: less memory, more time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_activations: Option<Segments>,
    /// Gradient clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<Clip>,
    /// An exponential moving average of the weights, which is then what is evaluated and exported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<EmaSpec>,
    /// Sharpness-aware minimisation: each step takes its gradient at the worst point nearby, in twice the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sam: Option<SamSpec>,
    /// The score on the validation set that decides on the best checkpoint, early stopping, `plateau` and
    /// sweeps: any that the task reports, such as `macro_f1` or `loss`. The task's own, such as `accuracy`,
    /// when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitor: Option<String>,
    /// Scores that every evaluation reports beside the task's usual ones, such as `auroc`: any of the task's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStopping>,
    #[serde(default)]
    pub checkpoint: CheckpointSpec,
    /// How the processes of a job share gradients.
    #[serde(default, skip_serializing_if = "DistributedSpec::is_default")]
    pub distributed: DistributedSpec,
    /// Optimiser steps between two lines of metrics.
    #[serde(default = "fifty")]
    #[schemars(range(min = 1))]
    pub log_every: u64,
    /// Epochs between two evaluations, or optimiser steps: `{steps: 500}`. The end of the run is always
    /// evaluated.
    #[serde(default)]
    pub eval_every: EvalEvery,
    /// Sample pictures (input, output and target side by side) that each evaluation writes, of image tasks.
    #[serde(default = "three")]
    pub pictures: usize,
    /// Write event files for TensorBoard.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tensorboard: bool,
}

/// Stops when the monitored score has not improved on the validation set for `patience` epochs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    /// Epochs without an improvement after which training stops.
    #[schemars(range(min = 1))]
    pub patience: u64,
    /// The smallest change of the score that counts as an improvement.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub min_delta: f64,
}

/// When to save checkpoints, and how many to keep.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSpec {
    /// Also save within an epoch, after every so many optimiser steps. Only at the ends of epochs when
    /// absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub every_steps: Option<u64>,
    /// Epochs between two checkpoints. The best and the last are always saved.
    #[schemars(range(min = 1))]
    pub every_epochs: u64,
    /// Checkpoints to keep beside `last` and `best`: those with the best validation scores, without a
    /// validation set the newest.
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

fn auto() -> Toggle {
    Toggle::Auto
}

fn one_batch() -> usize {
    1
}

fn three() -> usize {
    3
}

fn fifty() -> u64 {
    50
}

/// When a run is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a number of epochs, or `{steps: N}`")]
pub enum EvalEvery {
    Epochs(#[schemars(range(min = 1))] u64),
    Steps(EvalSteps),
}

/// Optimiser steps between two evaluations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvalSteps {
    /// Optimiser steps.
    #[schemars(range(min = 1))]
    pub steps: u64,
}

impl Default for EvalEvery {
    fn default() -> Self {
        Self::Epochs(1)
    }
}

impl EvalEvery {
    /// Whether the end of epoch `epoch`, after `step` steps, is evaluated.
    pub fn is_due_after(self, epoch: u64, step: u64) -> bool {
        match self {
            Self::Epochs(epochs) => epoch.is_multiple_of(epochs),
            Self::Steps(EvalSteps { steps }) => step.is_multiple_of(steps),
        }
    }

    /// Whether a moment within an epoch is, after `step` steps.
    pub fn is_due_within(self, step: u64) -> bool {
        matches!(self, Self::Steps(EvalSteps { steps }) if step > 0 && step.is_multiple_of(steps))
    }
}

/// How long a run trains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    Epochs(u64),
    Steps(u64),
    Hours(f64),
}

impl Budget {
    /// Whether a run is over that has finished `epoch` epochs and `step` steps in so many seconds.
    pub fn is_spent(self, epoch: u64, step: u64, seconds: f64) -> bool {
        match self {
            Self::Epochs(epochs) => epoch >= epochs,
            Self::Steps(steps) => step >= steps,
            Self::Hours(hours) => seconds >= hours * 3600.0,
        }
    }

    /// Steps of the whole run; None where the clock decides.
    pub fn steps(self, per_epoch: u64) -> Option<u64> {
        match self {
            Self::Epochs(epochs) => Some(epochs * per_epoch),
            Self::Steps(steps) => Some(steps),
            Self::Hours(_) => None,
        }
    }

    /// Epochs that it takes, the last of which may be cut short.
    pub fn epochs(self, per_epoch: u64) -> Option<u64> {
        match self {
            Self::Epochs(epochs) => Some(epochs),
            Self::Steps(steps) => Some(steps.div_ceil(per_epoch.max(1))),
            Self::Hours(_) => None,
        }
    }
}

impl TrainSpec {
    /// How long to train; a config says it in exactly one way.
    pub fn budget(&self) -> Budget {
        match (self.epochs, self.steps, self.hours) {
            (_, Some(steps), _) => Budget::Steps(steps),
            (_, _, Some(hours)) => Budget::Hours(hours),
            (epochs, ..) => Budget::Epochs(epochs.unwrap_or(0)),
        }
    }

    fn validate_budget(&self) -> Result<(), Invalid> {
        let given = [
            ("epochs", self.epochs.is_some()),
            ("steps", self.steps.is_some()),
            ("hours", self.hours.is_some()),
        ];
        let mut given = given.into_iter().filter(|(_, is_given)| *is_given).map(|(key, _)| key);
        match (given.next(), given.next()) {
            (None, _) => {
                return Err(Invalid::new(
                    "",
                    "how long? Say `epochs`, `steps` or `hours`, as in `epochs: 10`",
                ));
            }
            (Some(one), Some(other)) => {
                let message = format!("`{one}` and `{other}` at once: leave one out, as `{one}: null` does");
                return Err(Invalid::new(other, message));
            }
            _ => {}
        }
        if let Some(hours) = self.hours
            && !(hours > 0.0 && hours.is_finite())
        {
            return Err(Invalid::new("hours", format!("{hours} is no time to train; give a number above 0")));
        }
        Ok(())
    }

    /// Whether activations are recomputed in the backward pass.
    pub fn is_cut(&self) -> bool {
        !matches!(self.checkpoint_activations, None | Some(Segments::None))
    }

    /// Whether cuDNN's algorithms are timed.
    pub fn is_benchmarked(&self) -> bool {
        self.cudnn_benchmark && !self.deterministic
    }

    /// Lets each CPU kernel compute, or libtorch, for the whole process.
    pub fn use_kernels(&self) {
        self.kernels.as_ref().unwrap_or(&KernelSpec::Own).apply();
        if !self.winograd {
            kernels::enable(Kernel::Winograd, false);
        }
    }

    fn validate_kernels(&self) -> Result<(), Invalid> {
        let Some(kernels) = &self.kernels else { return Ok(()) };
        kernels.validate().map_err(|invalid| invalid.under("kernels"))?;
        if !self.winograd && kernels.says(Kernel::Winograd) == Some(true) {
            let message = format!("false contradicts `kernels: {kernels}`: leave it out, or set it to true");
            return Err(Invalid::new("winograd", message));
        }
        Ok(())
    }

    pub fn validate(&self) -> Result<(), Invalid> {
        let at_least_one = |key: &str, value: u64| match value {
            0 => Err(Invalid::new(key, "must be 1 or more")),
            _ => Ok(()),
        };
        self.validate_budget()?;
        at_least_one("epochs", self.epochs.unwrap_or(1))?;
        at_least_one("steps", self.steps.unwrap_or(1))?;
        at_least_one("accumulate", self.accumulate as u64)?;
        at_least_one("log_every", self.log_every)?;
        match self.eval_every {
            EvalEvery::Epochs(epochs) => at_least_one("eval_every", epochs)?,
            EvalEvery::Steps(EvalSteps { steps }) => at_least_one("eval_every.steps", steps)?,
        }
        at_least_one("checkpoint.every_steps", self.checkpoint.every_steps.unwrap_or(1))?;
        at_least_one("checkpoint.every_epochs", self.checkpoint.every_epochs)?;
        self.validate_kernels()?;
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
        if let Some(sam) = &self.sam {
            sam.validate().map_err(|invalid| invalid.under("sam"))?;
            if self.amp == Some(Amp::Fp16) {
                let message = "`amp: fp16` may skip the pass that `sam` starts from; take bf16";
                return Err(Invalid::new("sam", message));
            }
        }
        Ok(())
    }
}

/// The 16-bit number format of convolutions and linear maps in a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Amp {
    Bf16,
    /// With loss scaling, as `torch.amp.GradScaler`; steps whose gradients overflow are skipped.
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

/// Number of segments into which each list of layers is cut for activation checkpointing; `true` for the
/// square root of its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(with = "Value", extend("anyOf" = [{"type": "boolean"}, {"type": "integer", "minimum": 2}]))]
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
