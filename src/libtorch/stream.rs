//! Work that goes on while the host does: a number of the device, read when it is needed; a batch copied
//! ahead of its turn.

use std::ffi::c_char;
use std::ptr::null_mut;

use anyhow::{Result, anyhow};
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use super::{check, take_tensor};

#[repr(C)]
struct RawReading {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn tikhonov_read_later(number: *const C_tensor, reading: *mut *mut RawReading) -> *mut c_char;
    fn tikhonov_read_now(reading: *const RawReading, number: *mut f64) -> *mut c_char;
    fn tikhonov_read_free(reading: *mut RawReading);
    fn tikhonov_pinned(
        size: *const i64,
        dims: usize,
        like: *const C_tensor,
        pinned: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn tikhonov_upload_new(cuda: i64, courier: *mut *mut RawCourier) -> *mut c_char;
    fn tikhonov_upload_free(courier: *mut RawCourier);
    fn tikhonov_upload_send(
        courier: *const RawCourier,
        here: *const C_tensor,
        parcel: *mut *mut RawParcel,
    ) -> *mut c_char;
    fn tikhonov_pending_receive(parcel: *mut RawParcel, there: *mut *mut C_tensor) -> *mut c_char;
    fn tikhonov_pending_free(parcel: *mut RawParcel);
}

#[repr(C)]
struct RawCourier {
    _private: [u8; 0],
}

#[repr(C)]
struct RawParcel {
    _private: [u8; 0],
}

/// A CPU tensor in page-locked memory, from which a copy to a GPU does not block; its content is arbitrary. Loads no
/// CUDA library: it is for runs on a GPU alone.
pub fn pinned(size: &[i64], kind: Kind) -> Result<Tensor> {
    let like = Tensor::f_empty([0], (kind, Device::Cpu))?;
    let mut pinned = null_mut();
    // SAFETY: `size` and `like` are alive, `pinned` outlives the call.
    let message = unsafe { tikhonov_pinned(size.as_ptr(), size.len(), like.as_ptr(), &mut pinned) };
    take_tensor(message, pinned)?.ok_or_else(|| anyhow!("libtorch made no page-locked memory"))
}

/// A small CPU tensor on `device`; a copy to a GPU is not waited for.
pub fn upload(tensor: &Tensor, device: Device) -> Result<Tensor> {
    if device == Device::Cpu {
        return Ok(tensor.shallow_clone());
    }
    Ok(pin(tensor)?.f_to_device_(device, tensor.kind(), true, false)?)
}

/// A CPU tensor in page-locked memory.
pub fn pin(tensor: &Tensor) -> Result<Tensor> {
    let mut copy = pinned(&tensor.size(), tensor.kind())?;
    copy.f_copy_(tensor)?;
    Ok(copy)
}

/// A stream of a GPU beside the one that computes, for copies to it.
pub struct AsyncUpload(*mut RawCourier);

// SAFETY: a stream belongs to no thread, and the handle does not change.
unsafe impl Send for AsyncUpload {}
// SAFETY: as above.
unsafe impl Sync for AsyncUpload {}

impl AsyncUpload {
    /// None for the CPU, where there is nothing to copy.
    pub fn to(device: Device) -> Result<Option<Self>> {
        let Device::Cuda(index) = device else { return Ok(None) };
        let mut courier = null_mut();
        // SAFETY: `courier` outlives the call.
        check(unsafe { tikhonov_upload_new(index as i64, &mut courier) })
            .map_err(|message| anyhow!("a stream for copies: {message}"))?;
        Ok(Some(Self(courier)))
    }

    /// Starts to copy a tensor of the CPU, in page-locked memory, to the device.
    pub fn send(&self, here: &Tensor) -> Result<PendingTensor> {
        let mut parcel = null_mut();
        // SAFETY: courier and tensor are alive, `parcel` outlives the call.
        check(unsafe { tikhonov_upload_send(self.0, here.as_ptr(), &mut parcel) })
            .map_err(|message| anyhow!("copying a batch to the device: {message}"))?;
        Ok(PendingTensor(parcel))
    }
}

impl Drop for AsyncUpload {
    fn drop(&mut self) {
        // SAFETY: made by the shim with `new`, freed once.
        unsafe { tikhonov_upload_free(self.0) }
    }
}

/// A tensor on its way to a GPU.
pub struct PendingTensor(*mut RawParcel);

impl PendingTensor {
    /// The tensor on the device. What the device is asked for from now on waits for the copy; the host does
    /// not.
    pub fn receive(self) -> Result<Tensor> {
        let mut there = null_mut();
        // SAFETY: the parcel is alive until `drop`, `there` outlives the call.
        check(unsafe { tikhonov_pending_receive(self.0, &mut there) })
            .map_err(|message| anyhow!("copying a batch to the device: {message}"))?;
        // SAFETY: the shim made it with `new` for us to own.
        Ok(unsafe { Tensor::from_ptr(there) })
    }
}

impl Drop for PendingTensor {
    fn drop(&mut self) {
        // SAFETY: made by the shim with `new`, freed once.
        unsafe { tikhonov_pending_free(self.0) }
    }
}

/// A tensor of one number on its way to the host. What is asked of the device afterwards is not waited for.
pub struct AsyncScalar(*mut RawReading);

impl AsyncScalar {
    /// Starts to copy `number`, 0-dim, as it is at this point of the device's work.
    pub fn start(number: &Tensor) -> Result<Self> {
        let mut reading = null_mut();
        // SAFETY: the tensor is alive, `reading` outlives the call.
        check(unsafe { tikhonov_read_later(number.as_ptr(), &mut reading) })
            .map_err(|message| anyhow!("reading a number of the device: {message}"))?;
        Ok(Self(reading))
    }

    /// Waits for the number.
    pub fn value(&self) -> Result<f64> {
        let mut number = 0.0;
        // SAFETY: the shim made the reading, and nothing frees it before `drop`.
        check(unsafe { tikhonov_read_now(self.0, &mut number) })
            .map_err(|message| anyhow!("reading a number of the device: {message}"))?;
        Ok(number)
    }
}

impl Drop for AsyncScalar {
    fn drop(&mut self) {
        // SAFETY: made by the shim with `new`, freed once.
        unsafe { tikhonov_read_free(self.0) }
    }
}
