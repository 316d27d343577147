//! Checkpoints: our own format, and what Python users saved.

pub mod python;
