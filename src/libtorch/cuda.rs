//! libtorch's CUDA half: not loaded before a GPU is asked for.

use std::ffi::c_char;

use super::check;

/// What needs symbols of the CUDA half (see cuda.h); empty where the binary was built without CUDA or its
/// headers.
static HALF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tikhonov_cuda.so"));

unsafe extern "C" {
    fn tikhonov_cuda_driver() -> bool;
    fn tikhonov_cuda_load(half: *const u8, size: usize) -> *mut c_char;
    fn tikhonov_cuda_count(count: *mut i64) -> *mut c_char;
}

/// Loads the half, once. The error says what is missing; too late is one as well: a process that has computed
/// on the CPU stays there.
pub fn load() -> Result<(), String> {
    // SAFETY: HALF is static, and what build.rs linked from cuda_half.cpp, or empty.
    check(unsafe { tikhonov_cuda_load(HALF.as_ptr(), HALF.len()) })
}

/// The number of CUDA devices, or the precise reason why there are none. Loads the half.
pub fn count() -> Result<usize, String> {
    load()?;
    let mut count = 0;
    // SAFETY: `count` outlives the call.
    check(unsafe { tikhonov_cuda_count(&mut count) })?;
    Ok(count as usize)
}

/// Whether a GPU can be used. Where no driver is installed, the half is not loaded to find that out.
pub fn is_there() -> bool {
    // SAFETY: opens the driver's library, if there is one.
    unsafe { tikhonov_cuda_driver() && count().is_ok_and(|count| count > 0) }
}
