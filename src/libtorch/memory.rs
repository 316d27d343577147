//! The memory of CPU tensors as Rust slices, so that samples are read and batches are filled without a copy.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor, kind::Element};

use super::stream;

/// A contiguous uint8 tensor on the CPU that any number of threads may read. Nobody may write to the storage
/// while this lives; nothing in the program changes the samples of a data set.
pub struct Bytes(Tensor);

// SAFETY: the only access is `as_slice`, which reads; the storage is not written to (see above).
unsafe impl Sync for Bytes {}

impl Bytes {
    /// Shares the storage of `tensor`; fails unless it is uint8, contiguous and on the CPU.
    pub fn new(tensor: &Tensor) -> Result<Self> {
        let fits = tensor.kind() == Kind::Uint8 && tensor.device() == Device::Cpu && tensor.is_contiguous();
        ensure!(fits, "expected a contiguous uint8 tensor on the CPU");
        Ok(Self(tensor.shallow_clone()))
    }

    pub fn as_slice(&self) -> &[u8] {
        if self.0.numel() == 0 {
            return &[];
        }
        // SAFETY: `new` checked kind, device and contiguity; the tensor keeps its storage alive as long as
        // `self`.
        unsafe { std::slice::from_raw_parts(self.0.data_ptr().cast(), self.0.numel()) }
    }
}

/// The element types of samples. All bit patterns are valid values of each.
pub trait Number: Element + Copy + Send + Sync + 'static {
    /// The nearest value of this type.
    fn of(value: f64) -> Self;
}

impl Number for u8 {
    fn of(value: f64) -> Self {
        value.round() as Self
    }
}

impl Number for f32 {
    fn of(value: f64) -> Self {
        value as Self
    }
}

impl Number for f64 {
    fn of(value: f64) -> Self {
        value
    }
}

/// A new CPU tensor whose first dimension is filled slot by slot, by any number of threads.
pub struct Slots<T> {
    tensor: Tensor,
    per_slot: usize,
    taken: Vec<AtomicBool>,
    element: PhantomData<T>,
}

// SAFETY: threads reach the storage only through `slot`, which hands out each of the disjoint parts once.
unsafe impl<T: Number> Sync for Slots<T> {}

impl<T: Number> Slots<T> {
    /// An uninitialised tensor of `size`, `size[0]` slots; in page-locked memory where `pinned` says so, from
    /// which a copy to a GPU does not block. Fails where memory runs out.
    pub fn new(size: &[i64], pinned: bool) -> Result<Self> {
        let tensor = match pinned {
            true => stream::pinned(size, T::KIND)?,
            false => Tensor::f_empty(size, (T::KIND, Device::Cpu))?,
        };
        let slots = size.first().map_or(0, |&n| n as usize);
        let per_slot = size.iter().skip(1).product::<i64>() as usize;
        let taken = (0..slots).map(|_| AtomicBool::new(false)).collect();
        Ok(Self { tensor, per_slot, taken, element: PhantomData })
    }

    /// The elements of slot `index`, with arbitrary content; None for one that was handed out before or does
    /// not exist.
    #[allow(clippy::mut_from_ref)] // each slot is handed out once
    pub fn slot(&self, index: usize) -> Option<&mut [T]> {
        if self.taken.get(index)?.swap(true, Ordering::Relaxed) {
            return None;
        }
        if self.per_slot == 0 {
            return Some(&mut []);
        }
        // SAFETY: the tensor is contiguous, of T's kind, on the CPU and `taken.len() * per_slot` long; the
        // flag makes this the only reference to these elements; `into_tensor` takes `self`, so it outlives
        // none. Whatever the allocator left there is a valid `Number`.
        unsafe {
            let start = self.tensor.data_ptr().cast::<T>().add(index * self.per_slot);
            Some(std::slice::from_raw_parts_mut(start, self.per_slot))
        }
    }

    /// The tensor. Slots that were never handed out keep arbitrary content.
    pub fn into_tensor(self) -> Tensor {
        self.tensor
    }
}
