//! libtorch's CUDA libraries: not loaded before a GPU is used.

use std::ffi::c_char;

use anyhow::{Result, anyhow};
use tch::Device;

use super::check;

/// The plugin of cuda.h; empty where the binary was built without CUDA or its headers.
static PLUGIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tikhonov_cuda.so"));

unsafe extern "C" {
    fn tikhonov_cuda_driver() -> bool;
    fn tikhonov_cuda_load(bytes: *const u8, size: usize) -> *mut c_char;
    fn tikhonov_cuda_count(count: *mut i64) -> *mut c_char;
    fn tikhonov_cuda_make_current(cuda: i64) -> *mut c_char;
}

/// Loads them, once. The error says what is missing; it is an error too after the first computation on the
/// CPU, because libtorch looks for them only once.
pub fn load() -> Result<(), String> {
    // SAFETY: PLUGIN is static, and what build.rs linked from cuda_plugin.cpp, or empty.
    check(unsafe { tikhonov_cuda_load(PLUGIN.as_ptr(), PLUGIN.len()) })
}

/// The number of CUDA devices, or the precise reason why there are none. Loads the CUDA libraries.
pub fn count() -> Result<usize, String> {
    load()?;
    let mut count = 0;
    // SAFETY: `count` outlives the call.
    check(unsafe { tikhonov_cuda_count(&mut count) })?;
    Ok(count as usize)
}

/// Whether a driver is installed. Loads nothing else.
pub fn has_driver() -> bool {
    // SAFETY: opens the driver's library, if there is one.
    unsafe { tikhonov_cuda_driver() }
}

/// What this thread asks of CUDA without naming a device goes to `device` from now on; nothing on the CPU.
pub fn make_current(device: Device) -> Result<()> {
    let Device::Cuda(index) = device else { return Ok(()) };
    // SAFETY: sets the calling thread's device.
    check(unsafe { tikhonov_cuda_make_current(index as i64) })
        .map_err(|message| anyhow!("cuda:{index}: {message}"))
}
