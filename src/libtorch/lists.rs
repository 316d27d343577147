//! Lists of tensors as the shim takes them.

use std::ffi::c_char;
use std::marker::PhantomData;

use anyhow::{Result, anyhow};
use tch::Tensor;
use torch_sys::C_tensor;

/// A borrowed array of `at::Tensor*`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Borrowed<'a> {
    tensors: *const *const C_tensor,
    count: usize,
    lifetime: PhantomData<&'a C_tensor>,
}

/// Lends the lists to `call` as arrays of pointers. All lists must be as long as the first, or empty.
pub(super) fn lend<const N: usize>(
    lists: [&[&Tensor]; N],
    call: impl FnOnce([Borrowed; N]) -> *mut c_char,
) -> Result<()> {
    let count = lists[0].len();
    if let Some(odd) = lists.iter().find(|list| !list.is_empty() && list.len() != count) {
        return Err(anyhow!("a kernel got lists of {count} and {} tensors", odd.len()));
    }
    if count == 0 {
        return Ok(());
    }
    let pointers = lists.map(|list| list.iter().map(|tensor| tensor.as_ptr()).collect::<Vec<_>>());
    let borrowed = std::array::from_fn(|i| Borrowed {
        tensors: pointers[i].as_ptr(),
        count: pointers[i].len(),
        lifetime: PhantomData,
    });
    super::check(call(borrowed)).map_err(|message| anyhow!("libtorch: {message}"))
}

/// Calls the shim with lists. Every call hands the shim pointers that `lend` keeps alive, each to a live
/// `at::Tensor`; the shim checks nothing else that Rust promises. That is what makes these blocks sound.
macro_rules! kernel {
    ([$($list:expr),+], |$borrowed:pat_param| $call:expr) => {
        // SAFETY: the lists are alive and of the lengths given; see the macro's doc.
        $crate::libtorch::lists::lend([$($list),+], |$borrowed| unsafe { $call })
    };
}

pub(super) use kernel;
