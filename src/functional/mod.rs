//! Arithmetic of image tensors `[N, C, H, W]` in [0, 1]: what losses, metrics and degradations share.

use tch::Tensor;

pub mod bicubic;
pub mod color;
pub mod filter;
pub mod loss;
pub mod ssim;

pub use color::luma;
pub use ssim::ssim;

/// `values` as a tensor of `shape` where `images` are, in their kind.
pub(crate) fn like(images: &Tensor, values: &[f64], shape: &[i64]) -> Tensor {
    Tensor::from_slice(values).view(shape).to_kind(images.kind()).to_device(images.device())
}
