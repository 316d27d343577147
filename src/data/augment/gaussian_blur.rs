//! Blur of random strength: torchvision's `GaussianBlur`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{Range, chance, is_one, one, probability};
use super::{Augmentation, ChangesLevels, Levels, image_sides};
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Convolves with a Gaussian whose standard deviation is drawn for each image.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GaussianBlur {
    /// Pixels of the kernel across and down, odd: a number, or `[across, down]`.
    pub kernel_size: KernelSize,
    /// The standard deviation in pixels, or the range `[low, high]` of it.
    #[serde(default = "default_sigma")]
    pub sigma: Sigma,
    /// Probability.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
}

/// One odd number, or two.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[serde(untagged, expecting = "expected an odd number or a pair [across, down]")]
pub enum KernelSize {
    Square(usize),
    Sides([usize; 2]),
}

/// A number, or a range.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
#[serde(untagged, expecting = "expected a number or a pair [low, high]")]
pub enum Sigma {
    Fixed(f64),
    Between([f64; 2]),
}

fn default_sigma() -> Sigma {
    Sigma::Between([0.1, 2.0])
}

impl Sigma {
    fn range(self) -> Range {
        match self {
            Sigma::Fixed(sigma) => Range::Between([sigma, sigma]),
            Sigma::Between(bounds) => Range::Between(bounds),
        }
    }
}

impl GaussianBlur {
    /// Across and down.
    fn sides(&self) -> [usize; 2] {
        match self.kernel_size {
            KernelSize::Square(side) => [side, side],
            KernelSize::Sides(sides) => sides,
        }
    }
}

impl Augmentation for GaussianBlur {
    fn validate(&self) -> Result<(), Invalid> {
        if self.sides().iter().any(|side| side % 2 == 0) {
            return Err(Invalid::new("kernel_size", "a kernel has a middle: give odd numbers"));
        }
        self.sigma.range().validate("sigma", 0.0, [f64::MIN_POSITIVE, f64::MAX])?;
        probability("p", self.p)
    }

    fn output_shape(&self, input: &[i64]) -> Result<Vec<i64>, String> {
        let [height, width] = image_sides(input)?;
        let [across, down] = self.sides();
        if across / 2 >= width || down / 2 >= height {
            return Err(format!("a kernel of {across}x{down} is too wide for them; lower `kernel_size`"));
        }
        Ok(input.to_vec())
    }

    fn num_params(&self) -> usize {
        2
    }

    /// Whether it happens, and the standard deviation.
    fn sample(&self, _: [usize; 2], rng: &mut CounterRng, params: &mut Vec<f64>) {
        params.push(chance(self.p, rng));
        params.push(self.sigma.range().sample(0.0, rng));
    }
}

impl ChangesLevels for GaussianBlur {
    fn apply(&self, levels: &mut Levels, params: &[f64]) {
        if params[0] < 0.5 {
            return;
        }
        let [across, down] = self.sides().map(|side| kernel(side, params[1]));
        let (height, width) = (levels.height, levels.width);
        for plane in levels.planes() {
            let mut lines = vec![0f32; plane.len()];
            let mut padded = Vec::with_capacity(width + across.len());
            for (line, out) in plane.chunks_exact(width).zip(lines.chunks_exact_mut(width)) {
                let half = across.len() / 2;
                padded.clear();
                padded.extend((0..width + 2 * half).map(|at| f32::from(line[mirrored(at, half, width)])));
                for (tap, &weight) in across.iter().enumerate() {
                    for (out, &level) in out.iter_mut().zip(&padded[tap..]) {
                        *out += weight * level;
                    }
                }
            }
            let half = down.len() / 2;
            let mut sums = vec![0f32; width];
            for (y, out) in plane.chunks_exact_mut(width).enumerate() {
                sums.fill(0.0);
                for (tap, &weight) in down.iter().enumerate() {
                    let line = &lines[mirrored(y + tap, half, height) * width..][..width];
                    for (sum, &value) in sums.iter_mut().zip(line) {
                        *sum += weight * value;
                    }
                }
                for (out, sum) in out.iter_mut().zip(&sums) {
                    *out = sum.round_ties_even() as u8;
                }
            }
        }
    }
}

/// Which of `len` pixels position `at` of a line shows that is mirrored by `half` on both sides.
fn mirrored(at: usize, half: usize, len: usize) -> usize {
    let at = at as isize - half as isize;
    let last = len as isize - 1;
    (if at > last { 2 * last - at } else { at.abs() }) as usize
}

/// torchvision's weights, whose lines are softmax(-(x/σ)²) of x from -(size - 1)/√8 to (size - 1)/√8.
fn kernel(size: usize, sigma: f64) -> Vec<f32> {
    let end = (size as f64 - 1.0) / 8f64.sqrt();
    let step = if size > 1 { 2.0 * end / (size as f64 - 1.0) } else { 0.0 };
    let weights: Vec<f64> = (0..size).map(|n| (-((n as f64 * step - end) / sigma).powi(2)).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| (weight / total) as f32).collect()
}
