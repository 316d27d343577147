//! Decay with the inverse square root of time.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Plateau, Schedule, ScheduleStep, Unit, check};
use crate::util::yaml::Invalid;

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InverseSqrt {
    /// How fast the rate falls.
    #[schemars(range(min = 0))]
    pub gamma: f64,
    /// Whether t counts epochs or optimiser steps.
    #[serde(default = "Unit::step")]
    pub by: Unit,
}

impl Schedule for InverseSqrt {
    fn lr(&self, base: f64, now: ScheduleStep, _: &Plateau) -> f64 {
        let (t, _) = now.count(self.by);
        base / (1.0 + self.gamma * self.gamma * t as f64).sqrt()
    }

    fn validate(&self) -> Result<(), Invalid> {
        check("gamma", self.gamma, self.gamma >= 0.0, "at least 0")
    }
}
