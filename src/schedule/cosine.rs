//! Cosine annealing: Loshchilov and Hutter 2017, "SGDR"; PyTorch's `CosineAnnealingLR`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Plateau, Schedule, ScheduleStep, Unit, anneal, check, progress};
use crate::util::yaml::Invalid;

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cosine {
    /// The learning rate at the end of the run (`eta_min`).
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub min_lr: f64,
    /// Whether t counts epochs or optimiser steps.
    #[serde(default = "Unit::step")]
    pub by: Unit,
}

impl Schedule for Cosine {
    fn lr(&self, base: f64, now: ScheduleStep, _: &Plateau) -> f64 {
        anneal(base, self.min_lr, progress(now.count(self.by)))
    }

    fn validate(&self) -> Result<(), Invalid> {
        check("min_lr", self.min_lr, self.min_lr >= 0.0, "at least 0")
    }
}
