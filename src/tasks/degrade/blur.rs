//! Blur by a Gaussian or by motion, with MATLAB's kernels (`fspecial`); borders are mirrored about the edge
//! pixel.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::Degradation;
use crate::functional::filter;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml::Invalid;

/// Convolution with a kernel.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Blur {
    /// A Gaussian kernel.
    Gaussian {
        /// Standard deviation in pixels.
        #[schemars(extend("exclusiveMinimum" = 0))]
        sigma: f64,
        /// Side of the kernel in pixels, odd; 2⌈3σ⌉ + 1 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<i64>,
    },
    /// Motion of the camera along a straight line, MATLAB's `fspecial('motion')`.
    Motion {
        /// Length of the motion in pixels, at least 1.
        length: f64,
        /// Direction in degrees, counter-clockwise from the right.
        #[serde(default)]
        angle: f64,
    },
}

/// Taps beyond this are a mistake.
const MAX_SIZE: i64 = 201;

impl Blur {
    /// Filters to be applied one after the other: weights, height and width (odd) each.
    fn kernels(&self) -> Vec<(Vec<f64>, [i64; 2])> {
        match *self {
            Self::Gaussian { sigma, size } => {
                let size = size.unwrap_or(2 * (3.0 * sigma).ceil() as i64 + 1);
                let taps = filter::gaussian(sigma, size as usize);
                vec![(taps.clone(), [size, 1]), (taps, [1, size])]
            }
            Self::Motion { length, angle } => vec![motion(length, angle)],
        }
    }
}

/// `fspecial('motion', length, angle)`: each pixel weighs what a line one pixel wide covers of it, roughly.
fn motion(length: f64, angle: f64) -> (Vec<f64>, [i64; 2]) {
    let half = (length.max(1.0) - 1.0) / 2.0;
    let (sin, cos) = angle.rem_euclid(180.0).to_radians().sin_cos();
    // As MATLAB does, so that an extent which is whole but for rounding stays whole.
    let slack = length * f64::EPSILON;
    let [reach_x, reach_y] = [half * cos.abs() + 1.0, half * sin + 1.0].map(|extent| (extent - slack) as i64);
    let weight = |x: f64, y: f64| {
        let from_line = y * cos - x * sin;
        let beyond = if x.hypot(y) >= half && from_line.abs() <= 1.0 && cos != 0.0 {
            half - ((x + from_line * sin) / cos).abs()
        } else {
            0.0
        };
        (1.0 + f64::EPSILON - from_line.hypot(beyond)).max(0.0)
    };
    let [height, width] = [2 * reach_y + 1, 2 * reach_x + 1];
    let mut kernel = Vec::with_capacity((height * width) as usize);
    for row in (-reach_y..=reach_y).rev() {
        // Rows go down, angles up; the two halves of the line are one mirrored.
        kernel.extend((-reach_x..=reach_x).map(|column| weight(column as f64, row as f64)));
    }
    let sum: f64 = kernel.iter().sum();
    kernel.iter_mut().for_each(|weight| *weight /= sum);
    (kernel, [height, width])
}

impl Degradation for Blur {
    fn validate(&self) -> Result<(), Invalid> {
        let refuse = |key: &str, message: String| Err(Invalid::new(key, message));
        match *self {
            Self::Gaussian { sigma, .. } if !(sigma > 0.0 && sigma <= 30.0) => {
                refuse("gaussian.sigma", format!("{sigma} is not in 0..=30, or 0"))
            }
            Self::Gaussian { size: Some(size), .. } if size % 2 == 0 || !(1..=MAX_SIZE).contains(&size) => {
                refuse("gaussian.size", format!("{size} is not an odd number from 1 to {MAX_SIZE}"))
            }
            Self::Motion { length, .. } if !(1.0..=150.0).contains(&length) => {
                refuse("motion.length", format!("{length} is not in 1..=150"))
            }
            Self::Motion { angle, .. } if !angle.is_finite() => {
                refuse("motion.angle", format!("{angle} is not a number of degrees"))
            }
            _ => Ok(()),
        }
    }

    fn check(&self, [_, height, width]: [i64; 3]) -> Result<()> {
        for (_, kernel) in self.kernels() {
            if kernel[0] / 2 >= height || kernel[1] / 2 >= width {
                let message = format!(
                    "a blur over {}x{} pixels is too wide for {height}x{width} images; blur less, or use larger ones",
                    kernel[0], kernel[1]
                );
                return Err(fail(ExitCode::Usage, message));
            }
        }
        Ok(())
    }

    fn apply(&self, images: &Tensor, _train: bool) -> Result<Tensor> {
        Ok(self.kernels().iter().fold(images.shallow_clone(), |images, (kernel, size)| {
            let [top, left] = [size[0] / 2, size[1] / 2];
            filter::correlate(&images.reflection_pad2d([left, left, top, top]), kernel, *size)
        }))
    }
}
