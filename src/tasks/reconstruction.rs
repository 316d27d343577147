//! Reconstruction: the image back from a degraded copy that is made on the fly, on the device.
//!
//! Residual learning as in DnCNN (Zhang et al. 2017): the network answers the noise, the image is the rest.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::{Goal, Prediction, Task};
use crate::data::Dataset;
use crate::exit::{Exit, fail};
use crate::loss::RegressionLoss;
use crate::metrics::{Meter, PsnrMeter};
use crate::yaml::Invalid;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reconstruction {
    #[serde(default)]
    pub degrade: Degrade,
    #[serde(default)]
    pub loss: RegressionLoss,
    /// Whether the network answers what is to be subtracted from its input.
    #[serde(default)]
    pub residual: bool,
}

/// What is done to the image before the network sees it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Degrade {
    /// White Gaussian noise; `sigma` on the scale 0..255 as the field counts, unclipped.
    Gaussian { sigma: f64 },
    /// Nothing: the network is an autoencoder.
    None,
}

impl Default for Degrade {
    fn default() -> Self {
        Self::Gaussian { sigma: 25.0 }
    }
}

impl Reconstruction {
    pub fn validate(&self) -> Result<(), Invalid> {
        match self.degrade {
            Degrade::Gaussian { sigma } if !(sigma >= 0.0 && sigma.is_finite()) => Err(Invalid {
                path: "reconstruction.degrade.gaussian.sigma".into(),
                message: format!("{sigma} is not a non-negative number"),
            }),
            _ => Ok(()),
        }
    }
}

impl Task for Reconstruction {
    fn check(&self, output: &[i64], set: &Dataset) -> Result<()> {
        if set.shape.len() != 3 {
            let message = format!("reconstruction wants images [C, H, W], and the data has {:?}", set.shape);
            return Err(fail(Exit::Usage, message));
        }
        if set.shape[0] != output[0] || output.len() != 3 {
            let message = format!(
                "the images are {:?} and the network gives {output:?}; its output must have their shape",
                set.shape
            );
            return Err(fail(Exit::Usage, message));
        }
        Ok(())
    }

    fn prepare(&self, xs: Tensor, _ys: Tensor) -> (Tensor, Tensor) {
        match self.degrade {
            Degrade::Gaussian { sigma } => {
                let noise = xs.randn_like();
                (&xs + noise * (sigma / 255.0), xs)
            }
            Degrade::None => (xs.shallow_clone(), xs),
        }
    }

    fn answer(&self, xs: &Tensor, outputs: Tensor) -> Tensor {
        if self.residual { xs - outputs } else { outputs }
    }

    fn loss(&self, outputs: &Tensor, ys: &Tensor) -> Tensor {
        self.loss.of(outputs, ys)
    }

    fn meter(&self, _output: &[i64]) -> Box<dyn Meter> {
        Box::new(PsnrMeter::default())
    }

    fn goal(&self) -> Goal {
        Goal { metric: "psnr", higher_is_better: true }
    }

    fn predictions(&self, outputs: &Tensor) -> Result<Vec<Prediction>> {
        let images = outputs.to_device(Device::Cpu).to_kind(Kind::Float).clamp(0.0, 1.0);
        Ok((0..images.size()[0]).map(|index| Prediction::Image(images.get(index))).collect())
    }
}
