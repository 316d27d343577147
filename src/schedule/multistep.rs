//! Steps at given times: PyTorch's `MultiStepLR`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Plateau, Schedule, ScheduleStep, Unit, check_gamma, default_gamma, power};
use crate::util::yaml::Invalid;

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Multistep {
    /// Epochs (steps with `by: step`) at which the rate is reduced; ascending.
    pub milestones: Vec<u64>,
    /// The factor of each reduction.
    #[serde(default = "default_gamma")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub gamma: f64,
    /// Whether t counts epochs or optimiser steps.
    #[serde(default = "Unit::epoch")]
    pub by: Unit,
}

impl Schedule for Multistep {
    fn lr(&self, base: f64, now: ScheduleStep, _: &Plateau) -> f64 {
        let (t, _) = now.count(self.by);
        let passed = self.milestones.iter().filter(|&&milestone| milestone <= t).count();
        base * power(self.gamma, passed as u64)
    }

    fn validate(&self) -> Result<(), Invalid> {
        if !self.milestones.is_sorted_by(|a, b| a < b) {
            return Err(Invalid::new("milestones", "must ascend, each once"));
        }
        check_gamma(self.gamma)
    }
}
