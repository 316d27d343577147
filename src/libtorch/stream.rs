//! Work that goes on while the host does: a number of the device, read when it is needed.

use std::ffi::c_char;
use std::ptr::null_mut;

use anyhow::{Result, anyhow};
use tch::Tensor;
use torch_sys::C_tensor;

use super::check;

#[repr(C)]
struct RawReading {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn tikhonov_read_later(number: *const C_tensor, reading: *mut *mut RawReading) -> *mut c_char;
    fn tikhonov_read_now(reading: *const RawReading, number: *mut f64) -> *mut c_char;
    fn tikhonov_read_free(reading: *mut RawReading);
}

/// A tensor of one number on its way to the host. What is asked of the device afterwards is not waited for.
pub struct Reading(*mut RawReading);

impl Reading {
    /// Starts to copy `number`, 0-dim, as it is at this point of the device's work.
    pub fn start(number: &Tensor) -> Result<Self> {
        let mut reading = null_mut();
        // SAFETY: the tensor is alive, `reading` outlives the call.
        check(unsafe { tikhonov_read_later(number.as_ptr(), &mut reading) })
            .map_err(|message| anyhow!("reading a number of the device: {message}"))?;
        Ok(Self(reading))
    }

    /// Waits for the number.
    pub fn value(&self) -> Result<f64> {
        let mut number = 0.0;
        // SAFETY: the shim made the reading, and nobody frees it before `drop`.
        check(unsafe { tikhonov_read_now(self.0, &mut number) })
            .map_err(|message| anyhow!("reading a number of the device: {message}"))?;
        Ok(number)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        // SAFETY: made by the shim with `new`, freed once.
        unsafe { tikhonov_read_free(self.0) }
    }
}
