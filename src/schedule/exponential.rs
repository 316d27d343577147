//! Exponential decay: PyTorch's `ExponentialLR`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Plateau, Schedule, ScheduleStep, Unit, check_gamma, power};
use crate::util::yaml::Invalid;

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exponential {
    /// The factor per epoch (per step with `by: step`).
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub gamma: f64,
    /// Whether t counts epochs or optimiser steps.
    #[serde(default = "Unit::epoch")]
    pub by: Unit,
}

impl Schedule for Exponential {
    fn lr(&self, base: f64, now: ScheduleStep, _: &Plateau) -> f64 {
        base * power(self.gamma, now.count(self.by).0)
    }

    fn validate(&self) -> Result<(), Invalid> {
        check_gamma(self.gamma)
    }
}
