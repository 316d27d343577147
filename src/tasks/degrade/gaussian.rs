//! White Gaussian noise, unclipped as the field has it.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::Degradation;
use super::level::Level;
use crate::util::yaml::Invalid;

/// Additive Gaussian noise.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Gaussian {
    /// Standard deviation on the scale 0 to 255.
    pub sigma: Level,
    /// The standard deviation of evaluation; the middle of the range when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub eval_sigma: Option<f64>,
    /// Whether σ/255 is one more input channel, as in FFDNet (Zhang et al. 2018).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub map: bool,
}

impl Default for Gaussian {
    fn default() -> Self {
        Self { sigma: Level::fixed(25.0), eval_sigma: None, map: false }
    }
}

impl Gaussian {
    fn level(&self, train: bool) -> Level {
        match self.eval_sigma {
            Some(sigma) if !train => Level::fixed(sigma),
            _ => self.sigma,
        }
    }

    fn mapped(&self, images: Tensor, sigma: &Tensor) -> Tensor {
        let size = images.size();
        let map = (sigma / 255.0).expand([size[0], 1, size[2], size[3]], false);
        Tensor::cat(&[images, map], 1)
    }
}

impl Degradation for Gaussian {
    fn validate(&self) -> Result<(), Invalid> {
        self.sigma.validate("sigma", 0.0, f64::INFINITY)?;
        self.eval_sigma.map_or(Ok(()), |sigma| Level::fixed(sigma).validate("eval_sigma", 0.0, f64::INFINITY))
    }

    fn apply(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let level = self.level(train);
        // Published numbers depend on these very draws: one `randn` of the batch, times a plain number.
        let (noisy, sigma) = match level.shared(train) {
            Some(sigma) => (images + images.randn_like() * (sigma / 255.0), None),
            None => {
                let sigma = level.per_image(images, train);
                (images + images.randn_like() * (&sigma / 255.0), Some(sigma))
            }
        };
        Ok(match self.map {
            true => self.mapped(noisy, &sigma.unwrap_or_else(|| level.per_image(images, train))),
            false => noisy,
        })
    }

    fn present(&self, images: Tensor) -> Tensor {
        match self.map {
            true => {
                let sigma = self.level(false).per_image(&images, false);
                self.mapped(images, &sigma)
            }
            false => images,
        }
    }

    fn output(&self, [channels, height, width]: [i64; 3]) -> [i64; 3] {
        [channels + i64::from(self.map), height, width]
    }
}
