//! A tensor's memory as bytes, which tch only copies.

use std::ffi::{c_int, c_void};
use std::sync::Mutex;

use crate::util::threads::{share, unpoisoned};
use anyhow::{Result, bail};
use tch::{Device, Kind, Tensor};

unsafe extern "C" {
    fn madvise(start: *mut c_void, len: usize, advice: c_int) -> c_int;
}

/// Asks for huge pages behind large memory that is about to be filled. Faults on fresh pages of 4 KiB cost
/// more than the reading: the first 100 MB take 38 ms instead of 62 on one core. Rounded outward, so that
/// neighbours join into ranges that huge pages fit into.
fn prefer_huge_pages(memory: &mut [u8]) {
    const PAGE: usize = 4096;
    const LARGE: usize = 128 << 10;
    const MADV_HUGEPAGE: c_int = 14;
    if memory.len() >= LARGE && cfg!(target_os = "linux") {
        let start = memory.as_mut_ptr() as usize & !(PAGE - 1);
        let end = (memory.as_mut_ptr() as usize + memory.len()).next_multiple_of(PAGE);
        // SAFETY: the advice changes no byte and no right of access, of these pages or of what else lies in
        // them; where the system does not follow it, nothing happens.
        unsafe { madvise(start as *mut c_void, end - start, MADV_HUGEPAGE) };
    }
}

/// New uint8 tensors of `lens` bytes on the CPU, the bytes of each written by `fill(index, bytes)`: files are
/// read straight into them. Up to four threads fill; the first failure ends it.
pub fn filled(lens: &[u64], fill: impl Fn(usize, &mut [u8]) -> Result<()> + Sync) -> Result<Vec<Tensor>> {
    // Allocated here and not by the threads, whose memory arenas would start empty every time.
    let mut tensors = Vec::with_capacity(lens.len());
    for &len in lens {
        tensors.push(Tensor::f_empty([i64::try_from(len)?], (Kind::Uint8, Device::Cpu))?);
    }
    let jobs = Mutex::new(
        tensors
            .iter()
            .zip(lens)
            .map(|(tensor, &len)| {
                let pointer = tensor.data_ptr().cast::<u8>();
                // SAFETY: libtorch has just allocated `len` bytes there, nothing else refers to these tensors yet,
                // each is given out once, they outlive the threads, and every bit pattern is a u8.
                let memory: &mut [u8] = match len {
                    0 => &mut [],
                    _ => unsafe { std::slice::from_raw_parts_mut(pointer, len as usize) },
                };
                prefer_huge_pages(memory);
                memory
            })
            .enumerate()
            .collect::<Vec<_>>(),
    );
    let failure = Mutex::new(None);
    let work = || loop {
        let Some((index, bytes)) = unpoisoned(&jobs).pop() else { return };
        if let Err(error) = fill(index, bytes) {
            unpoisoned(&jobs).clear();
            unpoisoned(&failure).get_or_insert(error);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4).min(lens.len());
    share(threads, work);
    let failure = unpoisoned(&failure).take();
    drop(jobs);
    failure.map_or(Ok(tensors), Err)
}

/// Shows the memory of a contiguous CPU tensor to `read`. Nothing may write to the tensor meanwhile.
pub fn with<T>(tensor: &Tensor, read: impl FnOnce(&[u8]) -> T) -> Result<T> {
    if tensor.device() != Device::Cpu || !tensor.is_contiguous() {
        bail!("only contiguous tensors on the CPU show their bytes");
    }
    let len = tensor.numel() * tensor.kind().elt_size_in_bytes();
    if len == 0 {
        return Ok(read(&[]));
    }
    // SAFETY: a contiguous tensor owns numel elements from data_ptr on, and lives as long as the borrow.
    let bytes = unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<u8>().cast_const(), len) };
    Ok(read(bytes))
}
