//! Activation checkpointing (Chen, Xu, Zhang and Guestrin 2016, "Training deep nets with sublinear memory
//! cost"): a part of a network keeps its input alone and runs again in the backward pass.

use std::ffi::{CString, c_char, c_void};
use std::ops::Deref;
use std::ptr::null_mut;
use std::sync::Arc;

use tch::Tensor;
use torch_sys::C_tensor;

use super::{catch_panics, check};

/// A borrowed array of `at::Tensor*`.
#[repr(C)]
struct Borrowed {
    tensors: *const *const C_tensor,
    count: usize,
}

type Run = unsafe extern "C" fn(*mut c_void, *const C_tensor, *mut C_tensor) -> bool;

unsafe extern "C" {
    fn tikhonov_checkpoint_failed(text: *const c_char);
    fn tikhonov_checkpoint_output(to: *mut C_tensor, from: *const C_tensor);
    fn tikhonov_checkpoint(
        context: *mut c_void,
        run: Run,
        release: unsafe extern "C" fn(*mut c_void),
        xs: *const C_tensor,
        buffers: Borrowed,
        ys: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// What a network and the graphs of its forward passes own together.
#[derive(Debug)]
pub struct Shared<T>(Arc<T>);

impl<T> Shared<T> {
    pub fn new(value: T) -> Self {
        Self(Arc::new(value))
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

// SAFETY: two threads never use the value at once. A clone leaves its thread only into a graph, and a graph
// uses it in a backward pass, on a thread of autograd, while the thread that owns the network waits for that
// pass to end.
unsafe impl<T: Send> Send for Shared<T> {}

type Segment = Box<dyn Fn(&Tensor) -> Tensor + Send>;

/// `run(xs)`, of which a graph keeps `xs` alone; the rest is computed again in the backward pass, with the
/// same random numbers and under the same autocast. `buffers`, what a forward pass changes by itself, change
/// once. Panics as tch does where `run` does.
pub fn recomputed(
    xs: &Tensor,
    buffers: &[Tensor],
    run: impl Fn(&Tensor) -> Tensor + Send + 'static,
) -> Tensor {
    let context: Box<Segment> = Box::new(Box::new(run));
    let pointers: Vec<_> = buffers.iter().map(|buffer| buffer.as_ptr()).collect();
    let buffers = Borrowed { tensors: pointers.as_ptr(), count: pointers.len() };
    let mut ys = null_mut();
    // SAFETY: the shim takes `context` over and calls `release` on it once, whatever happens; tensors and
    // list outlive the call.
    let outcome = check(unsafe {
        tikhonov_checkpoint(Box::into_raw(context).cast(), forward, release, xs.as_ptr(), buffers, &mut ys)
    });
    if let Err(message) = outcome {
        panic!("{message}");
    }
    // SAFETY: the shim made it with `new` for us to own.
    unsafe { Tensor::from_ptr(ys) }
}

/// No panic may cross the shim.
unsafe extern "C" fn forward(context: *mut c_void, xs: *const C_tensor, ys: *mut C_tensor) -> bool {
    // SAFETY: the context is what `recomputed` made; the tensors are the shim's and live as long as this
    // call.
    unsafe {
        let segment = &*context.cast::<Segment>();
        match catch_panics(|| segment(&Tensor::clone_from_ptr(xs.cast_mut()))) {
            Ok(answer) => {
                tikhonov_checkpoint_output(ys, answer.as_ptr());
                true
            }
            Err(error) => {
                let text = CString::new(format!("{error:#}").replace('\0', "")).unwrap_or_default();
                tikhonov_checkpoint_failed(text.as_ptr());
                false
            }
        }
    }
}

unsafe extern "C" fn release(context: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `recomputed`, and called once.
    drop(unsafe { Box::from_raw(context.cast::<Segment>()) });
}
