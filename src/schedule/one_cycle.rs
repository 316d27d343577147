//! One cycle: Smith and Topin 2019, "Super-convergence"; PyTorch's `OneCycleLR` with `cycle_momentum=False`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Plateau, Schedule, ScheduleStep, Unit, anneal, check};
use crate::util::yaml::Invalid;

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OneCycle {
    /// The peak; the optimiser's `lr` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub max_lr: Option<f64>,
    /// Share of the run in which the rate rises.
    #[serde(default = "default_pct_start")]
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    pub pct_start: f64,
    /// The rate starts at max_lr/div_factor.
    #[serde(default = "default_div_factor")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub div_factor: f64,
    /// The rate ends at max_lr/(div_factor·final_div_factor).
    #[serde(default = "default_final_div_factor")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub final_div_factor: f64,
    /// Whether t counts epochs or optimiser steps.
    #[serde(default = "Unit::step")]
    pub by: Unit,
}

fn default_pct_start() -> f64 {
    0.3
}

fn default_div_factor() -> f64 {
    25.0
}

fn default_final_div_factor() -> f64 {
    1e4
}

impl Schedule for OneCycle {
    fn lr(&self, base: f64, now: ScheduleStep, _: &Plateau) -> f64 {
        let (t, total) = now.count(self.by);
        let (t, total) = (t as f64, total as f64);
        let peak = self.max_lr.unwrap_or(base);
        let start = peak / self.div_factor;
        // PyTorch's phases: the rise ends at pct_start·T − 1, the fall at T − 1.
        let (top, end) = (self.pct_start * total - 1.0, total - 1.0);
        if t <= top {
            return anneal(start, peak, if top > 0.0 { t / top } else { 1.0 });
        }
        anneal(peak, start / self.final_div_factor, ((t - top) / (end - top)).clamp(0.0, 1.0))
    }

    fn peak(&self, base: f64) -> f64 {
        self.max_lr.unwrap_or(base)
    }

    fn validate(&self) -> Result<(), Invalid> {
        if let Some(lr) = self.max_lr {
            check("max_lr", lr, lr > 0.0, "above 0")?;
        }
        let in_range = self.pct_start > 0.0 && self.pct_start < 1.0;
        check("pct_start", self.pct_start, in_range, "in (0, 1)")?;
        check("div_factor", self.div_factor, self.div_factor > 0.0, "above 0")?;
        check("final_div_factor", self.final_div_factor, self.final_div_factor > 0.0, "above 0")
    }
}
