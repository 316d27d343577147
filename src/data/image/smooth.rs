//! Smoothing of images before training: Gaussian, box or median. Borders are mirrored (d c b a | a b c d | d
//! c b a), as `scipy.ndimage` does by default.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::picture::Picture;
use crate::libtorch::device::cores;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::threads;
use crate::util::yaml::Invalid;

/// A filter that every image of every set passes through once, at its final size, before any augmentation of
/// resident sets. Files decoded on demand are smoothed after the random resized crop.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SmoothSpec {
    Gaussian(Gaussian),
    Box(Window),
    Median(Window),
}

/// A Gaussian of standard deviation `sigma` pixels, cut at 4 sigma.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gaussian {
    /// Standard deviation in pixels.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub sigma: f64,
}

/// A window of `size × size` pixels, `size` odd.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Side of the window in pixels; odd.
    #[schemars(range(min = 1))]
    pub size: usize,
}

impl SmoothSpec {
    pub fn validate(&self) -> Result<(), Invalid> {
        let window = |key: &str, window: &Window| {
            if window.size % 2 == 1 && window.size < 100 {
                return Ok(());
            }
            Err(Invalid::new(
                format!("{key}.size"),
                format!("must be an odd number below 100, not {}", window.size),
            ))
        };
        match self {
            Self::Gaussian(Gaussian { sigma }) if *sigma > 0.0 && *sigma <= 100.0 => Ok(()),
            Self::Gaussian(Gaussian { sigma }) => Err(Invalid::new(
                "gaussian.sigma",
                format!("must lie above 0 and at most at 100 pixels, not {sigma}"),
            )),
            Self::Box(size) => window("box", size),
            Self::Median(size) => window("median", size),
        }
    }

    /// uint8 or float images `[N, C, H, W]`, filtered; uint8 are rounded to nearest.
    pub(crate) fn tensor(&self, images: &Tensor) -> Result<Tensor> {
        let size = images.size();
        let (&[_, _, height, width], kind) = (size.as_slice(), images.kind()) else {
            return Err(fail(ExitCode::Data, format!("images [N, C, H, W] can be smoothed, not {size:?}")));
        };
        let (height, width) = (height as usize, width as usize);
        let mut pixels = vec![0f32; images.numel()];
        images.f_to_kind(Kind::Float)?.f_contiguous()?.f_copy_data(&mut pixels, images.numel())?;
        let plane = height * width;
        let share = (pixels.len() / plane).div_ceil(cores()).max(1) * plane;
        threads::each(cores(), pixels.chunks_mut(share).collect(), |part| {
            for pixels in part.chunks_mut(plane) {
                self.plane(pixels, height, width);
            }
        });
        let smooth = Tensor::f_from_slice(&pixels)?.f_view(size.as_slice())?;
        Ok(if kind == Kind::Uint8 { smooth.f_round()?.f_to_kind(kind)? } else { smooth.f_to_kind(kind)? })
    }

    /// A picture, filtered channel by channel and rounded to nearest.
    pub(crate) fn picture(&self, picture: &mut Picture) {
        let mut plane = vec![0.0; picture.height * picture.width];
        for channel in 0..picture.channels {
            let values = picture.data.iter().skip(channel).step_by(picture.channels);
            plane.iter_mut().zip(values).for_each(|(pixel, &value)| *pixel = f32::from(value));
            self.plane(&mut plane, picture.height, picture.width);
            let values = picture.data.iter_mut().skip(channel).step_by(picture.channels);
            values.zip(&plane).for_each(|(value, pixel)| *value = pixel.round_ties_even() as u8);
        }
    }

    fn plane(&self, pixels: &mut [f32], height: usize, width: usize) {
        match self {
            Self::Gaussian(Gaussian { sigma }) => separable(pixels, height, width, &gaussian(*sigma)),
            Self::Box(Window { size }) => separable(pixels, height, width, &vec![1.0 / *size as f32; *size]),
            Self::Median(Window { size }) => median(pixels, height, width, *size),
        }
    }
}

/// The weights of a Gaussian, their sum 1.
fn gaussian(sigma: f64) -> Vec<f32> {
    let radius = (4.0 * sigma + 0.5) as i64;
    let weights: Vec<f64> = (-radius..=radius).map(|x| (-0.5 * (x as f64 / sigma).powi(2)).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| (weight / sum) as f32).collect()
}

/// The index inside 0..n that a mirrored border shows at `index`.
fn mirrored(index: isize, n: usize) -> usize {
    let turn = index.rem_euclid(2 * n as isize) as usize;
    if turn < n { turn } else { 2 * n - 1 - turn }
}

/// Filters columns, then rows, with the same weights.
fn separable(pixels: &mut [f32], height: usize, width: usize, weights: &[f32]) {
    let radius = (weights.len() / 2) as isize;
    let mut columns = vec![0.0; pixels.len()];
    for (y, row) in columns.chunks_mut(width).enumerate() {
        for (offset, weight) in (-radius..).zip(weights) {
            let from = mirrored(y as isize + offset, height) * width;
            row.iter_mut().zip(&pixels[from..from + width]).for_each(|(sum, pixel)| *sum += weight * pixel);
        }
    }
    let mut padded = vec![0.0; width + weights.len() - 1];
    for (row, column) in pixels.chunks_mut(width).zip(columns.chunks(width)) {
        for (x, value) in (-radius..).zip(&mut padded) {
            *value = column[mirrored(x, width)];
        }
        for (pixel, window) in row.iter_mut().zip(padded.windows(weights.len())) {
            *pixel = window.iter().zip(weights).map(|(value, weight)| value * weight).sum();
        }
    }
}

fn median(pixels: &mut [f32], height: usize, width: usize, size: usize) {
    let source = pixels.to_vec();
    let radius = (size / 2) as isize;
    let mut window = Vec::with_capacity(size * size);
    for y in 0..height {
        for x in 0..width {
            window.clear();
            for dy in -radius..=radius {
                let row = mirrored(y as isize + dy, height) * width;
                window.extend((-radius..=radius).map(|dx| source[row + mirrored(x as isize + dx, width)]));
            }
            let middle = window.len() / 2;
            pixels[y * width + x] = *window.select_nth_unstable_by(middle, f32::total_cmp).1;
        }
    }
}
