//! Checkpoints: our own folders, and what Python users saved.

pub mod atomic;
mod attributes;
mod dcp;
mod fit;
mod folder;
pub mod initial;
pub mod python;
pub mod python_optimizer;
mod reparametrized;
pub mod safetensors;
mod sharded;
mod state;
pub mod state_dict;
mod store;
pub mod weights;

pub use folder::{Loaded, Snapshot, is_checkpoint, load};
pub use state::{Best, State};
pub use store::Checkpoints;
