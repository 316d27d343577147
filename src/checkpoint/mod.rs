//! Checkpoints: our own format, and what Python users saved.

pub mod atomic;
pub mod fit;
pub mod python;
pub mod safetensors;
pub mod state_dict;
pub mod weights;
