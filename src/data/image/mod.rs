//! Image files: decoding, resizing, encoding.

pub mod container;
pub mod eval_transform;
pub mod floats;
pub(crate) mod jpeg;
pub mod photo;
pub mod picture;
mod resample;
pub(crate) mod smooth;
