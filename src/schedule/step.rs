//! Steps of equal length: PyTorch's `StepLR`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Plateau, Schedule, ScheduleStep, Unit, check_gamma, default_gamma, power};
use crate::util::yaml::Invalid;

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StepDecay {
    /// Epochs (steps with `by: step`) between two reductions.
    #[schemars(range(min = 1))]
    pub step_size: u64,
    /// The factor of each reduction.
    #[serde(default = "default_gamma")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub gamma: f64,
    /// Whether t counts epochs or optimiser steps.
    #[serde(default = "Unit::epoch")]
    pub by: Unit,
}

impl Schedule for StepDecay {
    fn lr(&self, base: f64, now: ScheduleStep, _: &Plateau) -> f64 {
        base * power(self.gamma, now.count(self.by).0 / self.step_size.max(1))
    }

    fn validate(&self) -> Result<(), Invalid> {
        if self.step_size == 0 {
            return Err(Invalid::new("step_size", "0 is too small: at least 1"));
        }
        check_gamma(self.gamma)
    }
}
