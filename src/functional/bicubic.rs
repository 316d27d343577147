//! Bicubic resizing as MATLAB's `imresize` does it, which the field's super-resolution numbers are measured
//! with.
//!
//! Keys' kernel with a = −0.5 (Keys 1981); when shrinking it is widened by the factor, which antialiases;
//! edges are mirrored with the edge pixel repeated. The weights of a side are one matrix, so that a batch is
//! two products.

use tch::Tensor;

use crate::libtorch::constant::constant_of;

/// Floating-point images `[N, C, H, W]` brought to `height` × `width`, not clamped: bicubic overshoots.
pub fn resize(images: &Tensor, height: i64, width: i64) -> Tensor {
    let size = images.size();
    let &[_, _, from_height, from_width] = size.as_slice() else { return images.shallow_clone() };
    let weights = |from: i64, to: i64| {
        let made = || matrix(from as usize, to as usize);
        constant_of("bicubic", &[from as f64, to as f64], &[to, from], (images.kind(), images.device()), made)
    };
    weights(from_height, height).matmul(images).matmul(&weights(from_width, width).tr())
}

/// The weights of `from` pixels in each of `to`, row by row; every row's sum is 1.
pub fn matrix(from: usize, to: usize) -> Vec<f64> {
    let scale = to as f64 / from as f64;
    // Antialiasing: the kernel covers as many input pixels as one output pixel does.
    let stretch = scale.min(1.0);
    let width = 4.0 / stretch;
    let taps = width.ceil() as isize + 2;
    let mut matrix = vec![0.0; from * to];
    for (index, row) in matrix.chunks_mut(from.max(1)).enumerate() {
        let centre = (index as f64 + 0.5) / scale - 0.5;
        let first = (centre - width / 2.0).floor() as isize;
        let mut sum = 0.0;
        for tap in first..first + taps {
            let weight = stretch * keys(stretch * (centre - tap as f64));
            row[mirrored(tap, from)] += weight;
            sum += weight;
        }
        row.iter_mut().for_each(|weight| *weight /= sum);
    }
    matrix
}

/// Keys' cubic convolution kernel, a = −0.5.
fn keys(x: f64) -> f64 {
    let x = x.abs();
    match x {
        _ if x <= 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        _ if x <= 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
        _ => 0.0,
    }
}

/// The index inside 0..n that a mirrored border shows at `index`.
fn mirrored(index: isize, n: usize) -> usize {
    let turn = index.rem_euclid(2 * n as isize) as usize;
    if turn < n { turn } else { 2 * n - 1 - turn }
}

/// How many times larger `to` is than `from`, `[N, C, H, W]` both: the same whole number for both sides, if
/// it is one.
pub fn factor(from: &[i64], to: &[i64]) -> Option<i64> {
    let (&[.., from_height, from_width], &[.., to_height, to_width]) = (from, to) else { return None };
    let factor = to_height.checked_div(from_height)?;
    (factor >= 1 && from_height * factor == to_height && from_width * factor == to_width).then_some(factor)
}

/// `images` without the rows and columns at the bottom and at the right that `multiple` does not divide:
/// `modcrop`.
pub fn crop_to_multiple(images: &Tensor, multiple: i64) -> Tensor {
    let size = images.size();
    let &[_, _, height, width] = size.as_slice() else { return images.shallow_clone() };
    if height % multiple == 0 && width % multiple == 0 {
        return images.shallow_clone();
    }
    images.narrow(2, 0, height - height % multiple).narrow(3, 0, width - width % multiple)
}
