//! Scaling of pictures with antialiasing, to Pillow's bits: its fixed-point arithmetic, rounded to 8 bits after
//! each of the two passes. Kernels, widened where a picture shrinks, are the triangle and Keys' with a = −0.5 (Keys
//! 1981).

use super::eval_transform::Interpolation;
use super::picture::Picture;

/// Binary digits of a coefficient after the point.
const PRECISION: u32 = 32 - 8 - 2;

/// Of each output the first input and the coefficients from there on.
fn coefficients(from: usize, to: usize, by: Interpolation) -> Vec<(usize, Vec<i32>)> {
    let scale = from as f64 / to as f64;
    let wide = scale.max(1.0);
    let reach = if by == Interpolation::Bilinear { 1.0 } else { 2.0 };
    let support = reach * wide;
    let of = |at: usize| {
        let centre = (at as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let kernel: Vec<f64> =
            (first..end).map(|x| kernel((x as f64 - centre + 0.5) * (1.0 / wide), by)).collect();
        let sum: f64 = kernel.iter().sum();
        let fixed = |k: &f64| (k / sum * f64::from(1 << PRECISION)).round() as i32;
        (first, kernel.iter().map(fixed).collect())
    };
    (0..to).map(of).collect()
}

fn kernel(x: f64, by: Interpolation) -> f64 {
    const A: f64 = -0.5;
    match x.abs() {
        x if by == Interpolation::Bilinear => (1.0 - x).max(0.0),
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

/// The sum of `values`, each times its coefficient, as a level.
fn level(values: impl Iterator<Item = u8>, coefficients: &[i32]) -> u8 {
    let sum = values.zip(coefficients).map(|(value, k)| i32::from(value) * k).sum::<i32>();
    ((sum + (1 << (PRECISION - 1))) >> PRECISION).clamp(0, 255) as u8
}

/// The whole picture at `height × width`.
pub(super) fn resize(picture: &Picture, height: usize, width: usize, by: Interpolation) -> Picture {
    let channels = picture.channels;
    let mut wide = picture.clone();
    if width != picture.width {
        let all = coefficients(picture.width, width, by);
        let row = |row: &[u8]| -> Vec<u8> {
            let pixel = |(first, k): &(usize, Vec<i32>)| {
                let part = &row[first * channels..];
                (0..channels)
                    .map(|c| level(part[c..].iter().step_by(channels).copied(), k))
                    .collect::<Vec<_>>()
            };
            all.iter().flat_map(pixel).collect()
        };
        wide.data = picture.data.chunks_exact(picture.width * channels).flat_map(row).collect();
        wide.width = width;
    }
    if height != picture.height {
        let line = width * channels;
        let all = coefficients(picture.height, height, by);
        let row = |(first, k): &(usize, Vec<i32>)| {
            let part = &wide.data[first * line..];
            (0..line).map(|at| level(part[at..].iter().step_by(line).copied(), k)).collect::<Vec<_>>()
        };
        wide.data = all.iter().flat_map(row).collect();
        wide.height = height;
    }
    wide
}
