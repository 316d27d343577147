//! A linear layer on a small batch on the CPU, fused with the ReLU after it.

use std::ptr::{null, null_mut};

use anyhow::Result;
use tch::Tensor;
use torch_sys::C_tensor;

use super::super::take_tensor;
use super::{Kernel, is_enabled};

shim! {
    fn tikhonov_linear(
        xs: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        relu: bool,
        out: *mut *mut C_tensor,
    );
}

/// `xs·weightᵀ + bias` of a small batch `[N, F]`, followed by a ReLU where `relu`, as one operation with a
/// gradient. None, and nothing done, unless all are contiguous float32 on the CPU and fit each other, outside
/// autocast: then libtorch's own operations are to be used.
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, relu: bool) -> Result<Option<Tensor>> {
    if !is_enabled(Kernel::Linear) {
        return Ok(None);
    }
    let bias = bias.map_or(null(), |bias| bias.as_ptr());
    let mut out = null_mut();
    // SAFETY: all pointers are to live tensors, or null where null is allowed; `out` outlives the call.
    let message = unsafe { tikhonov_linear(xs.as_ptr(), weight.as_ptr(), bias, relu, &mut out) };
    take_tensor(message, out)
}
