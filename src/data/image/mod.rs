//! Image files: decoding, resizing, encoding.

mod bicubic;
pub mod eval_transform;
mod jpeg;
pub mod photo;
pub mod picture;
pub(crate) mod smooth;
