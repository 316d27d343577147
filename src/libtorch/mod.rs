//! What tch does not bind, and the only folder with `unsafe`: optimiser kernels, activation checkpointing, CUDA
//! graphs and errors, TorchScript, exported programs, c10d; in [`kernels`] our own CPU kernels.
//!
//! Every function turns a C++ exception into an error; none lets it cross the boundary.

pub mod activation_checkpoint;
pub mod autocast;
pub mod bytes;
pub mod constant;
pub mod cuda;
pub mod device;
pub mod distributed;
pub mod graph;
pub mod kernels;
mod lists;
pub mod machine;
pub mod memory;
pub mod nativert;
pub mod optim;
pub mod out_of_memory;
pub mod scalar;
pub mod script;
pub mod stream;

use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Result, anyhow};
use tch::Tensor;
use torch_sys::C_tensor;

use crate::util::exit_code;

unsafe extern "C" {
    fn tikhonov_free(text: *mut c_char);
    fn tikhonov_cpu_capability() -> *const c_char;
    fn tikhonov_version() -> *const c_char;
    fn tikhonov_exit_fast(code: i32) -> !;
    fn tikhonov_set_threads(threads: i32);
}

/// Makes the linker keep threads.cpp, whose other functions are not called from Rust.
#[used]
static THREADS: unsafe extern "C" fn(i32) = tikhonov_set_threads;

/// Takes the message that a shim function returns: null means that all went well.
fn check(message: *mut c_char) -> Result<(), String> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null message is a NUL-terminated string that the shim allocated with strdup for us to
    // free.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        tikhonov_free(message);
        text
    };
    Err(text)
}

/// The tensor that a shim function made, where it made one.
fn take_tensor(message: *mut c_char, out: *mut C_tensor) -> Result<Option<Tensor>> {
    check(message).map_err(|message| anyhow!("libtorch: {message}"))?;
    // SAFETY: a non-null pointer is a tensor that the shim made with `new` for us to own.
    Ok((!out.is_null()).then(|| unsafe { Tensor::from_ptr(out) }))
}

/// Unwraps; panics with the error, which [`catch_panics`] turns back into one. For code beside tch's operators,
/// which report errors by panics.
pub fn or_panic<T>(outcome: Result<T>) -> T {
    outcome.unwrap_or_else(|error| std::panic::panic_any(error))
}

/// The instruction set that libtorch's CPU kernels were chosen for, such as `AVX512`.
pub fn cpu_capability() -> String {
    // SAFETY: the shim returns a static string.
    unsafe { CStr::from_ptr(tikhonov_cpu_capability()) }.to_string_lossy().into_owned()
}

/// libtorch's version, such as `2.11.0`.
pub fn version() -> String {
    // SAFETY: the shim returns a static string.
    unsafe { CStr::from_ptr(tikhonov_version()) }.to_string_lossy().into_owned()
}

/// Sets the number of threads that one operation uses on the CPU.
pub fn set_threads(threads: usize) {
    // SAFETY: sets the numbers of libtorch, OpenMP and MKL.
    unsafe { tikhonov_set_threads(threads as i32) }
}

/// Ends the process, with everything that was printed, but without the destructors of libtorch's libraries:
/// taking every operator out of its tables again takes longer than many a command.
pub fn exit_fast(code: u8) -> ! {
    // Their reader may be gone, and there is no other place for the error.
    let _ = (std::io::stdout().flush(), std::io::stderr().flush());
    // SAFETY: the shim flushes C's streams and ends the process.
    unsafe { tikhonov_exit_fast(code.into()) }
}

/// Lets this thread record gradients or not; returns whether it did.
fn record(gradients: bool) -> bool {
    // SAFETY: sets a flag of the calling thread and returns the old one.
    unsafe { torch_sys::at_grad_set_enabled(gradients.into()) != 0 }
}

/// Whether this thread records gradients.
pub fn is_recording() -> bool {
    let recording = record(true);
    record(recording);
    recording
}

thread_local! {
    static CATCHING: Cell<u32> = const { Cell::new(0) };
}

/// Whether this thread is inside [`catch_panics`], so that a panic hook keeps silent.
pub fn is_catching() -> bool {
    CATCHING.get() > 0
}

/// Runs `f`, in which a tch operation may panic (tch's operators have no error path), and returns the panic's
/// text as an error; a panic whose payload is an `anyhow::Error` gives that very error. Whether gradients are
/// recorded is afterwards as it was before: a panic inside `tch::no_grad` leaves them off, and `backward`
/// without a graph is a crash.
pub fn catch_panics<T>(f: impl FnOnce() -> T) -> Result<T> {
    CATCHING.set(CATCHING.get() + 1);
    let recording = is_recording();
    let outcome = catch_unwind(AssertUnwindSafe(f));
    CATCHING.set(CATCHING.get() - 1);
    record(recording);
    outcome.map_err(|panic| {
        let panic = match panic.downcast::<anyhow::Error>() {
            Ok(error) => return *error,
            Err(panic) => panic,
        };
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()))
            .unwrap_or_else(|| "libtorch panicked without a message".into());
        anyhow!("{}", exit_code::plain(&text))
    })
}
