//! Exported programs (`.pt2`), run by libtorch's nativert.

use std::ffi::c_char;
use std::path::Path;
use std::ptr::null_mut;

use anyhow::{Result, anyhow};
use tch::Tensor;
use torch_sys::C_tensor;

use super::script::path_text;
use super::{check, take_tensor};

/// A `torch::nativert::ModelRunnerHandle` of the shim.
#[repr(C)]
struct Raw {
    opaque: [u8; 0],
}

unsafe extern "C" {
    fn tikhonov_exported_load(path: *const c_char, runner: *mut *mut Raw) -> *mut c_char;
    fn tikhonov_exported_free(runner: *mut Raw);
    fn tikhonov_exported_run(runner: *mut Raw, xs: *const C_tensor, ys: *mut *mut C_tensor) -> *mut c_char;
}

/// An exported program of one tensor to one tensor, on the CPU.
#[derive(Debug)]
pub struct ExportedProgram {
    raw: *mut Raw,
}

impl Drop for ExportedProgram {
    fn drop(&mut self) {
        // SAFETY: the shim made it with `new`; nothing else frees it.
        unsafe { tikhonov_exported_free(self.raw) }
    }
}

impl ExportedProgram {
    /// The program of the `.pt2` file at `path`. libtorch is no reader for damaged files: it must be whole.
    pub fn load(path: &Path) -> Result<Self> {
        let path = path_text(path)?;
        let mut raw = null_mut();
        // SAFETY: `path` is a C string for the time of the call.
        let message = unsafe { tikhonov_exported_load(path.as_ptr(), &mut raw) };
        check(message).map_err(|message| anyhow!("libtorch: {message}"))?;
        if raw.is_null() {
            return Err(anyhow!("libtorch made no program"));
        }
        Ok(Self { raw })
    }

    /// Sizes that the file excludes are not refused here, as they are in Python.
    pub fn run(&self, xs: &Tensor) -> Result<Tensor> {
        let mut ys = null_mut();
        // SAFETY: the program and the tensor live; the shim reads the tensor for the time of the call.
        let message = unsafe { tikhonov_exported_run(self.raw, xs.as_ptr(), &mut ys) };
        take_tensor(message, ys)?.ok_or_else(|| anyhow!("the program made no tensor"))
    }
}
