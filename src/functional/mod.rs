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

/// Images `[N, C, H, W]`, or weights of convolutions, with the channels innermost in memory: PyTorch's memory format
/// `channels_last`. Other tensors are as they are.
pub(crate) fn channels_last(xs: &Tensor) -> Tensor {
    if xs.dim() == 4 {
        xs.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
    } else {
        xs.shallow_clone()
    }
}

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
