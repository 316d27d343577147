//! Reduce-on-plateau, as `torch.optim.lr_scheduler.ReduceLROnPlateau`: the one schedule with a state.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Schedule, ScheduleStep, check, default_gamma};
use crate::util::yaml::Invalid;

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlateauSpec {
    /// The factor of each reduction.
    #[serde(default = "default_gamma")]
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    pub factor: f64,
    /// Epochs without an improvement before a reduction.
    #[serde(default = "default_patience")]
    pub patience: u64,
    /// The smallest change of the metric that counts as an improvement.
    #[serde(default = "default_threshold")]
    #[schemars(range(min = 0))]
    pub threshold: f64,
    /// Whether `threshold` is relative or absolute.
    #[serde(default)]
    pub threshold_mode: ThresholdMode,
    /// Epochs after a reduction in which epochs without an improvement are not counted.
    #[serde(default)]
    pub cooldown: u64,
    /// The smallest learning rate.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub min_lr: f64,
    /// Whether less (`min`) or more (`max`) of the watched score is better; as the score has it when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

/// Whether a small metric is good (a loss) or a large one (an accuracy).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    #[default]
    Min,
    Max,
}

/// Whether `threshold` is a share of the best metric or a difference to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ThresholdMode {
    #[default]
    Rel,
    Abs,
}

/// State of reduce-on-plateau; untouched by the other schedules.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plateau {
    pub best: Option<f64>,
    pub bad_epochs: u64,
    pub cooldown_left: u64,
    pub reductions: u64,
}

fn default_patience() -> u64 {
    10
}

fn default_threshold() -> f64 {
    1e-4
}

impl Schedule for PlateauSpec {
    fn lr(&self, base: f64, _: ScheduleStep, state: &Plateau) -> f64 {
        let floor = self.min_lr.min(base);
        (0..state.reductions).fold(base, |lr, _| (lr * self.factor).max(floor))
    }

    fn validate(&self) -> Result<(), Invalid> {
        check("factor", self.factor, self.factor > 0.0 && self.factor < 1.0, "in (0, 1)")?;
        check("threshold", self.threshold, self.threshold >= 0.0, "at least 0")?;
        check("min_lr", self.min_lr, self.min_lr >= 0.0, "at least 0")
    }

    fn monitors(&self) -> Option<Mode> {
        Some(self.mode.unwrap_or_default())
    }

    fn observe(&self, metric: f64, state: &mut Plateau) {
        let better = state.best.is_none_or(|best| {
            let margin = match self.threshold_mode {
                // PyTorch scales by the best value, sign included.
                ThresholdMode::Rel => best * self.threshold,
                ThresholdMode::Abs => self.threshold,
            };
            match self.mode.unwrap_or_default() {
                Mode::Min => metric < best - margin,
                Mode::Max => metric > best + margin,
            }
        });
        if better && !metric.is_nan() {
            state.best = Some(metric);
            state.bad_epochs = 0;
        } else {
            state.bad_epochs += 1;
        }
        if state.cooldown_left > 0 {
            state.cooldown_left -= 1;
            state.bad_epochs = 0;
        }
        if state.bad_epochs > self.patience {
            state.reductions += 1;
            state.cooldown_left = self.cooldown;
            state.bad_epochs = 0;
        }
    }
}
