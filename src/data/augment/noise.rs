//! Gaussian noise on the input: Bishop 1995, "Training with noise is equivalent to Tikhonov regularization".

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::data::draw::{Draw, Purpose};
use crate::yaml::Invalid;

/// Adds independent normal noise of standard deviation `sigma` to every normalised value, of pictures and of
/// tables.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Noise {
    pub sigma: f64,
}

impl Noise {
    pub fn validate(&self) -> Result<(), Invalid> {
        if !(self.sigma > 0.0 && self.sigma.is_finite()) {
            return Err(Invalid::new(
                "sigma",
                format!("{} is no standard deviation; give one > 0", self.sigma),
            ));
        }
        Ok(())
    }

    /// A seed for the sample's own noise; 52 bits, so that a float64 holds it exactly.
    pub fn draw(&self, draw: &mut Draw) -> [f64; 1] {
        [(draw.bits() >> 12) as f64]
    }

    /// `xs` `[B, ...]`, `params` `[B, 1]` on the CPU. The noise is drawn on the CPU: it must not depend on the
    /// device.
    pub fn apply(&self, xs: &Tensor, params: &[f64]) -> Tensor {
        let per_sample = xs.numel() / params.len().max(1);
        let mut noise: Vec<f32> = Vec::with_capacity(xs.numel());
        for &seed in params {
            let mut draw = Draw::new(seed as u64, 0, 0, Purpose::Augment);
            noise.extend((0..per_sample).map(|_| (self.sigma * draw.normal()) as f32));
        }
        let noise = Tensor::from_slice(&noise).view(xs.size().as_slice());
        xs + noise.to_device(xs.device()).to_kind(match xs.kind() {
            Kind::Double => Kind::Double,
            _ => Kind::Float,
        })
    }
}
