//! Cosine annealing: Loshchilov and Hutter 2017, "SGDR"; PyTorch's `CosineAnnealingLR`.

use serde::{Deserialize, Serialize};

use super::{Plateau, Schedule, ScheduleStep, Unit, anneal, check, progress};
use crate::util::yaml::Invalid;

/// min_lr + (η₀ − min_lr)·(1 + cos(πt/T))/2
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Cosine {
    /// Where the curve ends; at least 0.
    #[serde(default)]
    pub min_lr: f64,
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
