//! Salt and pepper: a share of the values becomes 0 or 1, as MATLAB's `imnoise` does it.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::Degradation;
use super::level::Level;
use crate::util::yaml::Invalid;

/// Salt-and-pepper noise.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SaltPepper {
    /// Share of the values that are replaced, in [0, 1], each channel apart; half of them become 0 and half
    /// 1.
    pub amount: Level,
}

impl Default for SaltPepper {
    fn default() -> Self {
        Self { amount: Level::fixed(0.05) }
    }
}

impl Degradation for SaltPepper {
    fn validate(&self) -> Result<(), Invalid> {
        self.amount.validate("amount", 0.0, 1.0)
    }

    fn apply(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let amount = self.amount.per_image(images, train);
        let draw = images.rand_like();
        let pepper = draw.less_tensor(&(&amount * 0.5));
        let salt = draw.less_tensor(&amount).logical_xor(&pepper);
        Ok(images.masked_fill(&pepper, 0.0).masked_fill(&salt, 1.0))
    }
}
