//! Cosine annealing that starts again: Loshchilov and Hutter 2017, "SGDR"; PyTorch's
//! `CosineAnnealingWarmRestarts`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Plateau, Schedule, ScheduleStep, Unit, anneal, check};
use crate::util::yaml::Invalid;

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CosineWarmRestarts {
    /// Epochs (steps with `by: step`) until the first restart.
    #[schemars(range(min = 1))]
    pub t_0: u64,
    /// How much longer each period is than the one before.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub t_mult: u64,
    /// The learning rate at the end of each period (`eta_min`).
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub min_lr: f64,
    /// Whether t counts epochs or optimiser steps.
    #[serde(default = "Unit::epoch")]
    pub by: Unit,
}

fn one() -> u64 {
    1
}

impl Schedule for CosineWarmRestarts {
    fn lr(&self, base: f64, now: ScheduleStep, _: &Plateau) -> f64 {
        let (mut t, mut period) = (now.count(self.by).0, self.t_0.max(1));
        if self.t_mult <= 1 {
            t %= period;
        }
        while t >= period {
            t -= period;
            period = period.saturating_mul(self.t_mult);
        }
        anneal(base, self.min_lr, t as f64 / period as f64)
    }

    fn validate(&self) -> Result<(), Invalid> {
        for (key, value) in [("t_0", self.t_0), ("t_mult", self.t_mult)] {
            if value == 0 {
                return Err(Invalid::new(key, "0 is too small: at least 1"));
            }
        }
        check("min_lr", self.min_lr, self.min_lr >= 0.0, "at least 0")
    }
}
