//! Batch normalisation in training on the CPU, fused with the addition and the ReLU after it.

use std::ptr::{null, null_mut};

use anyhow::Result;
use tch::Tensor;
use torch_sys::C_tensor;

use super::super::take_tensor;
use super::{Kernel, is_enabled};

shim! {
    fn tikhonov_batch_norm(
        xs: *const C_tensor,
        addend: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        running_mean: *const C_tensor,
        running_var: *const C_tensor,
        momentum: f64,
        eps: f64,
        relu: bool,
        out: *mut *mut C_tensor,
    );
}

/// Parameters and running statistics of a batch norm, `[C]` each.
pub struct Channels<'a> {
    pub weight: Option<&'a Tensor>,
    pub bias: Option<&'a Tensor>,
    /// Updated as `torch.nn.BatchNorm2d` does in training.
    pub running_mean: &'a Tensor,
    pub running_var: &'a Tensor,
    pub momentum: f64,
    pub eps: f64,
}

/// `relu(batch_norm(xs) + addend)` of a batch `[N, C, H, W]` in training, the ReLU and the addend where given,
/// as one operation with a gradient (and no second one). None, and nothing done, unless `xs` and `addend` are
/// channels-last float32 or bfloat16 on the CPU and the channels' tensors float32: then libtorch's own
/// operations are to be used.
pub fn batch_norm(
    xs: &Tensor,
    addend: Option<&Tensor>,
    channels: &Channels,
    relu: bool,
) -> Result<Option<Tensor>> {
    if !is_enabled(Kernel::BatchNorm) {
        return Ok(None);
    }
    let pointer = |tensor: Option<&Tensor>| tensor.map_or(null(), |tensor| tensor.as_ptr());
    let Channels { weight, bias, running_mean, running_var, momentum, eps } = *channels;
    let mut out = null_mut();
    // SAFETY: all pointers are to live tensors or null where null is allowed; `out` outlives the call.
    let message = unsafe {
        tikhonov_batch_norm(
            xs.as_ptr(),
            pointer(addend),
            pointer(weight),
            pointer(bias),
            running_mean.as_ptr(),
            running_var.as_ptr(),
            momentum,
            eps,
            relu,
            &mut out,
        )
    };
    take_tensor(message, out)
}
