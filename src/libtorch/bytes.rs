//! A tensor's memory as bytes, which tch only copies.

use anyhow::{Result, bail};
use tch::{Device, Kind, Tensor};

/// A new uint8 tensor `[len]` on the CPU whose bytes `fill` writes: files are read straight into it.
pub fn filled(len: u64, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<Tensor> {
    let len = i64::try_from(len)?;
    let tensor = Tensor::f_empty([len], (Kind::Uint8, Device::Cpu))?;
    let pointer = tensor.data_ptr().cast::<u8>();
    if len > 0 {
        // SAFETY: libtorch has just allocated `len` bytes there, nobody else knows this tensor yet, and every bit pattern is a u8.
        let bytes = unsafe { std::slice::from_raw_parts_mut(pointer, len as usize) };
        fill(bytes)?;
    } else {
        fill(&mut [])?;
    }
    Ok(tensor)
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
