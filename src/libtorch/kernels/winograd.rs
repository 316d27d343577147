//! 3x3 convolutions by Winograd's minimal filtering on the CPU (Lavin & Gray 2016), which oneDNN does not
//! have there.

use std::ptr::{null, null_mut};

use anyhow::Result;
use tch::Tensor;
use torch_sys::C_tensor;

use super::super::take_tensor;
use super::{Kernel, is_enabled};

shim! {
    fn tikhonov_winograd(
        xs: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        padding: i64,
        out: *mut *mut C_tensor,
    );
}

/// The convolution of images `[N, C, H, W]` by `weight` `[O, C, 3, 3]`, of stride 1 with `padding` zeros
/// around, plus `bias` `[O]`, with a gradient (and no second one). About twice the rounding error of a direct
/// convolution, a third of its time. None, and nothing done, where it would not pay or `xs` is not
/// channels-last float32 on the CPU: then libtorch's own is to be used.
pub fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, padding: i64) -> Result<Option<Tensor>> {
    if !is_enabled(Kernel::Winograd) {
        return Ok(None);
    }
    let bias = bias.map_or(null(), |bias| bias.as_ptr());
    let mut out = null_mut();
    // SAFETY: all pointers are to live tensors, or null for no bias; `out` outlives the call.
    let message = unsafe { tikhonov_winograd(xs.as_ptr(), weight.as_ptr(), bias, padding, &mut out) };
    take_tensor(message, out)
}
