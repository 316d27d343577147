//! Steps of equal length: PyTorch's `StepLR`.

use serde::{Deserialize, Serialize};

use super::{Plateau, Schedule, ScheduleStep, Unit, check_gamma, default_gamma, power};
use crate::util::yaml::Invalid;

/// η₀·gamma^⌊t/step_size⌋
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StepDecay {
    /// In epochs, or steps with `by: step`; at least 1.
    pub step_size: u64,
    #[serde(default = "default_gamma")]
    pub gamma: f64,
    #[serde(default = "Unit::epoch")]
    pub by: Unit,
}

impl Schedule for StepDecay {
    fn lr(&self, base: f64, now: ScheduleStep, _: &Plateau) -> f64 {
        base * power(self.gamma, now.count(self.by).0 / self.step_size.max(1))
    }

    fn validate(&self) -> Result<(), Invalid> {
        if self.step_size == 0 {
            return Err(Invalid::new("step_size", "0 is too small: at least 1"));
        }
        check_gamma(self.gamma)
    }
}
