//! CUDA graphs: what a thread asks of a GPU, recorded once and replayed as a whole.

use std::ffi::c_char;
use std::ptr::null_mut;

use anyhow::{Result, anyhow};
use tch::{Device, Tensor};
use torch_sys::C_tensor;

use super::{catch_panics, check};

#[repr(C)]
struct RawGraph {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn tikhonov_leave_default_stream(cuda: i64) -> *mut c_char;
    fn tikhonov_graph_begin(cuda: i64, graph: *mut *mut RawGraph) -> *mut c_char;
    fn tikhonov_graph_end(graph: *mut RawGraph) -> *mut c_char;
    fn tikhonov_graph_abandon(graph: *mut RawGraph);
    fn tikhonov_graph_replay(graph: *mut RawGraph) -> *mut c_char;
    fn tikhonov_graph_free(graph: *mut RawGraph);
    fn tikhonov_copy_async(to: *const C_tensor, from: *const C_tensor) -> *mut c_char;
}

/// From now on this thread works on a stream of its own, because nothing can be recorded on the default one.
/// Nothing on the CPU.
pub fn leave_default_stream(device: Device) -> Result<()> {
    let Device::Cuda(index) = device else { return Ok(()) };
    // SAFETY: sets the calling thread's stream.
    check(unsafe { tikhonov_leave_default_stream(index as i64) })
        .map_err(|message| anyhow!("a stream of its own for training: {message}"))
}

/// A recording, with the memory that its tensors live in.
pub struct Graph(*mut RawGraph);

impl Graph {
    /// Records what `f` asks of the GPU; none of it is done. Tensors that outlive `f` hold what the last
    /// replay left. The error says what could not be recorded, and leaves the GPU as it was.
    pub fn record<T>(device: Device, f: impl FnOnce() -> Result<T>) -> Result<(Self, T)> {
        let Device::Cuda(index) = device else { return Err(anyhow!("only a GPU has CUDA graphs")) };
        let mut graph = null_mut();
        // SAFETY: `graph` outlives the call.
        check(unsafe { tikhonov_graph_begin(index as i64, &mut graph) })
            .map_err(|message| anyhow!("{message}"))?;
        let recorded = catch_panics(f).and_then(|recorded| recorded);
        // SAFETY: the shim made the graph, and this is the only handle to it.
        let ended = match recorded {
            Ok(answer) => check(unsafe { tikhonov_graph_end(graph) })
                .map(|()| answer)
                .map_err(|message| anyhow!("{message}")),
            Err(error) => Err(error),
        };
        match ended {
            Ok(answer) => Ok((Self(graph), answer)),
            Err(error) => {
                // SAFETY: as above; the graph is not used afterwards.
                unsafe { tikhonov_graph_abandon(graph) };
                Err(error)
            }
        }
    }

    /// Asks the GPU for all of it once more. Random numbers go on from where the generator stands.
    pub fn replay(&self) -> Result<()> {
        // SAFETY: the graph is alive until `drop`.
        check(unsafe { tikhonov_graph_replay(self.0) })
            .map_err(|message| anyhow!("replaying a step: {message}"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by the shim with `new`, freed once.
        unsafe { tikhonov_graph_free(self.0) }
    }
}

/// `to` ← `from`, which is of its shape, without waiting where both are on the GPU or `from` is in
/// page-locked memory.
pub fn copy_ahead(to: &Tensor, from: &Tensor) -> Result<()> {
    // SAFETY: both are alive; libtorch checks shapes.
    check(unsafe { tikhonov_copy_async(to.as_ptr(), from.as_ptr()) })
        .map_err(|message| anyhow!("copying into a recorded step: {message}"))
}
