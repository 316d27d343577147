//! PyTorch's c10d: the key-value store of a job, the gloo process group, and the Reducer of DistributedDataParallel.

use std::ffi::{CString, c_char};
use std::ptr::null_mut;

use anyhow::{Context, Result, anyhow};
use tch::Tensor;
use torch_sys::C_tensor;

use super::check;
use super::lists::{Borrowed, kernel};

/// The objects of the shim, which Rust only points to.
macro_rules! opaque {
    ($($name:ident),*) => { $(#[repr(C)] struct $name { _private: [u8; 0] })* };
}
opaque!(RawStore, RawGroup, RawReducer, RawWork);

unsafe extern "C" {
    fn tikhonov_store_open(
        host: *const c_char,
        port: u16,
        serves: bool,
        shared: bool,
        workers: i32,
        timeout_ms: i64,
        prefix: *const c_char,
        store: *mut *mut RawStore,
    ) -> *mut c_char;
    fn tikhonov_store_free(store: *mut RawStore);
    fn tikhonov_store_port(store: *const RawStore) -> u16;
    fn tikhonov_store_set(
        store: *mut RawStore,
        key: *const c_char,
        bytes: *const u8,
        count: usize,
    ) -> *mut c_char;
    fn tikhonov_store_get(
        store: *mut RawStore,
        key: *const c_char,
        found: *mut bool,
        bytes: *mut *mut u8,
        count: *mut usize,
    ) -> *mut c_char;
    fn tikhonov_store_claim(store: *mut RawStore, key: *const c_char, claimed: *mut bool) -> *mut c_char;
    fn tikhonov_group_join(
        store: *mut RawStore,
        rank: i32,
        size: i32,
        timeout_ms: i64,
        interface: *const c_char,
        group: *mut *mut RawGroup,
    ) -> *mut c_char;
    fn tikhonov_group_free(group: *mut RawGroup);
    fn tikhonov_group_all_reduce(
        group: *mut RawGroup,
        tensor: *const C_tensor,
        work: *mut *mut RawWork,
    ) -> *mut c_char;
    fn tikhonov_work_wait(work: *mut RawWork) -> *mut c_char;
    fn tikhonov_group_broadcast(group: *mut RawGroup, tensors: Borrowed) -> *mut c_char;
    fn tikhonov_reducer_new(
        group: *mut RawGroup,
        params: Borrowed,
        bucket_bytes: i64,
        bf16: bool,
        reducer: *mut *mut RawReducer,
    ) -> *mut c_char;
    fn tikhonov_reducer_free(reducer: *mut RawReducer) -> *mut c_char;
    fn tikhonov_reducer_rebuild(reducer: *mut RawReducer) -> *mut c_char;
    fn tikhonov_reducer_prepare(reducer: *mut RawReducer) -> *mut c_char;
}

fn checked(message: *mut c_char) -> Result<()> {
    check(message).map_err(|message| anyhow!("{message}"))
}

/// How a process finds the store.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions<'a> {
    pub host: &'a str,
    /// 0 takes a free one where this process serves.
    pub port: u16,
    /// Whether this process hosts the store.
    pub serves: bool,
    /// Wait until so many processes have joined.
    pub workers: Option<usize>,
    pub timeout_ms: u64,
    /// Put before every key.
    pub prefix: &'a str,
}

/// `torch.distributed.TCPStore`.
pub struct Store(*mut RawStore);

// SAFETY: TCPStore guards its connection with a mutex, and the handle does not change.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    pub fn open(options: StoreOptions) -> Result<Self> {
        let StoreOptions { host, port, serves, workers, timeout_ms, prefix } = options;
        let (host, prefix) = (CString::new(host)?, CString::new(prefix)?);
        let workers = i32::try_from(workers.unwrap_or(0))?;
        let mut store = null_mut();
        // SAFETY: the strings live for the call, `store` outlives it.
        checked(unsafe {
            tikhonov_store_open(
                host.as_ptr(),
                port,
                serves,
                true,
                workers,
                timeout_ms as i64,
                prefix.as_ptr(),
                &mut store,
            )
        })?;
        Ok(Self(store))
    }

    pub fn port(&self) -> u16 {
        // SAFETY: the store is alive.
        unsafe { tikhonov_store_port(self.0) }
    }

    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let key = CString::new(key)?;
        // SAFETY: key and value live for the call, which copies them.
        checked(unsafe { tikhonov_store_set(self.0, key.as_ptr(), value.as_ptr(), value.len()) })
    }

    /// None where it is not set.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let key = CString::new(key)?;
        let (mut found, mut bytes, mut count) = (false, null_mut(), 0);
        // SAFETY: the places outlive the call.
        checked(unsafe { tikhonov_store_get(self.0, key.as_ptr(), &mut found, &mut bytes, &mut count) })?;
        if !found {
            return Ok(None);
        }
        // SAFETY: the shim allocated `count` bytes with malloc for us to free.
        Ok(Some(unsafe {
            let value = std::slice::from_raw_parts(bytes, count).to_vec();
            super::tikhonov_free(bytes.cast());
            value
        }))
    }

    /// Whether this is the first call for `key` of any process.
    pub fn claim(&self, key: &str) -> Result<bool> {
        let (key, mut claimed) = (CString::new(key)?, false);
        // SAFETY: the place outlives the call.
        checked(unsafe { tikhonov_store_claim(self.0, key.as_ptr(), &mut claimed) })?;
        Ok(claimed)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: made by the shim with `new`, freed once.
        unsafe { tikhonov_store_free(self.0) }
    }
}

/// `torch.distributed.ProcessGroupGloo`.
pub struct Gloo(*mut RawGroup);

impl Gloo {
    /// Waits for all ranks. `interface` names the network, such as `eth0`; None takes that of the host's name.
    pub fn join(
        store: &Store,
        rank: usize,
        size: usize,
        timeout_ms: u64,
        interface: Option<&str>,
    ) -> Result<Self> {
        let interface = CString::new(interface.unwrap_or_default())?;
        let (rank, size, mut group) = (i32::try_from(rank)?, i32::try_from(size)?, null_mut());
        // SAFETY: the store is alive and outlived by nothing that the group keeps: it counts its references.
        checked(unsafe {
            tikhonov_group_join(store.0, rank, size, timeout_ms as i64, interface.as_ptr(), &mut group)
        })?;
        Ok(Self(group))
    }

    /// Starts to add up `tensor`, of the CPU, over all ranks in place.
    pub fn all_reduce(&self, tensor: &Tensor) -> Result<Work> {
        let mut work = null_mut();
        // SAFETY: group and tensor are alive; the work keeps a reference to the tensor.
        checked(unsafe { tikhonov_group_all_reduce(self.0, tensor.as_ptr(), &mut work) })?;
        Ok(Work(work))
    }

    /// Overwrites the tensors with those of rank 0.
    pub fn broadcast(&self, tensors: &[&Tensor]) -> Result<()> {
        kernel!([tensors], |[tensors]| tikhonov_group_broadcast(self.0, tensors))
    }
}

impl Drop for Gloo {
    fn drop(&mut self) {
        // SAFETY: made by the shim with `new`, freed once.
        unsafe { tikhonov_group_free(self.0) }
    }
}

/// A collective on its way.
pub struct Work(*mut RawWork);

impl Work {
    pub fn wait(mut self) -> Result<()> {
        let work = std::mem::replace(&mut self.0, null_mut());
        // SAFETY: made by the shim; the call frees it.
        checked(unsafe { tikhonov_work_wait(work) })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: made by the shim; the call frees it. Its error belongs to a step that has failed before.
            let _ = check(unsafe { tikhonov_work_wait(self.0) });
        }
    }
}

/// The Reducer of `torch.nn.parallel.DistributedDataParallel`: averages gradients in buckets while the backward pass
/// still computes others.
pub struct Reducer(*mut RawReducer);

impl Reducer {
    /// `params` require gradients and have the same shapes on all ranks. Buckets hold `bucket_bytes` or more;
    /// with `bf16` they cross the network as bfloat16.
    pub fn new(group: &Gloo, params: &[&Tensor], bucket_bytes: i64, bf16: bool) -> Result<Self> {
        let mut reducer = null_mut();
        kernel!([params], |[params]| tikhonov_reducer_new(
            group.0,
            params,
            bucket_bytes,
            bf16,
            &mut reducer
        ))?;
        if reducer.is_null() {
            return Err(anyhow!("there is no gradient to share"));
        }
        Ok(Self(reducer))
    }

    /// To be called before the forward pass of a step.
    pub fn rebuild(&self) -> Result<()> {
        // SAFETY: the reducer is alive.
        checked(unsafe { tikhonov_reducer_rebuild(self.0) })
    }

    /// The next backward pass leaves the mean of all ranks' gradients; without this call, those of this rank.
    pub fn prepare(&self) -> Result<()> {
        // SAFETY: the reducer is alive.
        checked(unsafe { tikhonov_reducer_prepare(self.0) }).context("sharing the gradients")
    }
}

impl Drop for Reducer {
    fn drop(&mut self) {
        // SAFETY: made by the shim with `new`, freed once. An error of a backward pass has been reported by then.
        let _ = check(unsafe { tikhonov_reducer_free(self.0) });
    }
}
