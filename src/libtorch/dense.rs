//! A linear map of a small batch on the CPU, fused with the ReLU after it.

use std::ffi::c_char;
use std::ptr::{null, null_mut};

use anyhow::Result;
use tch::Tensor;
use torch_sys::C_tensor;

use super::take_tensor;

unsafe extern "C" {
    fn tikhonov_dense(
        xs: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        relu: bool,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// `relu(xs·weightᵀ + bias)` of a small batch `[N, F]`, the ReLU as asked for, as one operation with a
/// gradient. None, and nothing done, unless all are contiguous float32 on the CPU and fit each other, outside
/// autocast: then libtorch's own operations are to be used.
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, relu: bool) -> Result<Option<Tensor>> {
    let bias = bias.map_or(null(), |bias| bias.as_ptr());
    let mut out = null_mut();
    // SAFETY: all pointers are to live tensors, or null where null is allowed; `out` outlives the call.
    let message = unsafe { tikhonov_dense(xs.as_ptr(), weight.as_ptr(), bias, relu, &mut out) };
    take_tensor(message, out)
}
