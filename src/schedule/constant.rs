//! A constant learning rate.

use serde::{Deserialize, Serialize};

use super::{Plateau, Schedule, ScheduleStep};

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {}

impl Schedule for Constant {
    fn lr(&self, base: f64, _: ScheduleStep, _: &Plateau) -> f64 {
        base
    }
}
