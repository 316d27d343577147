//! Checkpoints: our own folders, and what Python users saved.

pub mod atomic;
pub mod fit;
pub mod initial;
pub mod python;
pub mod python_optimizer;
pub mod safetensors;
pub mod state_dict;
pub mod store;
pub mod weights;

pub use store::{Best, Checkpoints, Snapshot, State};
