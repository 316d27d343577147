//! Arithmetic of image tensors `[N, C, H, W]` in [0, 1]: what losses, metrics and degradations share.

use tch::{Device, Kind, Tensor};

use crate::libtorch::constant::constant;

pub mod bicubic;
pub mod color;
pub mod filter;
pub mod loss;
pub mod ssim;

pub use color::luma;
pub use ssim::ssim;

/// `values` as a tensor of `shape` where `images` are, in their kind; not to be written to.
pub(crate) fn like(images: &Tensor, values: &[f64], shape: &[i64]) -> Tensor {
    constant(values, shape, (images.kind(), images.device()))
}

/// How often each of 0..`count` is among the whole numbers `cells` `[N]`, int64 `[count]`. Nothing waits for the device,
/// as `bincount` does on a GPU to learn the largest.
pub(crate) fn bincount(cells: &Tensor, count: i64) -> Tensor {
    if cells.device() == Device::Cpu {
        return cells.bincount::<Tensor>(None, count);
    }
    let zeros = Tensor::zeros([count], (Kind::Int64, cells.device()));
    zeros.scatter_add(0, cells, &cells.ones_like())
}
