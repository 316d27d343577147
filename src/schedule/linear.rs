//! A straight line: PyTorch's `LinearLR`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Plateau, Schedule, ScheduleStep, Unit, check, progress};
use crate::util::yaml::Invalid;

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Linear {
    /// The factor at the start.
    #[serde(default = "default_start_factor")]
    #[schemars(range(min = 0))]
    pub start_factor: f64,
    /// The factor at the end.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub end_factor: f64,
    /// Whether t counts epochs or optimiser steps.
    #[serde(default = "Unit::step")]
    pub by: Unit,
}

fn default_start_factor() -> f64 {
    1.0
}

impl Schedule for Linear {
    fn lr(&self, base: f64, now: ScheduleStep, _: &Plateau) -> f64 {
        let share = progress(now.count(self.by));
        base * (self.start_factor + (self.end_factor - self.start_factor) * share)
    }

    fn peak(&self, base: f64) -> f64 {
        base * self.start_factor.max(self.end_factor)
    }

    fn validate(&self) -> Result<(), Invalid> {
        check("start_factor", self.start_factor, self.start_factor >= 0.0, "at least 0")?;
        check("end_factor", self.end_factor, self.end_factor >= 0.0, "at least 0")
    }
}
