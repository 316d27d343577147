//! Poisson noise: what a sensor counts that expects `peak` photons where the image is white.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::Degradation;
use super::level::Level;
use crate::util::yaml::Invalid;

/// Poisson noise of photon counting.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Poisson {
    /// Expected photons of a white pixel, above 0: fewer are noisier.
    pub peak: Level,
}

impl Default for Poisson {
    fn default() -> Self {
        Self { peak: Level::fixed(30.0) }
    }
}

impl Degradation for Poisson {
    fn validate(&self) -> Result<(), Invalid> {
        self.peak.validate("peak", 1e-3, 1e6)
    }

    fn apply(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let peak = self.peak.per_image(images, train);
        // Earlier noise may have made pixels negative, which no expectation can be.
        Ok((images.clamp_min(0.0) * &peak).poisson() / peak)
    }
}
