//! Gaussian noise on the input: Bishop 1995, "Training with noise is equivalent to Tikhonov regularization".

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::{Augmentation, ChangesValues, Params};
use crate::libtorch::device::cores;
use crate::libtorch::memory::Slots;
use crate::libtorch::or_panic;
use crate::util::rng::{CounterRng, RngStream};
use crate::util::threads;
use crate::util::yaml::Invalid;

/// Adds independent normal noise of standard deviation `sigma` to every normalised value, of pictures and of
/// tables.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Noise {
    /// Standard deviation, in units of the normalised values.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub sigma: f64,
}

impl Augmentation for Noise {
    fn validate(&self) -> Result<(), Invalid> {
        if !(self.sigma > 0.0 && self.sigma.is_finite()) {
            return Err(Invalid::new(
                "sigma",
                format!("{} is no standard deviation; give one > 0", self.sigma),
            ));
        }
        Ok(())
    }

    fn output_shape(&self, input: &[i64]) -> Result<Vec<i64>, String> {
        Ok(input.to_vec())
    }

    fn num_params(&self) -> usize {
        1
    }

    /// A seed for the sample's own noise; 52 bits, so that a float64 holds it exactly.
    fn sample(&self, _: [usize; 2], rng: &mut CounterRng, params: &mut Vec<f64>) {
        params.push((rng.bits() >> 12) as f64);
    }
}

impl ChangesValues for Noise {
    /// The noise is made on the CPU, so that it does not depend on the device; for a GPU by all cores, and into page-locked
    /// memory.
    fn apply(&self, xs: &Tensor, params: &Params) -> Tensor {
        /// Below it the threads cost more than they save.
        const MANY: usize = 1 << 15;
        let is_far = xs.device() != Device::Cpu;
        let noise = or_panic(Slots::<f32>::new(&xs.size(), is_far));
        let seeds: Vec<_> = params.rows().map(|row| row[0] as u64).enumerate().collect();
        let threads = if is_far && xs.numel() >= MANY { cores() } else { 1 };
        threads::each(threads, seeds, |(sample, seed)| {
            let mut rng = CounterRng::new(seed, 0, 0, RngStream::Augment);
            for pair in noise.slot(sample).into_iter().flat_map(|noise| noise.chunks_mut(2)) {
                let two = normals(rng.bits()).map(|normal| self.sigma as f32 * normal);
                pair.copy_from_slice(&two[..pair.len()]);
            }
        });
        xs + noise.into_tensor().to_device_(xs.device(), Kind::Float, true, false).to_kind(xs.kind())
    }
}

/// Two independent standard normal numbers (Box and Muller 1958) from the halves of 64 random bits, up to
/// ±6.7.
pub fn normals(bits: u64) -> [f32; 2] {
    const UNIT: f32 = 1.0 / (1u64 << 32) as f32;
    let (high, low) = ((bits >> 32) as f32, bits as u32 as f32);
    let radius = (-2.0 * ((high + 0.5) * UNIT).min(1.0).ln()).sqrt();
    let (sin, cos) = (std::f32::consts::TAU * UNIT * low).sin_cos();
    [radius * cos, radius * sin]
}
