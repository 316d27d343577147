//! Our own CPU kernels, each in the place of an operation of libtorch, and the switch between the two.
//!
//! A kernel is a function that returns None where it is switched off or does not support its input; the caller
//! then uses libtorch's operation. Without the cargo feature `kernels` they are not compiled, and all are off.
//! `tikhonov doctor --kernels` compares each with libtorch's on this machine.

/// Declares functions of the shim. Where the kernels are not compiled they do nothing and leave `out` null.
macro_rules! shim {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?);)*) => {
        #[cfg(feature = "kernels")]
        unsafe extern "C" {
            $(fn $name($($argument: $type),*) -> *mut std::ffi::c_char;)*
        }
        $(
            #[cfg(not(feature = "kernels"))]
            unsafe fn $name($(_: $type),*) -> *mut std::ffi::c_char {
                std::ptr::null_mut()
            }
        )*
    };
}

pub mod batch_norm;
pub mod linear;
pub mod loss;
pub mod norms;
mod spec;
pub mod winograd;

use std::sync::atomic::{AtomicU8, Ordering};

pub use spec::KernelSpec;

/// Whether the kernels are compiled in.
pub const COMPILED: bool = cfg!(feature = "kernels");

macro_rules! kernels {
    ($($kernel:ident $name:literal $about:literal,)*) => {
        /// What can be switched between our own code and libtorch's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kernel {
            $(#[doc = $about] $kernel,)*
        }

        impl Kernel {
            pub const ALL: &[Self] = &[$(Self::$kernel),*];
            /// Their keys in YAML.
            pub const NAMES: &[&str] = &[$($name),*];

            /// What it computes, in a few words.
            pub fn about(self) -> &'static str {
                match self {
                    $(Self::$kernel => $about,)*
                }
            }
        }
    };
}

kernels! {
    Winograd "winograd" "3x3 convolutions of stride 1 in float32, by Winograd's method",
    Linear "linear" "linear layers with the ReLU after them, for batches of up to 64",
    BatchNorm "batch_norm" "batch norm in training, with the addition and the ReLU after it",
    Loss "loss" "cross-entropy and squared error of small batches",
    Norms "norms" "the 2-norm of the gradients, for clipping and the log",
    ThreadPool "thread_pool" "the threads of `linear`, `norms` and optimiser steps on small networks",
    Mkl "mkl" "MKL's kernels for all instructions of a CPU that is not Intel's",
}

impl Kernel {
    /// Its key in YAML.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// One bit per kernel.
static ENABLED: AtomicU8 = AtomicU8::new(if COMPILED { u8::MAX } else { 0 });

/// Whether the kernel computes; false without the feature `kernels`.
pub fn is_enabled(kernel: Kernel) -> bool {
    ENABLED.load(Ordering::Relaxed) & kernel.bit() != 0
}

/// Switches one kernel on or off for the whole process, from its next call on: `mkl` before MKL is first used,
/// and never afterwards. Without the feature `kernels` it does nothing.
pub fn enable(kernel: Kernel, on: bool) {
    if !COMPILED {
        return;
    }
    match on {
        true => ENABLED.fetch_or(kernel.bit(), Ordering::Relaxed),
        false => ENABLED.fetch_and(!kernel.bit(), Ordering::Relaxed),
    };
    #[cfg(feature = "kernels")]
    // SAFETY: both store a flag.
    unsafe {
        match kernel {
            Kernel::ThreadPool => tikhonov_enable_thread_pool(on),
            Kernel::Mkl => tikhonov_mkl_all_instructions(on),
            _ => {}
        }
    }
}

#[cfg(feature = "kernels")]
unsafe extern "C" {
    fn tikhonov_enable_thread_pool(on: bool);
    fn tikhonov_mkl_all_instructions(on: bool);
}

/// Which kernels are off, as a line for the log; None where all are on.
pub fn note() -> Option<String> {
    let (on, off): (Vec<Kernel>, Vec<Kernel>) = Kernel::ALL.iter().partition(|&&kernel| is_enabled(kernel));
    let names =
        |kernels: &[Kernel]| kernels.iter().map(|kernel| kernel.name()).collect::<Vec<_>>().join(", ");
    match (off.is_empty(), on.is_empty()) {
        (true, _) => None,
        (_, true) if COMPILED => Some("CPU kernels: libtorch's".into()),
        (_, true) => {
            Some("CPU kernels: libtorch's (this binary was built without the feature `kernels`)".into())
        }
        _ => Some(format!("CPU kernels: libtorch's for {}", names(&off))),
    }
}
