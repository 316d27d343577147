//! The 2-norm of a list of tensors on the CPU, for clipping and the log.

use std::ptr::null_mut;

use anyhow::Result;
use tch::Tensor;
use torch_sys::C_tensor;

use super::super::lists::{Borrowed, kernel};
use super::super::take_tensor;
use super::{Kernel, is_enabled};

shim! {
    fn tikhonov_two_norm(tensors: Borrowed, norm: *mut *mut C_tensor);
}

/// The 2-norm of all tensors together, 0-dim float32, the same bits for any number of threads. None, and
/// nothing done, unless all are float32 on the CPU without gaps: then libtorch's own operation is to be used.
pub fn two_norm(tensors: &[&Tensor]) -> Result<Option<Tensor>> {
    if !is_enabled(Kernel::Norms) {
        return Ok(None);
    }
    let mut norm = null_mut();
    kernel!([tensors], |[tensors]| tikhonov_two_norm(tensors, &mut norm))?;
    take_tensor(null_mut(), norm)
}
