//! A power of the share that is left: PyTorch's `PolynomialLR` over the whole run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Plateau, Schedule, ScheduleStep, Unit, check, progress};
use crate::util::yaml::Invalid;

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Polynomial {
    /// The power; 0.9 is usual in segmentation.
    #[serde(default = "default_power")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub power: f64,
    /// Whether t counts epochs or optimiser steps.
    #[serde(default = "Unit::step")]
    pub by: Unit,
}

fn default_power() -> f64 {
    1.0
}

impl Schedule for Polynomial {
    fn lr(&self, base: f64, now: ScheduleStep, _: &Plateau) -> f64 {
        base * (1.0 - progress(now.count(self.by))).powf(self.power)
    }

    fn validate(&self) -> Result<(), Invalid> {
        check("power", self.power, self.power > 0.0, "above 0")
    }
}
