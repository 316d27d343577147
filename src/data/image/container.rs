//! Files that hold many pictures, each of which is read by its number.

use std::fmt::Debug;
use std::sync::Arc;

use anyhow::Result;

/// A file of many pictures: a shard.
pub trait Container: Debug + Send + Sync {
    /// The bytes of picture `index`, at most the first `most`.
    fn read(&self, index: u32, most: u64) -> Result<Vec<u8>>;
    /// What messages call it, within its file.
    fn name(&self, index: u32) -> String;
}

/// One picture of a container.
#[derive(Clone, Debug)]
pub struct Entry {
    pub container: Arc<dyn Container>,
    pub index: u32,
}
