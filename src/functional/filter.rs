//! Small linear filters of images.

use tch::Tensor;

use super::like;

/// Weights of a Gaussian of `size` taps around its centre, their sum 1.
pub fn gaussian(sigma: f64, size: usize) -> Vec<f64> {
    let centre = (size as f64 - 1.0) / 2.0;
    let weights: Vec<f64> =
        (0..size).map(|tap| (-0.5 * ((tap as f64 - centre) / sigma).powi(2)).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// Each channel of `[N, C, H, W]` correlated with one kernel `height × width`, without borders: the
/// sides shrink by the kernel's less 1.
pub fn correlate(images: &Tensor, kernel: &[f64], [height, width]: [i64; 2]) -> Tensor {
    let channels = images.size().get(1).copied().unwrap_or(1);
    let kernel = like(images, kernel, &[1, 1, height, width]).expand([channels, 1, height, width], false);
    images.conv2d::<Tensor>(&kernel, None, 1, 0, 1, channels)
}
