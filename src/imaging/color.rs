//! Colour: the Y of YCbCr, on which super-resolution is measured.

use tch::Tensor;

use super::like;

/// Y of RGB images `[N, 3, H, W]` as MATLAB's `rgb2ycbcr` has it (ITU-R BT.601, 16/255 to 235/255), unrounded;
/// `[N, 1, H, W]`. Images of other channels are their own.
pub fn luma(images: &Tensor) -> Tensor {
    if images.size().get(1) != Some(&3) {
        return images.shallow_clone();
    }
    let weights = like(images, &[65.481 / 255.0, 128.553 / 255.0, 24.966 / 255.0], &[1, 3, 1, 1]);
    (images * weights).sum_dim_intlist(&[1i64][..], true, images.kind()) + 16.0 / 255.0
}
