//! What libtorch says of itself and of the GPUs.

use std::ffi::{CStr, c_char};

use serde::Serialize;

use super::{check, tikhonov_free};

/// Laid out as `TikhonovGpu` in machine.cpp.
#[repr(C)]
struct RawGpu {
    name: [c_char; 256],
    total: i64,
    free: i64,
    major: i32,
    minor: i32,
    processors: i32,
}

unsafe extern "C" {
    fn tikhonov_keep_memory();
    fn tikhonov_show_config() -> *mut c_char;
    fn tikhonov_gpu(index: i64, gpu: *mut RawGpu) -> *mut c_char;
}

/// A GPU as `doctor` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Gpu {
    pub name: String,
    /// Compute capability, such as `9.0`.
    pub capability: String,
    pub multiprocessors: i32,
    /// Bytes.
    pub memory_total: i64,
    /// Bytes that no process uses now.
    pub memory_free: i64,
}

/// Lets the allocator keep what a training step gives back, for the next step to use: fetching fresh pages
/// from the system costs a small CNN a tenth of its time. For processes that train; others should stay small.
pub fn keep_memory() {
    // SAFETY: sets the allocator's options; called before training starts threads of its own.
    unsafe { tikhonov_keep_memory() }
}

/// libtorch's own account of how it was built: compiler, MKL, oneDNN, OpenMP, CUDA, `TORCH_VERSION`.
pub fn show_config() -> String {
    // SAFETY: the shim returns a string that it allocated with strdup for us to free, or null without memory.
    unsafe {
        let text = tikhonov_show_config();
        if text.is_null() {
            return String::new();
        }
        let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
        tikhonov_free(text);
        owned
    }
}

/// The GPU with this index, or why it cannot be asked.
pub fn gpu(index: usize) -> Result<Gpu, String> {
    let mut raw = RawGpu { name: [0; 256], total: 0, free: 0, major: 0, minor: 0, processors: 0 };
    // SAFETY: `raw` has the layout that the shim writes to and outlives the call; the shim leaves the last
    // byte of the name zero.
    let name = unsafe {
        check(tikhonov_gpu(index as i64, &mut raw))?;
        CStr::from_ptr(raw.name.as_ptr()).to_string_lossy().into_owned()
    };
    Ok(Gpu {
        name,
        capability: format!("{}.{}", raw.major, raw.minor),
        multiprocessors: raw.processors,
        memory_total: raw.total,
        memory_free: raw.free,
    })
}
