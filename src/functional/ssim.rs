//! Structural similarity (Wang et al. 2004), as scikit-image computes it with
//! `gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1`.

use tch::{Kind, Tensor};

use super::filter::{correlate, gaussian};

/// Sides of the window; smaller images have no SSIM.
pub const WINDOW: i64 = 11;
const SIGMA: f64 = 1.5;

/// Mean SSIM of each image `[N, C, H, W]`, over its channels and over the places where the whole window fits;
/// `[N]` in the images' kind. Differentiable.
pub fn ssim(images: &Tensor, reference: &Tensor) -> Tensor {
    const C1: f64 = 0.01 * 0.01;
    const C2: f64 = 0.03 * 0.03;
    let moments = [
        images.shallow_clone(),
        reference.shallow_clone(),
        images.square(),
        reference.square(),
        images * reference,
    ];
    let window = gaussian(SIGMA, WINDOW as usize);
    let moments =
        correlate(&correlate(&Tensor::cat(&moments, 1), &window, [WINDOW, 1]), &window, [1, WINDOW]);
    let moments = moments.chunk(5, 1);
    let [x, y, xx, yy, xy] = moments.as_slice() else {
        return Tensor::zeros([], (Kind::Float, images.device()));
    };
    let (mean, means) = (x * y, x.square() + y.square());
    let (covariance, variances) = (xy - &mean, xx + yy - &means);
    let map = (mean * 2.0 + C1) * (covariance * 2.0 + C2) / ((means + C1) * (variances + C2));
    map.flatten(1, -1).mean_dim(&[1i64][..], false, images.kind())
}
