//! Warm-up, stable, decay: Hu et al. 2024, "MiniCPM"; the shapes of the decay as in Hägele et al. 2024,
//! "Scaling laws and compute-optimal training beyond fixed training durations". The warm-up is the one that any
//! schedule may have.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Plateau, Schedule, ScheduleStep, anneal, check};
use crate::util::yaml::Invalid;

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Wsd {
    /// Share of the run, the warm-up apart, in which the rate falls, at its end.
    #[serde(default = "default_decay")]
    #[schemars(range(max = 1), extend("exclusiveMinimum" = 0))]
    pub decay: f64,
    /// The same in optimiser steps, instead of `decay`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub decay_steps: Option<u64>,
    /// How the rate falls.
    #[serde(default)]
    pub shape: Shape,
    /// The learning rate at the end of the run.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub min_lr: f64,
}

/// How the rate falls, with s from 0 to 1 over the decay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// 1 - s
    #[default]
    Linear,
    /// (1 + cos(πs))/2
    Cosine,
    /// 1 - √s
    Sqrt,
}

fn default_decay() -> f64 {
    0.1
}

impl Schedule for Wsd {
    fn lr(&self, base: f64, now: ScheduleStep, _: &Plateau) -> f64 {
        let start = self.start(now.total_steps);
        if now.step < start || now.total_steps <= start {
            return base;
        }
        let share = ((now.step - start) as f64 / (now.total_steps - start) as f64).min(1.0);
        match self.shape {
            Shape::Linear => base + (self.min_lr - base) * share,
            Shape::Cosine => anneal(base, self.min_lr, share),
            Shape::Sqrt => base + (self.min_lr - base) * share.sqrt(),
        }
    }

    fn decay_start(&self, total_steps: u64) -> Option<u64> {
        Some(self.start(total_steps))
    }

    fn validate(&self) -> Result<(), Invalid> {
        check("decay", self.decay, self.decay > 0.0 && self.decay <= 1.0, "in (0, 1]")?;
        if self.decay_steps == Some(0) {
            return Err(Invalid::new("decay_steps", "0 is too small: at least 1"));
        }
        check("min_lr", self.min_lr, self.min_lr >= 0.0, "at least 0")
    }
}

impl Wsd {
    /// The first step of the decay, of so many without the warm-up.
    fn start(&self, total: u64) -> u64 {
        total.saturating_sub(self.decay_steps.unwrap_or_else(|| (self.decay * total as f64).ceil() as u64))
    }
}
