//! How a GPU computes. Autocast: convolutions and linear maps in a shorter number format, while weights and sums keep
//! theirs; TF32; algorithms that give the same bits in each run.

use std::ffi::c_char;

use anyhow::{Result, anyhow};
use tch::{Device, Kind};

use super::check;

unsafe extern "C" {
    fn tikhonov_autocast_enter(cuda: bool, bf16: bool, was: *mut AutocastState) -> *mut c_char;
    fn tikhonov_autocast_leave(was: *const AutocastState);
    fn tikhonov_allow_tf32(on: bool) -> *mut c_char;
    fn tikhonov_be_deterministic() -> *mut c_char;
}

/// Laid out as `TikhonovAutocast` in autocast.cpp: what to go back to.
#[repr(C)]
struct AutocastState {
    cuda: bool,
    enabled: bool,
    dtype: i8,
}

/// Whether GPUs may round the factors of float32 convolutions and matrix products to TF32, for the whole
/// process. Without a call convolutions may and matrix products may not. No effect on the CPU.
pub fn allow_tf32(on: bool) -> Result<()> {
    // SAFETY: sets options of libtorch.
    check(unsafe { tikhonov_allow_tf32(on) }).map_err(|message| anyhow!("TF32: {message}"))
}

/// Lets libtorch compute by algorithms alone that give the same bits in each run, for the rest of the process; an
/// operation that has none is an error, which [`has_no_deterministic_algorithm`] knows. To be called before the first
/// matrix product on a GPU.
pub fn be_deterministic() -> Result<()> {
    // SAFETY: sets options of libtorch, and a variable of the environment by C's own function.
    check(unsafe { tikhonov_be_deterministic() })
        .map_err(|message| anyhow!("deterministic algorithms: {message}"))
}

/// Whether libtorch's message is that of an operation which [`be_deterministic`] rules out.
pub fn has_no_deterministic_algorithm(message: &str) -> bool {
    message.contains("does not have a deterministic implementation")
}

/// Ends the region also where tch panics within it.
struct Region(AutocastState);

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the state is what `tikhonov_autocast_enter` filled in, on this thread.
        unsafe { tikhonov_autocast_leave(&self.0) }
    }
}

/// Runs `f` under autocast to `kind` (bfloat16 or half), as `torch.autocast(device, dtype)` does: libtorch's
/// own list decides which operations are shortened. Weights are cast once per call. `None` changes nothing.
pub fn autocast<T>(device: Device, kind: Option<Kind>, f: impl FnOnce() -> T) -> Result<T> {
    let Some(kind) = kind else { return Ok(f()) };
    let mut was = AutocastState { cuda: false, enabled: false, dtype: 0 };
    // SAFETY: `was` outlives the call.
    check(unsafe { tikhonov_autocast_enter(device.is_cuda(), kind == Kind::BFloat16, &mut was) })
        .map_err(|message| anyhow!("autocast: {message}"))?;
    let _region = Region(was);
    Ok(f())
}
