//! Colour: YCbCr, on whose Y super-resolution works and is measured.

use tch::Tensor;

use super::like;

/// Y of RGB images `[N, 3, H, W]` as MATLAB's `rgb2ycbcr` has it (ITU-R BT.601, 16/255 to 235/255),
/// unrounded; `[N, 1, H, W]`. Images of other channels are their own.
pub fn luma(images: &Tensor) -> Tensor {
    if images.size().get(1) != Some(&3) {
        return images.shallow_clone();
    }
    let weights = like(images, &[65.481 / 255.0, 128.553 / 255.0, 24.966 / 255.0], &[1, 3, 1, 1]);
    (images * weights).sum_dim_intlist(&[1i64][..], true, images.kind()) + 16.0 / 255.0
}

/// YCbCr of RGB images `[N, 3, H, W]`, as MATLAB's `rgb2ycbcr`, unrounded.
pub fn ycbcr(images: &Tensor) -> Tensor {
    let row = |weights: [f64; 3], offset: f64| {
        let weights = like(images, &weights.map(|weight| weight / 255.0), &[1, 3, 1, 1]);
        (images * weights).sum_dim_intlist(&[1i64][..], true, images.kind()) + offset / 255.0
    };
    let blue = row([-37.797, -74.203, 112.0], 128.0);
    let red = row([112.0, -93.786, -18.214], 128.0);
    Tensor::cat(&[luma(images), blue, red], 1)
}

/// RGB of YCbCr images `[N, 3, H, W]`: the inverse of [`ycbcr`].
pub fn rgb(images: &Tensor) -> Tensor {
    let offsets = like(images, &[16.0 / 255.0, 128.0 / 255.0, 128.0 / 255.0], &[1, 3, 1, 1]);
    let images = images - offsets;
    // The inverse matrix of the rows above, times 255.
    let row = |weights: [f64; 3]| {
        let weights = like(&images, &weights.map(|weight| weight * 255.0), &[1, 3, 1, 1]);
        (&images * weights).sum_dim_intlist(&[1i64][..], true, images.kind())
    };
    let red = row([0.00456621, 0.0, 0.00625893]);
    let green = row([0.00456621, -0.00153632, -0.00318811]);
    let blue = row([0.00456621, 0.00791071, 0.0]);
    Tensor::cat(&[red, green, blue], 1)
}
