//! Losses of small batches on the CPU, each one operation with its gradient.

use std::ptr::null_mut;

use anyhow::Result;
use tch::Tensor;
use torch_sys::C_tensor;

use super::super::take_tensor;
use super::{Kernel, is_enabled};

shim! {
    fn tikhonov_cross_entropy(
        logits: *const C_tensor,
        ys: *const C_tensor,
        smoothing: f64,
        out: *mut *mut C_tensor,
    );
    fn tikhonov_squared_error(
        outputs: *const C_tensor,
        ys: *const C_tensor,
        factor: f64,
        out: *mut *mut C_tensor,
    );
}

/// The mean cross-entropy of float32 logits `[N, K]` with classes int64 `[N]`, of which -100 do not count;
/// 0-dim, without a second derivative. None, and nothing done, where the batch is not small, not contiguous
/// or not on the CPU, or a class is out of range: then libtorch's own operation is to be used.
pub fn cross_entropy(logits: &Tensor, ys: &Tensor, label_smoothing: f64) -> Result<Option<Tensor>> {
    if !is_enabled(Kernel::Loss) {
        return Ok(None);
    }
    let mut out = null_mut();
    // SAFETY: both are live tensors; `out` outlives the call.
    let message = unsafe { tikhonov_cross_entropy(logits.as_ptr(), ys.as_ptr(), label_smoothing, &mut out) };
    take_tensor(message, out)
}

/// `factor` × the mean of (outputs − ys)², of equal shapes; 0-dim, without a second derivative. None as
/// above.
pub fn squared_error(outputs: &Tensor, ys: &Tensor, factor: f64) -> Result<Option<Tensor>> {
    if !is_enabled(Kernel::Loss) {
        return Ok(None);
    }
    let mut out = null_mut();
    // SAFETY: both are live tensors; `out` outlives the call.
    let message = unsafe { tikhonov_squared_error(outputs.as_ptr(), ys.as_ptr(), factor, &mut out) };
    take_tensor(message, out)
}
