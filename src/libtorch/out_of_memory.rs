//! Memory that is refused: exit 6 with what to do, instead of an abort by the allocators of Rust and C++.
//!
//! Rust's allocator calls `abort` and has no stable handler; C++'s throws an exception, which a thread without a
//! handler turns into `abort`. So both set a flag, and the handler of SIGABRT ends the process with exit 6
//! where it is set.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::util::exit_code::ExitCode;

unsafe extern "C" {
    fn signal(signal: c_int, handler: usize) -> usize;
    fn raise(signal: c_int) -> c_int;
    fn write(file: c_int, bytes: *const c_void, len: usize) -> isize;
    fn _exit(code: c_int) -> !;
    /// `std::set_new_handler`
    #[link_name = "_ZSt15set_new_handlerPFvvE"]
    fn set_new_handler(handler: Option<extern "C" fn()>) -> Option<extern "C" fn()>;
}

const SIGABRT: c_int = 6;
const SIG_DFL: usize = 0;

/// Whether memory was refused since the start.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// The system's allocator, which notes what it refuses.
pub struct NotingAllocator;

// SAFETY: every call is the system allocator's own; a flag is set beside that.
unsafe impl GlobalAlloc for NotingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as of the caller.
        noted(unsafe { System.alloc(layout) })
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as of the caller.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as of the caller.
        noted(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as of the caller.
        noted(unsafe { System.realloc(pointer, layout, size) })
    }
}

fn noted(pointer: *mut u8) -> *mut u8 {
    if pointer.is_null() {
        REFUSED.store(true, Ordering::Relaxed);
    }
    pointer
}

/// C++ asks this again and again until it gives up its place; then it throws `std::bad_alloc`.
extern "C" fn refused() {
    REFUSED.store(true, Ordering::Relaxed);
    // SAFETY: takes this handler away, which has nothing to give back.
    unsafe { set_new_handler(None) };
}

/// Calls nothing that is not allowed in a signal's handler.
extern "C" fn aborted(number: c_int) {
    const TEXT: &str = "error: memory ran out\n  cure: a smaller data.batch_size (with train.accumulate for the same result), smaller \
                        data.memory_gib or fewer data.workers need less\n";
    // SAFETY: write, _exit, signal and raise are safe in a handler; TEXT is as long as it says.
    unsafe {
        if REFUSED.load(Ordering::Relaxed) {
            write(2, TEXT.as_ptr().cast(), TEXT.len());
            _exit(ExitCode::Memory as c_int);
        }
        signal(number, SIG_DFL);
        raise(number);
    }
}

/// From here on an abort for want of memory is exit 6.
pub fn install_handlers() {
    // SAFETY: called before there are other threads; both handlers stay for the life of the process.
    unsafe {
        set_new_handler(Some(refused));
        signal(SIGABRT, aborted as extern "C" fn(c_int) as usize);
    }
}
